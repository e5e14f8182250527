import json
from pathlib import Path

import pytest

from benchmarks.adapters import main


def test_a_step_and_scores_are_timed_beside_a_bare_loop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "adapters.json"
    sizes = [
        "--rank",
        "1",
        "--experts",
        "2",
        "--steps",
        "1",
        "--batch",
        "1",
        "--windows",
        "2",
        "--rounds",
        "1",
    ]
    assert main([*sizes, "--rounds", "1", "--json", str(file)]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("small-lm, rank 1, ")
    found = json.loads(file.read_text())
    assert [part["what"] for part in found["parts"]] == [
        "a step of 128 tokens",
        "2 windows scored by 2",
    ]
    for row, part in zip(rows, found["parts"], strict=True):
        assert part["ms"] > 0 < part["bare"]
        assert row.endswith(f"ratio {part['ratio']:.3f}")
    assert found["source"]["machine"]["cores"] >= 1
