"""What a record says of a query."""

import json

import numpy as np

from nmoe_flower.inference.ask.record import CallRecord, Sent

IDS = np.array([[1, 2], [2, 0], [3, 1], [1, 3]])
# Row 0: both answered. Row 1: expert 2 silent. Row 2: the next best, 2. Row 3: the local one, 0.
BY = np.array([[1, 2], [-1, 0], [2, -1], [0, -1]])
RECORD = CallRecord(
    own=0,
    expert_ids=IDS,
    answered_by=BY,
    ms=12.34567,
    deadline_ms=500.0,
    sent=(
        Sent("fox", 1, "chosen", 3, "answered", 3.21, 100, 50),
        Sent("owl", 2, "chosen", 2, "garbage", 4.5, 80, 7),
        Sent("owl", 2, "hedge", 1, "unfinished", 4.5, 40),
        Sent("", 3, "chosen", 2, "unknown"),
    ),
    moved=1,
)


def test_rows_that_fell_back_and_slots_that_stay_silent_are_told_apart() -> None:
    assert RECORD.fell_back.tolist() == [2, 3]
    assert RECORD.silent == 1


def test_the_line_is_json_with_everything_counted() -> None:
    value = json.loads(RECORD.line())
    sent = value.pop("sent")
    assert value == {
        "own": 0,
        "rows": 4,
        "ms": 12.346,
        "deadline_ms": 500.0,
        "chosen": {"0": 1, "1": 3, "2": 2, "3": 2},
        "answered": {"0": 2, "1": 1, "2": 2},
        "next_best": 1,
        "local": 1,
        "silent": 1,
        "moved": 1,
        "bytes_up": 220,
        "bytes_down": 57,
    }
    assert sent[0] == {
        "peer": "fox",
        "expert": 1,
        "why": "chosen",
        "rows": 3,
        "outcome": "answered",
        "ms": 3.21,
        "bytes_up": 100,
        "bytes_down": 50,
    }
    assert "\n" not in RECORD.line()
