"""FedCE of adapters on a given backbone: what travels, what it equals, and what stands on it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower import records
from nmoe_flower.client_app import app
from nmoe_flower.clients.device import Device, device_of
from nmoe_flower.config import Config
from nmoe_flower.data import normalise
from nmoe_flower.errors import RoundError
from nmoe_flower.files import pack_arrays, write_bytes
from nmoe_flower.pipeline import exchanges
from nmoe_flower.records import CONFIG, Action, HoldingKey
from nmoe_flower.study.costs import cost_of
from nmoe_flower.study.measured import gates_of
from nmoe_flower.study.share import key_of
from nmoe_flower.sums import Sums, solve
from nmoe_flower.training import batch_indices, generator
from tests.given_backbone import Chained
from tests.pipeline.conftest import pipelines

New = Callable[..., Any]
CLIENTS, RATE, MOMENTUM, ROUNDS, DROPOUT = 4, 0.05, 0.9, 5, 0.25
SETTINGS: dict[str, Any] = {
    "extractor.method": "fedce",
    "extractor.backbone": "tests.given_backbone:Chained",
    "extractor.cut": "blocks.1:2, blocks.2:1",
    "extractor.adapter-rank": 3,
    "extractor.adapter-blocks": 1,
    "extractor.mirror": True,
    "extractor.head": "linear",
    "extractor.rounds": ROUNDS,
    "extractor.learning-rate": RATE,
    "extractor.schedule": "constant",
    "extractor.warmup": 0.0,
    "extractor.momentum": MOMENTUM,
    "extractor.weight-decay": 0.0,
    "extractor.dropout": DROPOUT,
    "data.crop-padding": 0,
    "data.flip": True,
    "head.standardise": True,
    "head.start": "ridge",
    "expert.hidden": "",
    "gate.methods": "local,lda",
    "run.controls": "fedavg,local-classifier",
    "run.evaluate-every": ROUNDS,
    "run.precision": "float32",
}
LAYERS = ("blocks/2/expand", "blocks/2/project")


@dataclass
class Trained:
    """One run of `SETTINGS`, and all that its wire carried."""

    pipeline: Any
    results: Mapping[str, Any]
    wire: "Wire"


class Wire:
    """The real app, which remembers all messages and replies with arrays, by action."""

    def __init__(self) -> None:
        self.down: dict[str, list[dict[str, np.ndarray]]] = {}
        self.up: dict[str, list[dict[str, np.ndarray]]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        reply = app(message, context)
        for heard, content in ((self.down, message.content), (self.up, reply.content)):
            for record in content.array_records.values():
                copied = {name: np.array(a) for name, a in records.to_numpy(record).items()}
                heard.setdefault(message.metadata.message_type, []).append(copied)
        return reply


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    pipeline = pipelines(cache, tmp_path_factory.mktemp("trained"))("trained", SETTINGS)
    wire = Wire()
    return Trained(pipeline, pipeline(client_app=wire), wire)


def device(config: Config, client: int) -> Device:
    node = {"partition-id": client, "num-partitions": CLIENTS}
    return device_of(Context(1, 1, node, RecordDict(), config.flat()))


def test_only_adapters_and_head_travel_and_the_rest_once(trained: Trained) -> None:
    pipeline, wire = trained.pipeline, trained.wire
    names = {f"extractor.adapters.{layer}.{side}" for layer in LAYERS for side in "AB"}
    names |= {"head.layers.0.weight", "head.layers.0.bias"}
    rounds = wire.down[Action.FEDCE] + wire.up[Action.FEDCE] + wire.down[Action.FEDCE_TEST]
    assert len(rounds) == CLIENTS * (2 * ROUNDS + 1)
    assert all(arrays.keys() == names for arrays in rounds)
    assert [sorted(arrays) for arrays in wire.down[Action.STANDARD]] == CLIENTS * [
        ["extractor.standard.mean", "extractor.standard.scale"]
    ]
    stages = [line["stage"] for line in pipeline.lines]
    counted = exchanges(pipeline.config)
    assert sum(counted.values()) == len(stages) + 1  # and identity, which no line is of
    assert counted["gate/lda"] == 1  # the first sums were of other latents
    paid = cost_of(trained.results, pipeline.config, "control:fedavg", None)
    assert paid.exchanges == len(("initial", "sums", "standard")) + ROUNDS
    rated = {row["gate"] for row in trained.results["rows"]}
    assert rated == set(gates_of(pipeline.config))
    assert "control:ridge" not in rated
    fixed = {"extractor.hash", "extractor.standard.mean", "extractor.standard.scale"}
    left = pipeline.run.artifacts
    assert left.classifier.keys() == names | fixed
    assert not left.ridge


def plainly_lower(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Maps under the third block, and the pooled ones of the second, as they are kept."""
    below = network.blocks[1](network.blocks[0](network.stem(images)))
    return below.half().float(), F.adaptive_avg_pool2d(below, 2).flatten(1).half().float()


def plainly(network: nn.Module, below: Tensor, pooled: Tensor, parts: Mapping[str, Tensor]) -> Any:
    """Latents of the third block with LoRA in branches beside its 1x1 convolutions."""

    def layer(name: str, maps: Tensor) -> Tensor:
        a, b = (parts[f"extractor.adapters.blocks/2/{name}.{side}"] for side in "AB")
        frozen = getattr(network.blocks[2], name)
        beside = F.conv2d(F.conv2d(maps, a[:, :, None, None]), b[:, :, None, None])
        return frozen(maps) + 2.0 * beside

    wide = torch.relu(network.blocks[2].depthwise(torch.relu(layer("expand", below))))
    maps = below + layer("project", wide)
    return torch.cat([pooled, maps.mean(dim=(2, 3))], dim=1)


def test_rounds_equal_a_plain_loop_over_whole_images(trained: Trained) -> None:
    wire, config = trained.wire, trained.pipeline.config
    network = Chained(in_channels=1, image_size=(8, 8)).eval().requires_grad_(False)
    standard = wire.down[Action.STANDARD][0]
    mean, scale = (torch.from_numpy(standard[f"extractor.standard.{n}"]) for n in ("mean", "scale"))
    parts = {
        name: torch.from_numpy(array.copy()).requires_grad_()
        for name, array in wire.down[Action.FEDCE][0].items()
    }
    server = torch.optim.SGD(parts.values(), lr=RATE, momentum=MOMENTUM, nesterov=True)
    clients = [device(config, client) for client in range(CLIENTS)]
    count = sum(len(client.train_labels) for client in clients)
    for step in range(ROUNDS):
        server.zero_grad()
        for client in clients:
            noise = generator(client.seed("augment", step))
            (chosen,) = batch_indices(
                len(client.train_labels), 16, first=step, count=1, seed=client.seed("batches")
            )
            images = normalise(client.train_images[chosen])
            turned = torch.rand(len(chosen), generator=noise) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(-1), images)
            latents = plainly(network, *plainly_lower(network, images), parts)
            kept = torch.rand(latents.shape, generator=noise) >= DROPOUT
            seen = (latents - mean) * scale * kept / (1 - DROPOUT)
            logits = F.linear(seen, parts["head.layers.0.weight"], parts["head.layers.0.bias"])
            labels = torch.from_numpy(client.train_labels[chosen])
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            (loss * len(client.train_labels) / count).backward()
        server.step()
    left = trained.pipeline.run.artifacts.classifier
    for name, value in parts.items():
        np.testing.assert_allclose(
            left[name], value.detach().numpy(), rtol=1e-3, atol=2e-5, err_msg=name
        )
    moved = wire.down[Action.FEDCE][0]
    assert all(np.abs(left[name] - moved[name]).max() > 1e-3 for name in parts)


def latents_of_all(config: Config, classifier: Mapping[str, np.ndarray]) -> Any:
    """Training latents of every client by plain passes, standardised; and labels."""
    network = Chained(in_channels=1, image_size=(8, 8)).eval()
    parts = {n: torch.from_numpy(np.array(a)) for n, a in classifier.items()}
    mean, scale = (parts[f"extractor.standard.{name}"] for name in ("mean", "scale"))
    found = []
    for client in range(CLIENTS):
        images = normalise(device(config, client).train_images)
        both = [
            plainly(network, *plainly_lower(network, seen), parts)
            for seen in (images, images.flip(-1))
        ]
        found.append(((sum(both) / 2 - mean) * scale).detach().numpy())
    return found, [device(config, client).train_labels for client in range(CLIENTS)]


def test_it_begins_at_the_ridge_head_of_the_frozen_latents(trained: Trained) -> None:
    wire = trained.wire
    first = wire.down[Action.FEDCE][0]
    assert all(not first[f"extractor.adapters.{layer}.B"].any() for layer in LAYERS)
    like = {**first, "extractor.standard.mean": np.zeros(40), "extractor.standard.scale": 1.0}
    like = {name: np.asarray(array, np.float32) for name, array in like.items()}
    raw, labels = latents_of_all(trained.pipeline.config, like)
    together, truth = np.concatenate(raw), np.concatenate(labels)
    standard = wire.down[Action.STANDARD][0]
    np.testing.assert_allclose(
        standard["extractor.standard.mean"], together.mean(axis=0), rtol=1e-4, atol=1e-5
    )
    sums = Sums.of(together, truth, 10)
    solved = solve([sums], components=0, shrinkage=0.1, sharpness=6.0)
    np.testing.assert_allclose(
        first["head.layers.0.weight"], solved.head.weight, rtol=1e-2, atol=1e-2
    )


def test_later_stages_stand_on_the_adapted_latents(trained: Trained) -> None:
    config, left = trained.pipeline.config, trained.pipeline.run.artifacts
    latents, labels = latents_of_all(config, left.classifier)
    for client in range(CLIENTS):
        kept = device(config, client).store.load("latents")["train"]
        np.testing.assert_allclose(kept, latents[client], rtol=1e-3, atol=1e-3)
    sums = [Sums.of(one, truth, 10) for one, truth in zip(latents, labels, strict=True)]
    solved = solve(sums, components=0, shrinkage=0.1, sharpness=6.0)
    wanted = solved.gate.before(solved.standard)
    scores, theirs = (
        np.concatenate(latents) @ gate["weight"].T + gate["bias"]
        for gate in (left.gates["lda"], {"weight": wanted.weight, "bias": wanted.bias})
    )
    np.testing.assert_allclose(scores, theirs, rtol=1e-2, atol=2e-2)


def test_a_resumed_run_has_the_same_bits(
    trained: Trained, new_pipeline: New, interrupted: Any
) -> None:
    pipeline, whole = new_pipeline("broken", SETTINGS), trained.pipeline.weights
    for broken in (("standard", 1), ("extractor", 3)):

        def stop(line: Mapping[str, Any], broken: tuple[str, int] = broken) -> bool:
            return (line["stage"], line["round"]) == broken

        with pytest.raises(interrupted):
            pipeline(stop=stop)
    assert pipeline()["rows"] == trained.results["rows"]
    assert pipeline.weights.keys() == whole.keys()
    for name, value in whole.items():
        assert np.array_equal(pipeline.weights[name], value), name


def test_a_device_with_another_backbone_is_named(new_pipeline: New) -> None:
    def told(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == Action.DESCRIBE and context.node_config["partition-id"]:
            reply.content.config_records[CONFIG][HoldingKey.EXTRACTOR] = "ab" * 32
        return reply

    with pytest.raises(RoundError, match=r"given extractors of the clients differ: client 0 has"):
        new_pipeline("odd", SETTINGS)(client_app=told)


def test_a_finished_run_can_be_started_from(
    trained: Trained, new_pipeline: New, tmp_path: Path
) -> None:
    for part, arrays in trained.pipeline.run.artifacts.weights().items():
        path = tmp_path / "finished" / "weights" / f"{part}.safetensors"
        write_bytes(path, pack_arrays(arrays))
    wire = Wire()
    second = new_pipeline("second", SETTINGS | {"extractor.start": str(tmp_path / "finished")})
    assert second(client_app=wire)["rows"] == trained.results["rows"]
    assert not {Action.FEDCE, Action.STANDARD} & wire.down.keys()
    lines = [line["stage"] for line in second.lines]
    assert sum(exchanges(second.config).values()) == len(lines) + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"head.standardise": False, "head.start": "zero", "extractor.server-optimizer": "adamw"},
        {"head.start": "fresh", "extractor.momentum-at": "averaged", "extractor.ema": 0.9},
        {"head.components": 7, "gate.methods": "lda,federated", "expert.init": "fine-tune"},
        {
            "head.standardise": False,
            "head.start": "fresh",
            "head.method": "sums",
            "run.controls": "ridge,centralized,pooled-head",
        },
        {
            "head.standardise": False,
            "head.start": "fresh",
            "extractor.reading": "private-heads",
            "gate.methods": "local",
        },
    ],
    ids=["adamw", "averaged", "components", "sums-after", "private-heads"],
)
def test_adapters_go_with_all_else_of_stage_1(new_pipeline: New, changes: dict[str, Any]) -> None:
    pipeline = new_pipeline("other", SETTINGS | {"extractor.rounds": 2} | changes)
    results = pipeline()
    assert {row["gate"] for row in results["rows"]} == set(gates_of(pipeline.config))
    assert sum(exchanges(pipeline.config).values()) == len(pipeline.lines) + 1
    left = pipeline.run.artifacts.classifier
    assert all(left[f"extractor.adapters.{layer}.B"].any() for layer in LAYERS)


def test_stage_1_of_two_starts_is_not_shared() -> None:
    one, two, three = (
        Config.parse(SETTINGS | changes)
        for changes in ({}, {"head.start": "zero"}, {"head.start": "ridge", "gate.rounds": 9})
    )
    assert key_of(one) != key_of(two)
    assert key_of(one) == key_of(three)
