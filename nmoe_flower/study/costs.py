"""What it cost to come to a number: bytes per device, exchanges, minutes.

Training alone is counted. Tests, what is asked before training, and the controls are yardsticks of
whoever studies the methods; no device pays for them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nmoe_flower.catalogue import ADAPTER_CONTROLS, BASELINES, CHUNKS, GATES
from nmoe_flower.config import Config
from nmoe_flower.privacy import noise_multiplier_for

__all__ = ["COSTS", "OF_A_GATE", "Cost", "cost_of"]

Results = Mapping[str, Any]
# What every gate of a run stands on, and what only those need that look at experts' answers.
_STAGE_1 = ("initial", "standard", "extractor", "extractor/given")
_HEAD = ("sums", "latents", "head")
_BEFORE_GATES = (*_STAGE_1, *_HEAD, "experts")
_FOR_GATES = ("answer", "answers")
_ALIGNED = (*_STAGE_1, "probe", "alignment")
_OF_BASELINES = {"majority": (), "own": ("extractor", "extractor/given")}  # and all others


@dataclass(frozen=True)
class Cost:
    """What training cost.

    Attributes:
        bytes_per_device: Up and down, the mean over the devices; None if the data left them.
        exchanges: Round trips.
    """

    bytes_per_device: float | None
    exchanges: int | None


def cost_of(results: Results | None, config: Config, gate: str, stage_1: Results | None) -> Cost:
    """What it cost to come to the answers of a gate.

    Args:
        results: What the run's results.json holds.
        config: The run's settings.
        gate: The gate or control, as in the rows of results.
        stage_1: What the run says that trained the extractor, if that was another one; its stage
            1 counts here too.
    """
    base = gate.removesuffix("+prior")
    if config.run.system == "language":
        return _of_text(results, config, gate)
    if base == "control:local-classifier":
        return Cost(0, 0)
    if base == "control:centralized" or results is None:
        return Cost(None, None)
    counted = _stages(base, config)
    paid = {name: cost for name, cost in _of(results).items() if name in counted}
    if stage_1 is not None and counted:
        there = ("sums", "standard", "extractor") if config.sums_come_first else ("extractor",)
        earlier = {f"before/{name}": c for name, c in _of(stage_1).items() if name in there}
        paid |= earlier
    moved = sum(cost.get("bytes_up") or 0 for cost in paid.values())
    moved += sum(cost.get("bytes_down") or 0 for cost in paid.values())
    trips = sum(_trips(name, cost, config) for name, cost in paid.items())
    return Cost(moved / config.data.num_clients, trips)


def _of_text(results: Results | None, config: Config, gate: str) -> Cost:
    """The cost of a mixture of adapters, or of one adapter for all at the rate that was chosen."""
    if results is None:
        return Cost(None, None)
    name = gate.removeprefix("control:")
    if name == "frozen":
        return Cost(0, 0)
    start = config.adapter.start
    base = name.removesuffix(CHUNKS)
    if name in ADAPTER_CONTROLS and ADAPTER_CONTROLS[name].averaged:
        counted = [_rounds_of(name, results)]
    else:
        counted = [*([] if start == "fresh" else [_rounds_of(start, results)]), "experts"]
        if base in GATES and GATES[base].states:
            counted += ["sums", *(("held-out", f"gate/{base}") if base == "federated" else ())]
    paid = [_of(results).get(stage, {}) for stage in counted]
    moved = sum((cost.get("bytes_up") or 0) + (cost.get("bytes_down") or 0) for cost in paid)
    trips = sum(int(cost.get("rounds") or 0) for cost in paid)
    return Cost(moved / config.data.num_clients, trips)


def _rounds_of(average: str, results: Results) -> str:
    """The stage in which an averaged adapter took its rounds at the rate that was kept."""
    chosen = (results.get("learning_rates") or {}).get(average)
    return average if chosen is None else f"{average}@{chosen:g}"


def _stages(gate: str, config: Config) -> tuple[str, ...]:
    if config.run.system == "aligned":
        return _ALIGNED
    if config.run.system in BASELINES:
        return _OF_BASELINES.get(gate, (*_STAGE_1, "baseline"))
    if gate.startswith("control:"):
        return (*_STAGE_1, *(("sums",) if gate == "control:ridge" else _HEAD))
    entry = GATES.get(gate)
    asked = entry is None or entry.holdout or (entry.trainer and not entry.solved)
    return (*_BEFORE_GATES, *(_FOR_GATES if asked else ()), f"gate/{gate}")


def _of(results: Results) -> dict[str, Mapping[str, Any]]:
    return dict(results.get("stages") or {})


def _trips(name: str, cost: Mapping[str, Any], config: Config) -> int:
    two = config.extractor.method == "fedsc" and config.contrast.exchange == "two-phase"
    phases = 2 if two and name.rpartition("/")[2] == "extractor" else 1
    return phases * int(cost.get("rounds") or 0)


def _seconds(results: Results, stage_1: Results | None) -> float:
    before = (stage_1 or {}).get("seconds") or 0.0
    return float(results.get("seconds") or 0.0) + float(before)


def _noise_multiplier(config: Config) -> float | None:
    """Noise of a private matrix, as a multiple of its sensitivity; None without."""
    settings = config.privacy
    if not settings.enabled:
        return None
    releases = 1 if config.head.asks_sums else settings.releases
    return noise_multiplier_for(settings.epsilon, settings.delta, releases)


# Metrics of a run that are neither in its rows nor in its configuration.
COSTS: dict[str, Callable[[Results, Config, str, Results | None], float | None]] = {
    "bytes_per_device": lambda results, config, gate, before: (
        cost_of(results, config, gate, before).bytes_per_device
    ),
    "exchanges": lambda results, config, gate, before: (
        cost_of(results, config, gate, before).exchanges
    ),
    "seconds": lambda results, config, gate, before: _seconds(results, before),
    "parameters": lambda results, config, gate, before: (
        (results or {}).get("parameters", {}).get(gate.removesuffix("+prior"))
    ),
    "minutes": lambda results, config, gate, before: _seconds(results, before) / 60,
    "noise_multiplier": lambda results, config, gate, before: _noise_multiplier(config),
}

OF_A_GATE = ("bytes_per_device", "exchanges", "parameters")
"""The costs that differ from gate to gate."""
