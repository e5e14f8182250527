"""The stage head by sums: one exchange, and what a run makes of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message

from nmoe_flower import records
from nmoe_flower.client_app import app
from nmoe_flower.config import Config
from nmoe_flower.data import configured_images, configured_partition
from nmoe_flower.errors import ConfigError, RoundError
from nmoe_flower.models import DiscriminantGate
from nmoe_flower.pipeline import exchanges
from nmoe_flower.records import ARRAYS, SUMS, Action, SumsKey
from nmoe_flower.study.costs import cost_of
from nmoe_flower.study.measured import gates_of
from nmoe_flower.sums import Sums, ridge, standardisation

New = Callable[..., Any]
SETTINGS: dict[str, Any] = {
    "extractor.method": "fedsc",
    "extractor.rounds": 0,
    "head.method": "sums",
    "expert.hidden": "",
    "expert.label-smoothing": 0.05,
    "gate.methods": "lda,local,prototype",
    "gate.top-k": 2,
    "run.controls": "fedavg,ridge",
}


def part(pipeline: Any, prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): array
        for name, array in pipeline.weights.items()
        if name.startswith(prefix)
    }


def pooled(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """All clients' pixels, as the extractor ``linear`` gives them, and labels."""
    from nmoe_flower.data import normalise

    data = configured_images(config)
    rows = [client.train for client in configured_partition(config, data, num_clients=4)]
    mine = np.concatenate(rows)
    return normalise(data.train.images[mine]).flatten(1).numpy(), data.train.labels[mine]


def test_the_head_is_the_ridge_of_the_pooled_data_in_one_exchange(new_pipeline: New) -> None:
    pipeline = new_pipeline("sums", SETTINGS)
    results = pipeline()
    latents, labels = pooled(pipeline.config)
    sums = Sums.of(latents, labels, 10)
    standard = standardisation(sums)
    head = ridge(sums.under(standard), shrinkage=0.1, sharpness=6.0)
    told = part(pipeline, "classifier/")
    np.testing.assert_allclose(told["extractor.standard.mean"], standard.mean, atol=1e-6)
    np.testing.assert_allclose(told["extractor.standard.scale"], standard.weight, rtol=1e-6)
    np.testing.assert_allclose(told["head.layers.0.weight"], head.weight, atol=1e-6)
    np.testing.assert_allclose(told["head.layers.0.bias"], head.bias, atol=1e-6)
    stages = [line["stage"] for line in pipeline.lines]
    assert stages == ["describe", "initial", "sums", "experts", "answers", "evaluation"]
    counted = exchanges(pipeline.config)
    assert [stage for stage, count in counted.items() if count == 1] == ["identity", *stages]
    assert sum(counted.values()) == 7
    up = next(line["bytes_up"] for line in pipeline.lines if line["stage"] == "sums")
    told_bytes = 4 * (64 * 65 // 2 + 10 * 64) + 8 * (1 + 64 + 10)
    assert 4 * told_bytes <= up <= 4 * (told_bytes + 5 * 128)  # headers
    rows = {(row["gate"], row["test"]) for row in results["rows"]}
    assert {gate for gate, _ in rows} == set(gates_of(pipeline.config))
    assert ("control:ridge+prior", "iid") in rows
    assert not any(gate.startswith("control:fedavg") for gate, _ in rows)
    costs = [
        cost_of(results, pipeline.config, gate, None).exchanges
        for gate in ("control:ridge", "lda", "local")
    ]
    assert costs == [2, 3, 3]  # initial, sums; experts


def test_experts_start_from_the_ridge_head(new_pipeline: New) -> None:
    pipeline = new_pipeline("untuned", {**SETTINGS, "expert.epochs": 0, "gate.methods": "lda"})
    rows = {(row["gate"], row["test"]): row["accuracy"] for row in pipeline()["rows"]}
    for suffix in ("", "+prior"):
        assert rows[f"lda{suffix}", "iid"] == rows[f"control:ridge{suffix}", "iid"]


def test_the_gate_is_that_of_clients_means_and_the_covariance_within(new_pipeline: New) -> None:
    pipeline = new_pipeline("gate", {**SETTINGS, "data.scheme": "pathological"})
    pipeline()
    weights = part(pipeline, "gate/lda/")
    assert weights.keys() == set(DiscriminantGate.NAMES)
    gate = DiscriminantGate(64, 4, top_k=2)
    gate.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    assert part(pipeline, "discriminants/").keys() == weights.keys()
    standard = part(pipeline, "classifier/extractor.standard.")
    data = configured_images(pipeline.config)
    from nmoe_flower.data import normalise

    right = []
    for own, client in enumerate(configured_partition(pipeline.config, data, num_clients=4)):
        latents = normalise(data.train.images[client.train]).flatten(1)
        mean, scale = (torch.tensor(standard[name]) for name in ("mean", "scale"))
        routing = gate.route((latents - mean) * scale)
        assert routing.weights.sum(dim=1).numpy() == pytest.approx(np.ones(len(latents)))
        right.append(float((routing.expert_ids[:, 0] == own).float().mean()))
    assert np.mean(right) > 0.6  # two classes each, some of them shared; by chance 0.25


def test_components_reduce_what_experts_and_gates_see(new_pipeline: New) -> None:
    changes = {"head.components": 8, "gate.methods": "lda,federated"}
    pipeline = new_pipeline("components", SETTINGS | changes)
    results = pipeline()
    told = part(pipeline, "classifier/")
    assert told["extractor.standard.matrix"].shape == (8, 64)
    assert told["head.layers.0.weight"].shape == (10, 8)
    assert part(pipeline, "gate/lda/")["weight"].shape == (4, 8)
    assert part(pipeline, "gate/federated/")["head.weight"].shape == (4, 8)
    assert all(row["accuracy"] > 0.3 for row in results["rows"])


def test_the_gate_asks_for_sums_itself_where_the_head_did_not(new_pipeline: New) -> None:
    """FedCE leaves its own head, latents are as they come, and routing is the same."""
    plain = {"extractor.method": "fedce", "head.method": "fedavg", "expert.hidden": "16"}
    pipeline = new_pipeline("alone", SETTINGS | plain | {"extractor.rounds": 2})
    results = pipeline()
    stages = [line["stage"] for line in pipeline.lines]
    assert stages.count("sums") == 1
    assert stages.index("sums") > stages.index("answers")
    assert exchanges(pipeline.config)["gate/lda"] == 1
    with_head = new_pipeline("together", SETTINGS)
    told = with_head()
    assert exchanges(with_head.config)["gate/lda"] == 0
    np.testing.assert_allclose(  # one extractor, which is not trained
        results["routing"]["lda/iid"], told["routing"]["lda/iid"], atol=1e-6
    )


@pytest.mark.parametrize("start", ["zero", "ridge"])
def test_fedavg_begins_at_zero_or_at_the_ridge_on_standardised_latents(
    new_pipeline: New, start: str
) -> None:
    changes = {
        "head.method": "fedavg", "head.rounds": 3, "head.standardise": True, "head.start": start,
        "head.learning-rate": 1e-9, "head.weight-decay": 0.0, "gate.methods": "local",
    }  # fmt: skip
    pipeline = new_pipeline(f"from-{start}", SETTINGS | changes)
    results = pipeline()
    told = part(pipeline, "classifier/")
    begun = part(pipeline, "ridge/") if start == "ridge" else {}
    for name in ("layers.0.weight", "layers.0.bias"):
        wanted = begun.get(name, np.zeros_like(told[f"head.{name}"]))
        np.testing.assert_allclose(told[f"head.{name}"], wanted, atol=1e-6)
    rows = {row["gate"] for row in results["rows"]}
    assert rows == set(gates_of(pipeline.config))
    assert ("control:ridge" in rows) == (start == "ridge")
    sums = next(line for line in pipeline.lines if line["stage"] == "sums")
    assert (sums["bytes_up"] < 4 * 1500) == (start == "zero")  # moments alone
    latents, labels = pooled(pipeline.config)
    standard = standardisation(Sums.of(latents, labels, 10))
    np.testing.assert_allclose(told["extractor.standard.scale"], standard.weight, rtol=1e-5)


def test_fedavg_begins_at_the_ridge_on_components(new_pipeline: New) -> None:
    changes = {
        "head.method": "fedavg", "head.rounds": 2, "head.standardise": True, "head.start": "ridge",
        "head.components": 8, "gate.methods": "local", "run.controls": "fedavg",
    }  # fmt: skip
    pipeline = new_pipeline("components-ridge", SETTINGS | changes)
    results = pipeline()
    assert part(pipeline, "classifier/")["head.layers.0.weight"].shape == (10, 8)
    assert {row["gate"] for row in results["rows"]} >= {"local", "control:fedavg"}


def test_a_killed_run_goes_on_with_the_same_bits(new_pipeline: New, interrupted: Any) -> None:
    changes = {"gate.methods": "federated,lda", "gate.rounds": 2}
    whole, stopped = (new_pipeline(n, SETTINGS | changes) for n in ("whole", "stopped"))
    results = whole()
    with pytest.raises(interrupted):
        stopped(stop=lambda line: line["stage"] == "gate/federated" and line["round"] == 2)
    again = stopped()
    assert [line["stage"] for line in stopped.lines].count("sums") == 1
    assert again["rows"] == results["rows"]
    for name, array in whole.weights.items():
        np.testing.assert_array_equal(stopped.weights[name], array)


def test_every_clients_sums_are_kept_in_the_run_folder(
    new_pipeline: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmoe_flower.files import load_arrays
    from nmoe_flower.running import run

    config = new_pipeline("kept", SETTINGS).config
    result = run(config, workers=0, progress=None, figures=False)
    files = sorted(path.name for path in (result.path / "sums").iterdir())
    assert files == [f"{client}.safetensors" for client in range(4)]
    found = [Sums.read(load_arrays(result.path / "sums" / name)) for name in files]
    assert [sums.count for sums in found] == [60] * 4
    assert (result.path / "weights" / "gate-lda.safetensors").is_file()


def lying(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[..., Message]:
    """The client app, but client 2 tells other sums."""

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        mine = context.node_config["partition-id"] == 2
        if mine and message.metadata.message_type == Action.SUMS:
            told = dict(records.to_numpy(reply.content.array_records[SUMS]))
            change(told)
            reply.content[SUMS] = records.from_numpy(told)
        return reply

    return answer


def replace(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[..., None]:
    def change(told: dict[str, np.ndarray]) -> None:
        told[name] = value(told[name])

    return change


def halve(told: dict[str, np.ndarray]) -> None:
    """Sums that agree with each other and not with what the client said it holds."""
    told |= Sums.of(np.random.default_rng(0).normal(size=(30, 64)), np.arange(30) % 10, 10).packed()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (replace("scatter", lambda v: v[1:]), "the upper triangle for a mean of shape"),
        (replace("scatter", lambda v: -v), "not below 0"),
        (replace("scatter", lambda v: v + np.float32(np.inf)), "NaN or infinite"),
        (replace("count", lambda v: v * 2), "class-counts add up to 60"),
        (halve, "the sums are of 30 latents, and the client has 60 samples"),
    ],
)
def test_sums_that_cannot_be_are_refused_by_the_clients_name(
    new_pipeline: New, change: Any, text: str
) -> None:
    with pytest.raises(RoundError, match=f"sums: client 2: .*{text}"):
        new_pipeline("lying", SETTINGS)(client_app=lying(change))


def test_sums_of_other_latents_than_most_are_refused(new_pipeline: New) -> None:
    def narrower(told: dict[str, np.ndarray]) -> None:
        rng = np.random.default_rng(0)
        told |= Sums.of(rng.normal(size=(60, 63)), np.arange(60) % 10, 10).packed()

    with pytest.raises(RoundError, match="sums: client 2 differs from most"):
        new_pipeline("narrower", SETTINGS)(client_app=lying(narrower))


def test_moments_are_only_what_was_asked(new_pipeline: New) -> None:
    seen: list[tuple[bool, set[str]]] = []

    def watch(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == Action.SUMS:
            asked = bool(records.config_of(message).get(SumsKey.MOMENTS))
            seen.append((asked, set(reply.content.array_records[SUMS])))
            assert ARRAYS in message.content.array_records
        return reply

    changes = {"head.method": "fedavg", "head.rounds": 1, "head.standardise": True}
    new_pipeline("watch", SETTINGS | changes | {"gate.methods": "local"})(client_app=watch)
    assert seen == [(True, {"count", "mean", "squares"})] * 4


PRIVATE = {"privacy.enabled": True, "privacy.delta": 1e-3, "privacy.epsilon": 8.0}


def test_private_sums_leave_once_with_noise_and_are_accounted_for(
    new_pipeline: New, interrupted: Any
) -> None:
    pipeline = new_pipeline("private", SETTINGS | PRIVATE)
    results = pipeline()
    told = results["privacy"]
    assert told["releases"] == 1
    assert told["epsilon"] == pytest.approx(8.0, rel=1e-6)
    assert told["statement"].startswith("Sums: epsilon 8 at delta 0.001")
    assert "jointly" in told["statement"]
    assert "experts" in told["statement"].partition("Not covered")[2]
    exact = new_pipeline("exact", SETTINGS)
    exact()
    mean = "classifier/extractor.standard.mean"
    assert np.abs(pipeline.weights[mean] - exact.weights[mean]).max() > 1e-3
    assert len(part(pipeline, "gate/lda/")) > 0
    stopped = new_pipeline("paid", SETTINGS | PRIVATE)
    with pytest.raises(interrupted):
        stopped(stop=lambda line: line["stage"] == "sums")
    again = stopped()  # asks again; the same bits are sent, and paid for once
    assert again["rows"] == results["rows"]
    assert again["privacy"] == told
    ledger = json.loads((stopped.folder / "clients" / "0" / "privacy.json").read_text())
    assert [count for _, count in ledger["spent"]["0"]] == [1]
    (stopped.folder / "clients" / "0" / "privacy.json").unlink()
    shutil.rmtree(stopped.folder / "checkpoints")
    with pytest.raises(RoundError, match=r"client 0: .*holds sums that were sent and no ledger"):
        stopped()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"extractor.rounds": 2}, "pays for these alone, and extractor.method = fedsc trains"),
        ({"head.method": "fedavg"}, "does not cover the sums that gate.methods = lda asks for"),
        (
            {"head.method": "fedavg", "head.rounds": 1, "head.standardise": True},
            "does not cover the sums that head.standardise = true asks for",
        ),
    ],
)
def test_what_no_budget_covers_is_refused(
    new_pipeline: New, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        new_pipeline("refused", SETTINGS | PRIVATE | changes)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (replace("private", lambda v: v[:-1]), "a packed matrix has"),
        (replace("private", lambda v: v * 50), "trace"),
        (replace("count", lambda v: v * 2), "the sums are of 120 latents"),
        (lambda told: told.pop("private"), "'private' is missing"),
    ],
)
def test_private_sums_that_cannot_be_are_refused(new_pipeline: New, change: Any, text: str) -> None:
    with pytest.raises(RoundError, match=f"sums: client 2: .*{text}"):
        new_pipeline("lying", SETTINGS | PRIVATE)(client_app=lying(change))
