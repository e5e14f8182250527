"""Stage 3: the gates that have weights to train."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.catalogue import GATES, found
from nmoe_flower.config import Config
from nmoe_flower.pipeline.ask import alike, gather, message
from nmoe_flower.pipeline.networked.shortlist import means_for, shortlists_of
from nmoe_flower.pipeline.rounds import federate
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import (
    ARRAYS,
    LEARNING_RATE,
    POOLED,
    SERVER_ROUND,
    Action,
    MetricKey,
)
from nmoe_flower.schedules import schedule
from nmoe_flower.strategies import AdamW, FedGate, RollGate, StreamingFedAvg

__all__ = ["GateTrainer", "federate_gate", "first_projection", "train_gates", "trainer_of"]


@dataclass(frozen=True)
class GateTrainer:
    """How the server comes to the weights of one gate.

    Attributes:
        train: Returns the weights of a network that `nmoe_flower.models.trained_gate` builds.
        exchanges: How often that asks the clients.
        initial: It begins at the fresh weights that a client hands out.
    """

    train: Callable[[Run], ArrayRecord]
    exchanges: Callable[[Config], int]
    initial: bool = True


def train_gates(run: Run) -> None:
    """Stage 3: every configured gate that has weights to train.

    A projection that comes from another run is given the embeddings of the experts of this one.
    """
    for method in run.config.gate.methods:
        trainer = trainer_of(method)
        if trainer is not None and method not in run.artifacts.gates:
            run.artifacts.gates[method] = records.to_numpy(trainer.train(run))
            run.save(f"gate/{method}/done")
        elif set(run.artifacts.gates.get(method, {})) == {MetricKey.PROJECTION}:
            run.artifacts.gates[method] = _finished(run, run.artifacts.gates[method])


def trainer_of(method: str) -> GateTrainer | None:
    """Who trains a gate; None if it has no weights, or is somebody's own."""
    reference = GATES[method].trainer if method in GATES else ""
    return cast(GateTrainer, found(reference)) if reference else None


def _federated_gate(run: Run) -> ArrayRecord:
    trained = federate_gate(run, Action.GATE, _start(run))
    return records.from_numpy(_finished(run, records.to_numpy(trained)))


def _start(run: Run) -> dict[str, np.ndarray]:
    """Where FedGate and its upper bound begin."""
    means = run.artifacts.normal_means
    if means is not None and run.config.has_embeddings:
        return first_projection(means, run.config.gate.embedding)
    return {**run.artifacts.initial_gate, **_prototypes(run)}


def _finished(run: Run, trained: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A trained gate as devices use it: with the embeddings of all experts, if it goes by them."""
    means = run.artifacts.normal_means
    if means is None or not run.config.has_embeddings:
        return trained
    projection = trained[MetricKey.PROJECTION]
    embeddings = (means @ projection.T).astype(projection.dtype)
    return {MetricKey.PROJECTION: projection, MetricKey.EMBEDDINGS: embeddings}


def first_projection(means: np.ndarray, dim: int) -> dict[str, np.ndarray]:
    """To the principal axes of the clients' means, in units of the variance between them.

    With as many axes as the means span, distances are those of a `PrototypeGate` of these means.

    Args:
        means: The means of the clients' normalised latents, [E, D].
        dim: How many axes, at most D of them.
    """
    wide = means.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1].T[::-1]  # of most variance first
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    scaled = (signs[:, None] * axes)[:dim] / np.sqrt(_between(wide))
    return {MetricKey.PROJECTION: scaled.astype(np.float32)}


def _between(means: np.ndarray) -> float:
    """The mean variance between clients; 1 if they are all alike."""
    return float(means.var(axis=0).mean()) or 1.0


def federate_gate(run: Run, action: Action, initial: Mapping[str, np.ndarray]) -> ArrayRecord:
    """FedGate from fresh weights.

    Args:
        run: The run in progress.
        action: What a client is asked to do in a round.
        initial: The fresh weights.
    """
    gate = run.config.gate
    adamw = gate.optimizer == "adamw"
    strategy = FedGate(
        action=action,
        shortlists=shortlists_of(run),
        fraction_train=gate.fraction_train,
        min_train_nodes=1,
        server_optimizer=AdamW() if adamw else None,
        learning_rate=schedule("cosine", peak=gate.learning_rate, steps=gate.rounds),
        local_learning_rate=1.0 if adamw else None,
    )
    arrays = records.from_numpy(initial)
    return federate(run, "gate/federated", strategy, arrays, rounds=gate.rounds)


def _prototypes(run: Run) -> dict[str, np.ndarray]:
    """A linear gate that knows clients by their means, as `PrototypeGate` does; empty: none."""
    means = run.artifacts.normal_means
    if means is None or not run.config.starts_at_prototypes:
        return {}
    weight = (means / _between(means)).astype(np.float32)
    bias = (-0.5 * (means * weight).sum(axis=1)).astype(np.float32)
    return {"head.weight": weight, "head.bias": bias}


def _rolling_gate(run: Run) -> ArrayRecord:
    gate = run.config.gate
    strategy: StreamingFedAvg
    if gate.rolling == "cyclic":
        strategy = RollGate(action=Action.ROLLING, shortlists=shortlists_of(run))
    else:
        strategy = FedGate(
            action=Action.ROLLING,
            shortlists=shortlists_of(run),
            fraction_train=gate.fraction_train,
        )
    rounds = _rolling_rounds(run.config)
    return federate(
        run,
        "gate/rolling",
        strategy,
        records.from_numpy(run.artifacts.initial_gate),
        rounds=rounds,
        settings=_gate_rate(run.config, rounds),
    )


def _rolling_rounds(config: Config) -> int:
    gate = config.gate
    return gate.cycles * config.data.num_clients if gate.rolling == "cyclic" else gate.rounds


def _global_gate(run: Run) -> ArrayRecord:
    """The upper bound: one client trains on everybody's hold-out. Only for simulations."""
    pooled = gather(run, "gate/global", Action.POOL, RecordDict(), wanted=[POOLED])
    told = {
        p: records.Encoded(records.of_kind(content, ArrayRecord)[POOLED])
        for p, content in pooled.items()
    }
    parts = alike("gate/global", {p: one.arrays for p, one in told.items()}, rows=True)
    question = message(
        _start(run),
        {SERVER_ROUND: 1, LEARNING_RATE: run.config.gate.learning_rate},
    )
    question[POOLED] = records.together({p: told[p].record(part) for p, part in parts.items()})
    question.update(means_for(run))
    node = min(pooled)
    trained = gather(run, "gate/global", Action.POOLED, question, only=[node])
    found = records.to_numpy(records.of_kind(trained[node], ArrayRecord)[ARRAYS])
    return records.from_numpy(_finished(run, found))


def _gate_rate(config: Config, rounds: int) -> Callable[[int], Mapping[str, Any]]:
    rate = schedule("cosine", peak=config.gate.learning_rate, steps=rounds)
    return lambda current: {LEARNING_RATE: rate(current)}


FEDERATED = GateTrainer(_federated_gate, lambda config: config.gate.rounds)
ROLLING = GateTrainer(_rolling_gate, _rolling_rounds)
GLOBAL = GateTrainer(_global_gate, lambda _: 2)
