import json

import numpy as np
import pytest

from benchmarks.network import build_world, main, regions, spread, table_of_cells, whole_list


def test_without_churn_nothing_is_stale_and_the_list_finds_the_best():
    world = build_world(300, 50, 0.0, np.random.default_rng(0))
    assert world.devices == len(world.embeddings) == 300
    found = whole_list(world, np.random.default_rng(1))
    assert (found.stale, found.best, found.first, found.answered) == (0, 1, 1, 1)
    assert found.hops == 1  # straight to the expert
    assert found.kept_bytes == 600  # six times an hour, nothing has changed


def test_those_who_left_are_asked_until_it_is_known():
    """At 50 % an hour and a list 2 to 12 minutes old: 1 - 2^(-7/60) = 7.8 % are gone."""
    world = build_world(4000, 2000, 0.5, np.random.default_rng(0))
    found = whole_list(world, np.random.default_rng(1))
    assert found.stale == pytest.approx(1 - 2 ** (-7 / 60), abs=0.03)
    assert found.first < 1
    assert found.hops > 1


def test_news_reach_everybody_once():
    """Push and pull take about log3 N + ln ln N rounds, 9 for a thousand, and few copies."""
    shares, copies = spread(1000, np.random.default_rng(0))
    assert shares.sum() == pytest.approx(1)
    assert 6 <= len(shares) <= 13
    assert 0.99 <= copies < 2


def test_what_a_device_keeps_does_not_grow_with_the_network_in_regions():
    rng = np.random.default_rng(0)
    small, large = (build_world(devices, 50, 0.1, rng) for devices in (200, 3200))
    for way, most in ((regions, 1.1), (table_of_cells, 2.0), (whole_list, None)):
        ratio = way(large, rng).kept_bytes / way(small, rng).kept_bytes
        assert ratio > 10 if most is None else ratio < most


def test_all_ways_are_told_kept_and_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "network.png"
    words = ["--devices", "100,200", "--queries", "20", "--json", str(tmp_path / "n.json")]
    assert main([*words, "--plot", str(path)]) == 0
    kept = json.loads((tmp_path / "n.json").read_text())
    assert [one["way"] for one in kept["ways"]] == ["list", "gossip", "table", "regions"] * 2
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "200 devices, 10% an hour" in capsys.readouterr().out
