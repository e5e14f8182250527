import json

import pytest

from benchmarks.stack import main


def test_both_ways_are_timed(tmp_path, capsys):
    path = tmp_path / "stack.json"
    words = ["--network", "linear,conv", "--clients", "2,3", "--most", "2", "--steps", "2"]
    assert main([*words, "--turns", "1", "--json", str(path)]) == 0
    paces = json.loads(path.read_text())["paces"]
    assert [(one["network"], one["clients"]) for one in paces] == [
        ("linear", 2), ("linear", 3), ("conv", 2),
    ]  # fmt: skip
    assert all(one["gain"] == pytest.approx(one["loop"] / one["stacked"]) for one in paces)
    assert "x faster" in capsys.readouterr().out
