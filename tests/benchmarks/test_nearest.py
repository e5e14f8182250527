import json
import sys

import pytest

from benchmarks.nearest import main


def test_every_way_is_timed_and_one_that_is_not_installed_is_said(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "usearch" else 1)
    monkeypatch.setitem(sys.modules, "usearch", None)
    path = tmp_path / "nearest.png"
    words = ["--size", "300", "--dim", "8", "--way", "plain,exact,cells,usearch"]
    assert main([*words, "--json", str(tmp_path / "n.json"), "--plot", str(path)]) == 0
    timings = json.loads((tmp_path / "n.json").read_text())["timings"]
    assert [one["way"] for one in timings] == ["plain", "exact", "cells"]
    assert [one["recall"] for one in timings[:2]] == [1.0, 1.0]
    assert timings[2]["recall"] > 0.95
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "usearch is left out: usearch is not installed" in capsys.readouterr().err
