import json
import os

import pytest

from benchmarks.growth import (
    Growth,
    StageCost,
    draw,
    held_bytes,
    main,
    page_tables,
    round_of,
    stages_after,
)


def test_the_round_of_stage_1_is_read_while_it_is_written(tmp_path):
    path = tmp_path / "rounds.jsonl"
    assert round_of(path) == 0
    lines = [{"stage": "describe", "round": 1}, {"stage": "extractor", "round": 3}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert round_of(path) == 3
    path.write_text(path.read_text() + '{"stage": "ext')
    assert round_of(path) == 0  # half a line: the next look tells
    path.write_text(json.dumps({"stage": "experts", "round": 1}) + "\n")
    assert round_of(path) == float("inf")


def test_what_a_process_holds_is_counted():
    block = bytearray(50_000_000)
    block[::4096] = b"\1" * len(block[::4096])
    assert held_bytes(os.getpid()) > 50_000_000
    assert held_bytes(2**22 + 1) == 0  # no such process


def test_stages_are_those_of_whole_lines(tmp_path):
    path = tmp_path / "rounds.jsonl"
    assert stages_after(path, 0) == []
    path.write_text('{"stage": "a"}\n{"stage": "b"}\n{"stage": "c"')
    assert stages_after(path, 0) == ["a", "b"]
    assert stages_after(path, 1) == ["b"]
    assert stages_after(path, 2) == []


def test_the_tables_of_the_page_have_a_column_per_number_of_clients():
    runs = [
        Growth("networked", 10, {"answers": StageCost(10, 0.02, 30_000, 5 * 10**6)}, 3.2, 10**8),
        Growth("aligned", 1000, {"placed": StageCost(1000, 4.0, 10**6)}, 70.0, 10**9),
    ]
    lines = page_tables(runs).splitlines()
    assert lines[0].startswith("| stage | ms per answer: 10 | 1,000 | kB per answer: 10 | 1,000 |")
    assert lines[2] == "| `answers` | 2.0 |  | 3.0 |  | 5 |  |"
    assert lines[3] == "| `placed` |  | 4.0 |  | 1.0 |  |  |"
    assert lines[-1] == "| aligned | 1,000 | 70 | 1,000 | 0 | 0 | 1,000 | 0.00 |"
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_growth_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [
        Growth("networked", n, {"experts": StageCost(n, 0.1 * n, 100 * n)}, 1.0, 10**9)
        for n in (10, 100)
    ]
    draw(runs, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--clients", "100,10"], ["--clients", "1"], ["--share", "0"]])
def test_wrong_usage(words):
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code == 2
