import json

import pytest

from benchmarks.precision import main


def test_both_precisions_are_timed_in_training_and_without(tmp_path, capsys):
    path = tmp_path / "precision.json"
    words = ["--network", "feed-forward", "--steps", "1", "--turns", "1"]
    assert main([*words, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    paces = found["paces"]
    assert [(one["network"], one["training"]) for one in paces] == [
        ("feed-forward", True), ("feed-forward", False),
    ]  # fmt: skip
    assert all(one["gain"] == pytest.approx(one["float32"] / one["bf16"], 1e-4) for one in paces)
    assert f"run.precision = auto computes in {found['auto']} here" in capsys.readouterr().out
