"""Stages that need every client: what cannot be read is asked for again, then named.

What every client holds is asked first, and compared before anything is trained.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from nmoe_flower import client_app, records
from nmoe_flower.errors import CheckpointError, RoundError
from nmoe_flower.pipeline import Holding, holdings
from nmoe_flower.pipeline.ask import alike
from nmoe_flower.records import CONFIG, METRICS, PROTOTYPE, Action

New = Callable[..., Any]
Change = Callable[[RecordDict], None]


class Spoiling(ClientApp):
    """The real app, but client 2 spoils its answers to one action, so many times."""

    def __init__(self, action: str, change: Change, times: int) -> None:
        super().__init__()
        self.action, self.change, self.left = action, change, times

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        meant = message.metadata.message_type == self.action
        if meant and context.node_config["partition-id"] == 2 and self.left:
            self.left -= 1
            self.change(reply.content)
        return reply


def without_counts(content: RecordDict) -> None:
    del content.metric_records[METRICS]["train-counts"]


def counts_in_words(content: RecordDict) -> None:
    content.metric_records[METRICS]["train-counts"] = 5


def huge_examples(content: RecordDict) -> None:
    content.metric_records[METRICS]["num-examples"] = 10**400


def unnamed_prototype(content: RecordDict) -> None:
    content[PROTOTYPE] = records.from_numpy({"average": np.zeros(8, np.float32)})


def wide_prototype(content: RecordDict) -> None:
    content[PROTOTYPE] = records.from_numpy({"mean": np.zeros(3, np.float32)})


def precise_prototype(content: RecordDict) -> None:
    mean = records.to_numpy(content[PROTOTYPE])["mean"]
    content[PROTOTYPE] = records.from_numpy({"mean": mean.astype(np.float64)})


def other_gates(content: RecordDict) -> None:
    metrics = content.metric_records[METRICS]
    for name in [name for name in metrics if name.startswith("local/")]:
        del metrics[name]


@pytest.mark.parametrize(
    ("action", "change", "text"),
    [
        (
            Action.DESCRIBE,
            without_counts,
            "describe: client 2: it cannot be read: KeyError: 'train-counts'",
        ),
        (Action.DESCRIBE, counts_in_words, "describe: client 2: it cannot be read: TypeError"),
        (Action.DESCRIBE, huge_examples, "client 2: 'num-examples' is missing or not a number"),
        (
            Action.EXPERT,
            unnamed_prototype,
            "client 2: it cannot be read: the ArrayRecord 'prototype' has no array 'mean'",
        ),
        (
            Action.EXPERT,
            wide_prototype,
            r"prototypes: client 2 differs from most: mean: shape \(3,\), wanted",
        ),
        (Action.ROUTE, other_gates, "evaluation: client 2 differs from most in local/"),
    ],
    ids=["missing", "no list", "no float", "unnamed", "wide", "other gates"],
)
def test_what_cannot_be_read_is_named(
    new_pipeline: New, action: str, change: Change, text: str
) -> None:
    with pytest.raises(RoundError, match=text):
        new_pipeline("spoiled")(client_app=Spoiling(action, change, times=2))


def test_an_error_tells_what_many_clients_share_once(new_pipeline: New) -> None:
    """Not a thousand times the same."""

    class SpoilingAll(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = client_app.app(message, context)
            if message.metadata.message_type == Action.DESCRIBE:
                without_counts(reply.content)
            return reply

    with pytest.raises(
        RoundError, match=r"^describe: clients 0, 1, 2, 3: it cannot be read: \S+ \S+$"
    ):
        new_pipeline("many")(client_app=SpoilingAll())


def test_it_is_asked_for_once_more(new_pipeline: New, interrupted: type) -> None:
    pipeline = new_pipeline("again")
    with pytest.raises(interrupted):
        pipeline(
            client_app=Spoiling(Action.DESCRIBE, without_counts, times=1),
            stop=lambda line: line["stage"] == "describe",
        )
    (line,) = pipeline.lines
    assert line["clients"] == [0, 1, 2, 3]
    assert [failure["partition"] for failure in line["failures"]] == [2]


def test_one_clients_precision_is_not_everybodys(new_pipeline: New, interrupted: type) -> None:
    pipeline = new_pipeline("precise")
    with pytest.raises(interrupted):
        pipeline(
            client_app=Spoiling(Action.EXPERT, precise_prototype, times=2),
            stop=lambda line: line["stage"] == "answers",
        )
    assert pipeline.weights["prototypes"].dtype == np.float32


# --- alike ---


def part(shape: tuple[int, ...] = (2, 3), dtype: Any = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.ones(shape, dtype), "n": np.array(1)}


def test_order_and_dtype_are_those_of_most_clients() -> None:
    odd = dict(reversed(part(dtype=np.float64).items()))
    found = alike("stage", {0: odd, 1: part(), 2: part()})
    assert [arrays["x"].dtype for arrays in found.values()] == [np.float32] * 3
    assert len({tuple(arrays) for arrays in found.values()}) == 1


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        (part((3, 2)), r"x: shape \(3, 2\), wanted \(2, 3\)"),
        ({"x": part()["x"]}, r"array names differ: missing \['n'\]"),
        (
            {**part(), "x": np.full((2, 3), 1e300)},
            "x: float64 values up to 1e\\+300 exceed float32",
        ),
    ],
    ids=["shape", "names", "too large"],
)
def test_whoever_differs_from_most_is_named(odd: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(RoundError, match=f"stage: client 0 differs from most: {text}"):
        alike("stage", {0: odd, 1: part(), 2: part()})


def test_rows_may_differ_but_not_what_they_are() -> None:
    parts = {client: {"x": np.ones((client, 3), np.float32)} for client in range(3)}
    found = alike("stage", parts, rows=True)
    assert [len(arrays["x"]) for arrays in found.values()] == [0, 1, 2]
    parts[1] = {"x": np.ones((1, 4), np.float32)}
    with pytest.raises(RoundError, match=r"client 1 differs from most: x: shape \(1, 4\), wanted"):
        alike("stage", parts, rows=True)
    parts[1] = {"x": np.array(1.0)}
    with pytest.raises(RoundError, match=r"client 1 differs from most: x: shape \(\), wanted"):
        alike("stage", parts, rows=True)


# --- what every client holds ---


class OtherClasses(ClientApp):
    """The real app, but some clients name their classes as they like."""

    def __init__(self, classes: dict[int, list[str]]) -> None:
        super().__init__()
        self.classes = classes

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        partition = int(str(context.node_config["partition-id"]))
        if message.metadata.message_type == Action.DESCRIBE and partition in self.classes:
            reply.content.config_records[CONFIG]["classes"] = self.classes[partition]
        return reply


def described(pipeline: Any) -> int:
    return sum(line["stage"] == "describe" for line in pipeline.lines)


def test_clients_are_asked_once_before_they_train(new_pipeline: New) -> None:
    pipeline = new_pipeline("once")
    pipeline()
    assert described(pipeline) == 1
    assert pipeline.lines[0]["stage"] == "describe"
    found = holdings(pipeline.run)  # its grid is closed: nobody can be asked any more
    assert list(found) == [0, 1, 2, 3]
    assert found[2].train[2] == 46  # 60 / (1 + 0.3)
    assert found[2].examples == sum(found[2].train) == 60
    assert found[0].classes == [str(digit) for digit in range(10)]


def test_a_resumed_run_remembers_the_answers(new_pipeline: New, interrupted: type) -> None:
    pipeline = new_pipeline("resumed")
    with pytest.raises(interrupted):
        pipeline(stop=lambda line: line["stage"] == "gate/federated")
    before = holdings(pipeline.run)
    results = pipeline()
    assert described(pipeline) == 1
    after = holdings(pipeline.run)
    assert after == before
    assert all(isinstance(holding, Holding) for holding in after.values())
    assert results["partition"]["train"] == [holding.train for holding in before.values()]


def test_clients_whose_classes_differ_are_refused_by_name(new_pipeline: New) -> None:
    """Before the first round: labels would mean something else on every client."""
    pipeline, digits = new_pipeline("differ"), [str(digit) for digit in range(10)]
    swapped = ["1", "0", *digits[2:]]
    with pytest.raises(RoundError) as refusal:
        pipeline(client_app=OtherClasses({0: swapped, 3: ["cat", "dog"]}))
    said = str(refusal.value)
    assert f"client 0 has {swapped}; client 3 has ['cat', 'dog']" in said
    assert f"but client 1 has {digits}" in said
    assert [line["stage"] for line in pipeline.lines] == ["describe"]


class OtherData(ClientApp):
    """The real app, but client 2 lost four images of class 5 when it came back."""

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        mine = int(str(context.node_config["partition-id"])) == 2
        if message.metadata.message_type == Action.DESCRIBE and mine:
            reply.content.config_records[CONFIG]["fingerprint"] = "another"
            metrics = reply.content.metric_records["metrics"]
            counts = list(metrics["train-counts"])
            counts[2] -= 4
            metrics["train-counts"] = counts
        return reply


def test_a_client_whose_data_changed_is_refused_by_name(
    new_pipeline: New, interrupted: type
) -> None:
    pipeline = new_pipeline("changed")
    with pytest.raises(interrupted):
        pipeline(stop=lambda line: line["stage"] == "gate/federated")
    with pytest.raises(CheckpointError) as refusal:
        pipeline(client_app=OtherData())
    assert str(refusal.value) == (
        "client 2 holds other data than when the run began: train had 60 samples and has 56 "
        "(class '2': 46 then, 42 now); put back what it was, or begin a new run"
    )
    assert pipeline()["rows"]  # with what it was, it goes on
