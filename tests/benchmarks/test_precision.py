import json

import pytest

from benchmarks.precision import main


def test_precisions_and_tiles_are_timed_in_training_and_without(tmp_path, capsys):
    path = tmp_path / "precision.json"
    words = ["--network", "feed-forward", "--steps", "1", "--turns", "1"]
    assert main([*words, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    paces = found["paces"]
    assert [(one["network"], one["training"]) for one in paces] == [
        ("feed-forward", True), ("feed-forward", False),
    ]  # fmt: skip
    for one in paces:
        assert one["gain"] == pytest.approx(one["float32"] / one["bf16"], 1e-4)
        assert one["tiles_gain"] == pytest.approx(one["direct"] / one["float32"], 1e-4)
    assert f"run.precision = auto computes in {found['auto']} here" in capsys.readouterr().out
