"""Gates of hidden states: from sums of one exchange, or by FedGate on held-out text."""

import numpy as np

from nmoe_flower import records
from nmoe_flower.catalogue import CHUNKS, GATES
from nmoe_flower.pipeline.ask import gather, holdings, message
from nmoe_flower.pipeline.networked import (
    federate_gate,
    gather_sums,
    solved_from_sums,
    sums_told,
)
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import EXPERT, Action, LinearKey, TextKey
from nmoe_flower.sums import Discriminants, Standardisation, from_moments, nearest_means

__all__ = ["TRAINED", "asks_whole_sums", "state_gates", "train_text_gates"]

TRAINED = "federated"
Arrays = dict[str, np.ndarray]


def state_gates(methods: tuple[str, ...]) -> list[str]:
    """The gates of hidden states among some, each once whatever it decides about.

    Args:
        methods: Names of gates that route text.

    >>> state_gates(("unigram", "lda-chunks", "lda", "local"))
    ['lda']
    """
    names = dict.fromkeys(name.removesuffix(CHUNKS) for name in methods)
    return [name for name in names if name in GATES and GATES[name].states]


def train_text_gates(run: Run) -> None:
    """Every configured gate of hidden states; leaves it as it is used on states as they are.

    Raises:
        RoundError: A client's sums contradict themselves, or all states are the same.
    """
    wanted = state_gates(run.config.text_gates)
    if not wanted:
        return
    if not run.artifacts.text_standard:
        _solve(run, wanted)
        run.save("sums/done")
    if TRAINED in wanted and TRAINED not in run.artifacts.gates:
        run.artifacts.gates[TRAINED] = _federated(run)
        run.save(f"gate/{TRAINED}/done")


def _solve(run: Run, wanted: list[str]) -> None:
    """Leave the standardisation of the states, and the gates that follow from sums."""
    if asks_whole_sums(run):
        told = gather_sums(run)
        solution = solved_from_sums(run, told, 0)
        standard, classes = solution.standard, len(next(iter(holdings(run).values())).classes)
        means = np.stack([sums_told(arrays, classes).mean for arrays in told.values()])
        lda = solution.gate
    else:
        told = gather_sums(run, moments=True)
        standard = from_moments(told.values())
        means, lda = np.stack([arrays["mean"] for arrays in told.values()]), None
    found = {"prototype": nearest_means(standard.apply(means)), "lda": lda}
    for name in wanted:
        if (gate := found.get(name)) is not None:
            run.artifacts.gates[name] = _arrays(gate.before(standard))
    run.artifacts.text_standard = dict(
        zip(TextKey.standard(), (standard.mean, standard.weight), strict=True)
    )


def asks_whole_sums(run: Run) -> bool:
    """Whether second moments are asked for: for ``lda``, or to release one private matrix."""
    return "lda" in state_gates(run.config.text_gates) or run.config.privacy.enabled


def _federated(run: Run) -> Arrays:
    """FedGate, trained on what every expert makes of everybody's validation text."""
    stored = run.artifacts.text_standard
    question = message(stored)
    question[EXPERT] = records.from_numpy(run.artifacts.adapters)
    gather(run, "held-out", Action.HELD_OUT, question)
    standard = Standardisation(*(stored[name] for name in TextKey.standard()))
    dim, experts = len(standard.mean), run.config.data.num_clients
    initial: Arrays = {
        LinearKey.WEIGHT: np.zeros((experts, dim), np.float32),
        LinearKey.BIAS: np.zeros(experts, np.float32),
    }
    trained = records.to_numpy(federate_gate(run, Action.TEXT_GATE, initial))
    gate = Discriminants(
        trained[LinearKey.WEIGHT].astype(np.float64) / dim**0.5,
        trained[LinearKey.BIAS].astype(np.float64),
    )
    return _arrays(gate.before(standard))


def _arrays(gate: Discriminants) -> Arrays:
    """In float64: weights of numbers that hardly vary are large, and their offsets cancel."""
    return {LinearKey.WEIGHT: gate.weight, LinearKey.BIAS: gate.bias}
