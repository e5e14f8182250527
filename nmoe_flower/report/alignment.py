"""Runs of the alignment system side by side: what each policy reached, when, and at what cost."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nmoe_flower.report.runs import FinishedRun
from nmoe_flower.report.tables import grid

__all__ = [
    "Curve",
    "alignment_table",
    "curve_of",
    "is_alignment",
    "most_bytes",
    "policy_names",
    "reached",
]

Curve = dict[str, np.ndarray]
SUSTAINED = 3
PART = "bytes-to-part"
_ORDER = (
    "single model",
    "single model, one step",
    "random",
    "greedy",
    "balanced",
    "sequential",
    "joint",
    "oracle",
)


def is_alignment(run: FinishedRun) -> bool:
    """Whether a run is of the alignment system."""
    return isinstance(run.results.get("alignment"), dict)


def policy_names(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """By configuration: its policy; where two share it, their rounds or else their own names."""
    plain = {run.configuration: _plain_name(run) for run in runs}
    rounds = {run.configuration: run.config.alignment.rounds for run in runs}
    named = dict(plain)
    for name in plain.values():
        of = [c for c in plain if plain[c] == name]
        if len(of) > 1:
            told = len({rounds[c] for c in of}) == len(of)
            named |= {c: f"{name}, {rounds[c]} rounds" if told else f"{name} ({c})" for c in of}
    return dict(sorted(named.items(), key=lambda item: _ORDER.index(plain[item[0]])))


def _plain_name(run: FinishedRun) -> str:
    settings = run.config.alignment
    if settings.experts != 1:
        return settings.policy
    return "single model, one step" if settings.local_steps == 1 else "single model"


def most_bytes(run: FinishedRun) -> float:
    """Most bytes of a client and round, one way, per byte of extractor, gate and its k experts.

    NaN for a run of an earlier version, which did not measure it.
    """
    rounds = [record for record in run.rounds if record["stage"] == "alignment"]
    return max((_number(r.get("metrics"), PART) for r in rounds), default=math.nan)


def curve_of(run: FinishedRun) -> Curve:
    """What a run had reached after each tested round.

    Returns:
        ``round``, ``accuracy`` (IID test, whole mixture), ``megabytes`` (down and up, per client,
        training only), ``seconds`` (simulated), ``variation`` (of the loads of that round) and
        ``variation-total``.
    """
    rows, sent = [], 0.0
    found: Mapping[str, Any] = {}
    for record in run.rounds:
        metrics: Mapping[str, Any] = record.get("metrics") or {}
        if record["stage"] == "alignment":
            moved = record.get("bytes_up", 0) + record.get("bytes_down", 0)
            sent += moved / run.config.data.num_clients
            found = metrics
        elif record["stage"] == "alignment-test" and metrics:
            values = (record["round"], _number(metrics, "accuracy-iid"), sent / 1e6)
            rest = ("elapsed-seconds", "load-variation", "load-variation-total")
            rows.append((*values, *(_number(found, key) for key in rest)))
    names = ("round", "accuracy", "megabytes", "seconds", "variation", "variation-total")
    return dict(zip(names, np.array(rows, dtype=float).reshape(-1, len(names)).T, strict=True))


def _number(metrics: Mapping[str, Any] | None, name: str) -> float:
    """A metric, or NaN where there is none."""
    value = (metrics or {}).get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def reached(curve: Curve, target: float) -> float:
    """First round of three tests in a row at or above a target; NaN if there is none.

    >>> reached({"round": np.arange(1, 6), "accuracy": np.array([.6, .1, .6, .6, .7])}, 0.6)
    3.0
    """
    enough = curve["accuracy"] >= target
    for place in range(len(enough) - SUSTAINED + 1):
        if enough[place : place + SUSTAINED].all():
            return float(curve["round"][place])
    return math.nan


def _plateau(curve: Curve) -> float:
    """First sustained round within a point of the mean of the last tests."""
    return reached(curve, _average(curve["accuracy"][-SUSTAINED:]) - 0.01)


def _average(values: np.ndarray) -> float:
    """The mean; NaN of nothing, without a warning."""
    return float(values.mean()) if len(values) else math.nan


def alignment_table(runs: Sequence[FinishedRun], *, targets: Sequence[float] = (0.4, 0.59)) -> str:
    """Markdown: one line per configuration, means over seeds with their standard deviation."""
    header = ["Policy", "Whole mixture", "Mean of last 5", "Placed, local test"]
    header += ["Rounds to plateau"]
    header += [f"Rounds to {100 * target:g} %" for target in targets]
    header += ["Load CV, total", "Load CV, round", "MB per client", "Bytes / part"]
    header += ["Clock, s", "n"]
    names, lines = policy_names(runs), []
    for configuration, name in names.items():
        seeds = [run for run in runs if run.configuration == configuration]
        curves = [curve_of(run) for run in seeds]
        cells = [name, _mean([_accuracy(run, "mixture", "iid") for run in seeds])]
        cells.append(_mean([_average(curve["accuracy"][-5:]) for curve in curves]))
        cells.append(_mean([_accuracy(run, "placed", "local") for run in seeds]))
        cells.append(_each([_plateau(curve) for curve in curves]))
        cells += [_each([reached(curve, target) for curve in curves]) for target in targets]
        cells.append(_mean([run.results["alignment"]["load_variation"] for run in seeds]))
        cells.append(_mean([_average(curve["variation"]) for curve in curves]))
        cells.append(_mean([_megabytes(run) for run in seeds], digits=1))
        most = max(most_bytes(run) for run in seeds)
        cells.append("-" if math.isnan(most) else f"{most:.4f}")
        time = [run.results["alignment"]["simulated_seconds"] for run in seeds]
        lines.append([*cells, _mean(time, digits=1), str(len(seeds))])
    note = (
        "Whole mixture: IID test after the last round, and mean of the last 5 tests. "
        "A target or the plateau (a point below the "
        f"mean of the last {SUSTAINED} tests) is reached in the first of {SUSTAINED} tests in a "
        "row at or above it; one number per seed, - for never. Load CV: of all samples trained per "
        "expert, and of the clients per expert in a round. Bytes / part: the most that a client "
        "got or sent in any round, per byte of extractor, gate and its experts. Clock: simulated "
        "seconds, or those that clients measured."
    )
    return "\n".join([*grid(header, lines, words=1), "", note, ""])


def _accuracy(run: FinishedRun, gate: str, test: str) -> float:
    rows = run.results["rows"]
    found = [row["accuracy"] for row in rows if (row["gate"], row["test"]) == (gate, test)]
    return math.nan if not found or found[0] is None else float(found[0])


def _megabytes(run: FinishedRun) -> float:
    alignment = run.results["alignment"]
    return float(np.mean(np.add(alignment["bytes_down"], alignment["bytes_up"]))) / 1e6


def _mean(values: Sequence[float], *, digits: int = 3) -> str:
    if any(math.isnan(value) for value in values):
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _each(values: Sequence[float]) -> str:
    return ", ".join("-" if math.isnan(value) else f"{value:.0f}" for value in values)
