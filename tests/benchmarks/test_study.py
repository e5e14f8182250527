import json
from pathlib import Path

import pytest

from benchmarks.study import main


def test_a_look_at_a_study_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    assert main(["--runs", "8", "--repeat", "1", "--json", str(path)]) == 0
    assert "nmoe study plan, 8 runs, half of them finished: " in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert (found["runs"], found["goal"]) == (8, 1.0)
    assert found["cpu_seconds"] > 0


def test_the_study_is_as_large_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--runs", "0"])
    assert leaving.value.code == 2
