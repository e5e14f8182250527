"""One adapter for all clients, by FedAvg: what a mixture of adapters is measured against."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from nmoe_flower import records
from nmoe_flower.catalogue import ADAPTER_CONTROLS, VALIDATION, AdapterControlEntry
from nmoe_flower.pipeline.ask import gather, message
from nmoe_flower.pipeline.rounds import federate
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import ARRAYS, MOMENTS, Action, TextKey
from nmoe_flower.schedules import schedule
from nmoe_flower.strategies import FedLoRA

__all__ = ["averaged_adapter", "train_adapter_controls"]

Arrays = dict[str, np.ndarray]


def train_adapter_controls(run: Run) -> None:
    """Every configured control that is trained; leaves its adapter, at its best learning rate."""
    for name in run.config.adapter.controls:
        if ADAPTER_CONTROLS[name].averaged:
            averaged_adapter(run, name)


def averaged_adapter(run: Run, name: str) -> Arrays:
    """One adapter for all clients, trained where that is not done yet.

    Args:
        run: The run.
        name: Name of the control.
    """
    found = run.artifacts.shared_adapters
    if name not in found:
        found[name] = _averaged(run, name, ADAPTER_CONTROLS[name])
        run.save(f"{name}/done")
    return found[name]


def _averaged(run: Run, name: str, entry: AdapterControlEntry) -> Arrays:
    """The adapter at the learning rate that suits everybody's validation text best."""
    settings = run.config.adapter
    rates = settings.rates_of_averages
    if len(rates) == 1:
        return _trained(run, name, entry, rates[0])
    adapters, bits = run.artifacts.tried_adapters, run.artifacts.tried_bits
    tried = {rate: f"{name}@{rate!r}" for rate in rates}
    for rate, one in tried.items():
        if one in bits:  # a run that was stopped since goes on with the next
            continue
        stage = f"{name}@{rate:g}"
        adapter = _trained(run, stage, entry, rate)
        bits[one] = _bits_per_byte(run, f"{stage}/{VALIDATION}", adapter)
        adapters[one] = adapter
        run.save(f"{stage}/done")
    best = min(rates, key=lambda rate: bits[tried[rate]])
    chosen = adapters[tried[best]]
    run.artifacts.chosen_rates[name] = best
    for one in tried.values():
        del adapters[one], bits[one]
    return chosen


def _trained(run: Run, stage: str, entry: AdapterControlEntry, rate: float) -> Arrays:
    settings = run.config.adapter
    rank = settings.rank * (settings.times if entry.large else 1)
    rounds = settings.steps_of_averages // settings.local_steps
    strategy = FedLoRA(
        exact=entry.exact,
        action=Action.ADAPTER_ROUND,
        min_available_nodes=run.config.data.num_clients,
        learning_rate=schedule("cosine", peak=rate, steps=rounds),
    )
    resumed = run.resumed is not None and run.resumed.state["stage"] == stage
    initial = {} if resumed else _initial(run, rank)  # a resumed stage has arrays of its own
    if entry.frozen:
        initial = {n: v for n, v in initial.items() if not n.endswith(".A")}
    if settings.moments == "averaged" and not entry.exact:  # whose factors turn in every round
        initial |= {
            moment + part: np.zeros_like(value)
            for moment in MOMENTS
            for part, value in list(initial.items())
        }
    arrays: ArrayRecord = records.from_numpy(initial)
    trained = records.to_numpy(federate(run, stage, strategy, arrays, rounds=rounds))
    return {n: v for n, v in trained.items() if not n.startswith(MOMENTS)}


def _initial(run: Run, rank: int) -> Arrays:
    """A fresh adapter, from any client."""
    node = min(run.partitions.values())
    question = message(None, {TextKey.RANK: rank})
    asked = gather(run, "initial", Action.ADAPTER_INITIAL, question, only=[node], wanted=[ARRAYS])
    return records.to_numpy(records.of_kind(asked[node], ArrayRecord)[ARRAYS])


def _bits_per_byte(run: Run, stage: str, adapter: Arrays) -> float:
    """Mean over the clients of bits per byte of their validation text."""
    answers = gather(run, stage, Action.ADAPTER_TEST, message(adapter))
    told: list[Mapping[str, Any]] = [records.metrics_of(one) for one in answers.values()]
    each = [float(one[TextKey.NATS]) / float(one[TextKey.BYTES]) / np.log(2) for one in told]
    return float(np.mean(each))
