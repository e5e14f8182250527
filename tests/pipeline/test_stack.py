"""Whole runs with clients that train together: the same weights, answers, bytes and checkpoints."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from nmoe_flower.training import stack

pytestmark = pytest.mark.flower
New = Callable[..., Any]
HEAD: dict[str, Any] = {
    "extractor.method": "fedsc",
    "contrast.dim": 8,
    "contrast.hidden": 8,
    "contrast.probe": "none",
    "head.rounds": 2,
}
FEW: dict[str, Any] = {"extractor.rounds": 1, "gate.methods": "federated,local", "run.controls": ""}


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clients each stack had."""
    seen: list[int] = []
    train = stack._Stack.train

    def counted(self: stack._Stack) -> list[stack.Stacked]:
        seen.append(len(self._tasks))
        return train(self)

    monkeypatch.setattr(stack._Stack, "train", counted)
    return seen


def told(lines: list[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    keys = ("stage", "round", "bytes_up", "bytes_down", "messages", "failures")
    return [tuple(line.get(key) for key in keys) for line in lines]


def assert_same(alone: Any, together: Any) -> None:
    """Steps are equal to 1e-6 (tests/test_stack.py); a server's AdamW makes more of roundings.

    It divides by the size of a change, so that what is left of a small one counts like a large one:
    from processor to processor 4e-5 of a step of 1e-3 or more.
    """
    assert told(alone.lines) == told(together.lines)
    assert alone.weights.keys() == together.weights.keys()
    for name, wanted in alone.weights.items():
        np.testing.assert_allclose(
            together.weights[name], wanted, rtol=1e-5, atol=1e-4, err_msg=name
        )


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        (
            {"gate.folds": 2, "gate.objective": "switch"},
            [3] * 7,
        ),  # stage 1, experts, 2 copies, 3 rounds
        ({**HEAD, "gate.hidden": 5}, [3] * 6),
        ({"gate.form": "metric", "gate.normalise-gradient": True}, [3] * 5),
        ({"gate.shortlist": 3, "expert.hidden": "", "gate.objective": "distill"}, [3] * 5),
    ],
    ids=str,
)
def test_a_whole_run_is_the_same(
    changes: dict[str, Any], sizes: list[int], new_pipeline: New, stacks: list[int]
) -> None:
    alone = new_pipeline("alone", {**FEW, **changes})
    wanted = alone()
    assert stacks == []
    together = new_pipeline("together", {**FEW, **changes, "engine.stack": 3})
    found = together()
    assert stacks == sizes
    assert_same(alone, together)
    for row, other in zip(wanted["rows"], found["rows"], strict=True):
        assert other["accuracy"] == pytest.approx(row["accuracy"], abs=0.02)


def test_a_run_that_stopped_goes_on_to_the_same_bits(
    new_pipeline: New, interrupted: type[Exception]
) -> None:
    whole = new_pipeline("whole", {**FEW, "engine.stack": 4})
    whole()
    stopped = new_pipeline("stopped", {**FEW, "engine.stack": 4, "run.checkpoint-every": 1})
    with pytest.raises(interrupted):
        stopped(stop=lambda line: line["stage"] == "gate/federated" and line["round"] == 2)
    stopped()
    for name, wanted in whole.weights.items():
        np.testing.assert_array_equal(stopped.weights[name], wanted, err_msg=name)


def test_what_cannot_be_stacked_is_said_once_and_trained_alone(
    new_pipeline: New, stacks: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    stack._tell.cache_clear()
    noisy = {**FEW, "gate.methods": "federated", "gate.noisy": True, "expert.hidden": ""}
    alone = new_pipeline("alone", noisy)
    alone()
    together = new_pipeline("together", {**noisy, "engine.stack": 4})
    with caplog.at_level(logging.WARNING, "nmoe_flower.training.stack"):
        together()
    assert stacks == [4, 4]  # stage 1, the experts
    assert_same(alone, together)
    assert caplog.messages == [
        "engine.stack: Gate is trained alone: its loss is a function of its own",
    ]
