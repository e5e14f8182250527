"""A run on a given extractor: no stage 1, a hash in its place, and the paths of any other run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from nmoe_flower.client_app import app
from nmoe_flower.errors import CheckpointError, RoundError
from nmoe_flower.pipeline import exchanges
from nmoe_flower.records import CONFIG, Action, HoldingKey

New = Callable[..., Any]
TRAINED = ("fedavg", "local-classifier", "centralized", "pooled-head")
GIVEN = {
    "extractor.method": "pretrained",
    "extractor.backbone": "tests.given_backbone:Tiny",
    "extractor.cut": "low:2, high:1",
    "expert.init": "scratch",
}
PLAIN = GIVEN | {"gate.methods": "local,prototype", "run.controls": "fedavg"}


def other_weights(partition: int) -> Callable[[Message, Context], Message]:
    """The real app, but one client tells the hash of other weights."""

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if (
            message.metadata.message_type == Action.DESCRIBE
            and context.node_config["partition-id"] == partition
        ):
            reply.content.config_records[CONFIG][HoldingKey.EXTRACTOR] = "ab" * 32
        return reply

    return answer


def test_nothing_is_trained_and_only_a_hash_is_left(new_pipeline: New) -> None:
    pipeline = new_pipeline("given", PLAIN)
    results = pipeline()
    assert {row["extractor"] for row in results["rows"]} == {"pretrained"}
    stages = [line["stage"] for line in pipeline.lines]
    assert stages == ["describe", "experts", "answers", "evaluation"]
    counted = exchanges(pipeline.config)
    assert sum(counted.values()) == len(stages) + 1  # and identity, which no line is of
    extractor = pipeline.run.artifacts.weights()["extractor"]
    assert {name: (value.shape, value.dtype.name) for name, value in extractor.items()} == {
        "hash": ((32,), "uint8")
    }
    down = sum(line["bytes_down"] for line in pipeline.lines if line["stage"] == "experts")
    assert down < 4 * 256


def test_trained_gates_and_controls_stand_on_the_same_latents(new_pipeline: New) -> None:
    pipeline = new_pipeline(
        "gates",
        GIVEN
        | {
            "gate.methods": "federated,oracle",
            "run.controls": ",".join(TRAINED),
            "head.rounds": 2,
            "expert.init": "fine-tune",
        },
    )
    results = pipeline()
    gates = {row["gate"] for row in results["rows"]}
    assert gates >= {"federated", *(f"control:{name}" for name in TRAINED)}
    assert sum(line["stage"] == "initial" for line in pipeline.lines) == 1
    assert exchanges(pipeline.config)["initial"] == 1
    assert pipeline.weights["classifier/extractor.hash"].shape == (32,)


def test_a_device_with_other_weights_is_named(new_pipeline: New) -> None:
    pipeline = new_pipeline("odd", PLAIN)
    with pytest.raises(
        RoundError, match=r"given extractors of the clients differ: client 2 has abab"
    ):
        pipeline(client_app=other_weights(2))


def test_a_resumed_run_refuses_other_weights(new_pipeline: New, interrupted: Any) -> None:
    pipeline = new_pipeline("resumed", PLAIN)
    with pytest.raises(interrupted):
        pipeline(stop=lambda line: line["stage"] == "experts")
    with pytest.raises(CheckpointError, match="client 1 has another given extractor than when"):
        pipeline(client_app=other_weights(1))
    whole = new_pipeline("whole", PLAIN)()
    assert pipeline()["rows"] == whole["rows"]


def test_a_client_refuses_the_latents_of_another_extractor(new_pipeline: New) -> None:
    pipeline = new_pipeline("server", PLAIN)

    def told(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == Action.DESCRIBE:
            reply.content.config_records[CONFIG][HoldingKey.EXTRACTOR] = "ab" * 32
        return reply

    with pytest.raises(RoundError, match=r"has the hash .*, and abababababababab is wanted"):
        pipeline(client_app=told)


def test_clients_share_rows_of_the_data_cache(new_pipeline: New, cache: Path) -> None:
    new_pipeline("first", PLAIN)()
    rows = {path: path.read_bytes() for path in (cache / "latents").glob("*/*.rows")}
    new_pipeline("second", PLAIN | {"expert.epochs": 1})()
    assert rows
    assert {path: path.read_bytes() for path in rows} == rows
    assert all(np.frombuffer(data, np.uint8).any() for data in rows.values())
