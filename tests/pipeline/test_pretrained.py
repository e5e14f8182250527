"""A run on a given extractor: no stage 1, a hash in its place, and the paths of any other run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from nmoe_flower.client_app import app
from nmoe_flower.clients.device import device_of
from nmoe_flower.config import Config
from nmoe_flower.errors import BundleError, CheckpointError, RoundError
from nmoe_flower.inference.bundle import Bundle
from nmoe_flower.models import Expert, configured_extractor, configured_gate
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


def test_a_device_may_keep_the_weights_at_a_place_of_its_own(tmp_path: Path) -> None:
    config = Config.parse(PLAIN | {"run.out": str(tmp_path)})
    network = configured_extractor(config, (1, 8, 8)).backbone._network
    path = tmp_path / "here.pth"
    torch.save({name: value + 1 for name, value in network.state_dict().items()}, path)
    node = {"partition-id": 0, "num-partitions": 3}
    plain, told = (
        device_of(Context(1, 1, values, RecordDict(), config.flat()))
        for values in (node, node | {"extractor-weights": str(path)})
    )
    assert not torch.equal(plain.extractor().hash, told.extractor().hash)


def test_a_bundle_serves_a_given_extractor_and_refuses_another(tmp_path: Path) -> None:
    config = Config.parse(PLAIN | {"data.num-clients": 3})
    extractor = configured_extractor(config, (1, 8, 8))
    width = extractor.latent_dim
    states = {
        "extractor": extractor.state_dict(),
        "gate": configured_gate(config, width, num_experts=3).state_dict(),
        "expert": Expert(width, 10, hidden=config.expert.hidden).state_dict(),
    }
    arrays = {part: {n: t.numpy() for n, t in state.items()} for part, state in states.items()}
    about: dict[str, Any] = {"partition": 1, "classes": list("0123456789"), "config": config}
    about["image_shape"] = (1, 8, 8)
    bundle = Bundle.write(tmp_path / "good", **about, **arrays)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(bundle.extractor()(images), extractor(images))
    assert (tmp_path / "good" / "extractor.safetensors").stat().st_size < 300
    arrays["extractor"] = {"hash": np.zeros(32, np.uint8)}
    with pytest.raises(BundleError, match=r"has the hash .*, and 0000000000000000 is wanted"):
        Bundle.write(tmp_path / "odd", **about, **arrays)
