"""Who stands in for whom."""

from pathlib import Path

import pytest

from nmoe_flower.cli import main
from nmoe_flower.errors import ConfigError
from nmoe_flower.inference.bundle.holders import read_holders, ring_holders


def written(folder: Path, text: str, name: str = "holders.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_what_an_assignment_decides_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CSV and JSON as `nmoe align` writes them; each device holds its own besides."""
    needs = written(tmp_path, "client,capacity,0,1,2\n0,1,,9,1\n1,2,5,,4\n2,0,,,\n", "needs.csv")
    for end in ("csv", "json"):
        out = tmp_path / f"out.{end}"
        assert main(["align", str(needs), "--lo", "0", "--out", str(out)]) == 0
        assert read_holders(out, 3) == [[0, 1], [1, 0], [2, 1]]
    capsys.readouterr()


def test_a_ring_gives_every_device_as_many() -> None:
    assert ring_holders(4, 1) == [[0], [1], [2], [3]]
    assert ring_holders(4, 3) == [[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]]
    for wrong in (0, 5):
        with pytest.raises(ConfigError, match=f"{wrong} replicas .*allowed: 1 to 4"):
            ring_holders(4, wrong)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("h.csv", "", "columns are ''; allowed: client,expert"),
        ("h.csv", "expert,client\n", "'expert,client'; allowed: client,expert"),
        ("h.csv", "client,expert\n0,3\n", "line 2: '3'; allowed: a client of the run, 0 to 2"),
        ("h.csv", "client,expert\n\n0,1\nphone,1\n", "line 4: 'phone'; allowed"),
        ("h.csv", "client,expert\n0,-1\n", "line 2: '-1'"),
        ("h.csv", "client,expert\n0,٢\n", "line 2: '٢'"),
        ("h.csv", "client,expert\n0," + "9" * 5000, "line 2: '9999"),
        ("h.csv", "client,expert\n0,1,2\n", "line 2: 3 cells; allowed: 2"),
        ("h.csv", "client,expert\n0,1\n0,1\n", "line 3: device 0 holds expert 1 twice"),
        ("h.csv", 'client,expert\n0,"1\n', "line 2: "),
        ("h.json", "{}", "has no assignment; allowed"),
        ("h.json", "[]", "has no assignment; allowed"),
        ("h.json", '{"assignment": {"0": "1"}}', "assignment of 0: '1'; allowed: a list"),
        ("h.json", '{"assignment": {"0": [1.5]}}', "assignment of 0: '1.5'; allowed: a client"),
        ("h.json", '{"assignment": {"7": [1]}}', "assignment of 7: '7'; allowed: a client"),
        ("h.json", "{", "h.json"),
    ],
)
def test_what_is_no_assignment_is_refused_by_its_place(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_holders(written(tmp_path, text, name), 3)
    assert said in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--store", "s", "--replicas", "2"], "--replicas needs RUN_DIR"),
        (["--store", "s", "--holders", "h.csv"], "--holders needs RUN_DIR"),
        (["run", "--replicas", "2", "--holders", "h.csv"], "exclude each other"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bundle", *options])
    assert left.value.code == 2
    assert said in capsys.readouterr().err
