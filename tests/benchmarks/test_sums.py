import json
from pathlib import Path

import pytest

from benchmarks.sums import main


def test_sums_are_timed_and_weighed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sums.json"
    sizes = ["--dim", "4", "--clients", "2", "--images", "20", "--classes", "2"]
    assert main([*sizes, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["client_seconds"] > 0 < found["server_seconds"]
    # How many, the mean, the 10 second moments of 4 numbers, both classes' counts and sums.
    assert found["client_bytes"] == 8 + 8 * 4 + 4 * 10 + 8 * 2 + 4 * 2 * 4
    assert "read, ridge head, lda" in capsys.readouterr().out
