from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from nmoe_flower import client_app
from nmoe_flower.errors import CheckpointError, RoundError
from nmoe_flower.pipeline import Holding, holdings
from nmoe_flower.records import CONFIG, Action

New = Callable[..., Any]


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
