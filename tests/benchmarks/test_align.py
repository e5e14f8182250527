import json

import pytest

from benchmarks.align import main

SMALL = ["--size", "40x4", "--kind", "classes"]


def test_joint_reaches_the_linear_program(tmp_path, capsys):
    assert main([*SMALL, "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    rows = {row["policy"]: row for row in found["rows"]}
    assert set(rows) == {"random", "greedy", "balanced", "sequential", "joint", "mended"}
    assert rows["joint"]["value"] == pytest.approx(rows["joint"]["optimum"], rel=1e-5)
    assert rows["joint"]["gap"] == pytest.approx(0, abs=1e-6)
    assert -1e-6 < rows["mended"]["gap"] < 0.05
    assert rows["joint"]["load_variation"] < 0.05 < rows["balanced"]["load_variation"]
    assert found["peak-bytes"] > 0
    assert "1.0000" in capsys.readouterr().out


def test_growth_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plots" / "growth.png"
    sizes = ["--size", "20x2,40x4", "--policy", "joint", "--kind", "noise", "--no-update"]
    assert main([*sizes, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("wrong", [["--size", "4"], ["--size", "2x4"], ["--policy", "best"]])
def test_wrong_usage(wrong):
    with pytest.raises(SystemExit) as leaving:
        main(wrong)
    assert leaving.value.code == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [(["--size", "3x3,4x2,3x3"], "'3x3' is there twice"), (["--json", "."], "this is a folder")],
)
def test_what_could_be_told_after_minutes_is_told_at_once(words, text, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code == 2
    assert text in capsys.readouterr().err
