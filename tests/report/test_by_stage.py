"""Rounds in a line per stage, and back."""

import json
from pathlib import Path

import pytest

from nmoe_flower.errors import NMoEError
from nmoe_flower.report.by_stage import rounds_by_stage
from nmoe_flower.report.shape import read_rounds


def test_what_all_rounds_share_is_said_once_and_a_test_follows_its_round(tmp_path: Path) -> None:
    records = [
        {"stage": "extractor", "round": 1, "metrics": {"loss": 2.0}, "bytes_up": 8},
        {"stage": "extractor-test", "round": 1, "metrics": {"accuracy": 0.5}},
        {"stage": "extractor", "round": 2, "metrics": {"loss": 1.0, "rank": 3}, "bytes_up": 8},
        {"stage": "extractor-test", "round": 2, "metrics": {"accuracy": 0.5}},
        {"stage": "head", "round": 1, "metrics": {"loss": 1.0}, "bytes_up": 4},
    ]
    lines = rounds_by_stage(records)
    assert lines[:2] == [
        {"stage": "extractor", "round": [1, 2], "metrics": {"loss": [2.0, 1.0], "rank": [None, 3]},
         "bytes_up": {"every-round": 8}},
        {"stage": "extractor-test", "round": [1, 2], "metrics": {"accuracy": {"every-round": 0.5}}},
    ]  # fmt: skip
    path = tmp_path / "rounds.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_rounds(path) == records


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"stage": "head", "round": [1, 2], "bytes_up": [8]}', "is not told of each round"),
        ('{"stage": "head", "round": [1, 2], "metrics": 3}', "is not told of each round"),
        ('{"round": [1, 2]}', "line 1: stage is missing"),
        ('{"stage": "head", "round": ["x"]}', "line 1: round = 'x'"),
    ],
)
def test_a_line_that_does_not_tell_of_each_round_is_named(
    line: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "rounds.jsonl").write_text(line + "\n")
    with pytest.raises(NMoEError, match=said):
        read_rounds(tmp_path / "rounds.jsonl")
