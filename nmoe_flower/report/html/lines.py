"""What a run had reached after how many rounds, bytes and seconds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmoe_flower.report.figures import moving_mean
from nmoe_flower.report.html.charts import LineChart, LineSeries, line_chart
from nmoe_flower.report.html.parts import AxisChoice, Charts
from nmoe_flower.report.runs import FinishedRun
from nmoe_flower.report.tables import method_label

__all__ = ["charts_of", "lines_of"]

# By stage that trains: the one that tests it, and what its accuracy is of.
_STAGES = {
    "extractor": ("extractor-test", "classifier of stage 1"),
    "alignment": ("alignment-test", "whole mixture"),
}
_MEASURED = {
    "accuracy-local": "Accuracy of the {of}, local test",
    "accuracy-iid": "Accuracy of the {of}, IID test",
    "probe-accuracy": "Accuracy of a linear probe on the features",
    "knn-accuracy": "Accuracy of k-NN on the features",
}
_AXES = {
    "rounds": ("Rounds", "Round", ""),
    "megabytes": ("Bytes", "Down and up per client", "MB"),
    "seconds": ("Seconds", "Training", "s"),
}
_SMOOTHED = 60  # rounds of a loss, from which on a moving mean is drawn


@dataclass(frozen=True)
class Reached:
    """Values of one metric of one run.

    Attributes:
        rounds: After which rounds.
        megabytes: What training had moved by then per client, down and up.
        seconds: How long it had taken by then.
        values: What was measured.
        spread: Bytes and seconds are the whole stage's, spread evenly over its rounds.
    """

    rounds: list[float]
    megabytes: list[float]
    seconds: list[float]
    values: list[float]
    spread: bool = False


def lines_of(run: FinishedRun) -> dict[str, Reached]:
    """By title: every curve that a run's records hold; nothing without records."""
    found: dict[str, Reached] = {}
    for stage, (test, of) in _STAGES.items():
        records = [r for r in run.rounds if r["stage"] in {stage, test}]
        cost = (run.results.get("stages") or {}).get(stage) or {}
        clients = max(run.config.data.num_clients, 1)
        spread = not any("bytes_up" in r or "seconds" in r for r in records if r["stage"] == stage)
        each = _each_round(run, cost) if spread else (0.0, 0.0)
        moved = took = 0.0
        for record in records:
            metrics: Mapping[str, Any] = record.get("metrics") or {}
            if record["stage"] == stage:
                moved += record.get("bytes_up", 0) + record.get("bytes_down", 0)
                took = _finite(metrics.get("elapsed-seconds")) or took + (
                    _finite(record.get("seconds")) or 0.0
                )
            place = float(record["round"])
            bytes_, seconds = (place * each[0], place * each[1]) if spread else (moved, took)
            for name, title in _names(record, stage, of, run):
                value = _finite(metrics.get(name))
                if value is not None:
                    curve = found.setdefault(title, Reached([], [], [], [], spread))
                    curve.rounds.append(place)
                    curve.megabytes.append(bytes_ / clients / 1e6)
                    curve.seconds.append(seconds)
                    curve.values.append(value)
    return found


def _names(
    record: Mapping[str, Any], stage: str, of: str, run: FinishedRun
) -> list[tuple[str, str]]:
    """The metrics of a record that are drawn, with their titles."""
    if record["stage"] != stage:
        return [(name, title.format(of=of)) for name, title in _MEASURED.items()]
    method = method_label(run.config.extractor.method) if stage == "extractor" else "the mixture"
    return [("loss", f"Training loss of {method}")]


def _each_round(run: FinishedRun, cost: Mapping[str, Any]) -> tuple[float, float]:
    """Bytes and seconds of one round, from those of the whole stage; NaN where unknown."""
    rounds = cost.get("rounds") or run.config.extractor.rounds
    up, down, seconds = (_finite(cost.get(k)) for k in ("bytes_up", "bytes_down", "seconds"))
    moved = math.nan if up is None or down is None else (up + down) / rounds
    return moved, math.nan if seconds is None else seconds / rounds


def _finite(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def charts_of(groups: Mapping[str, Sequence[FinishedRun]]) -> Charts | None:
    """Every curve of the configurations, over rounds, bytes and seconds; None without any.

    Args:
        groups: Runs by the name of their configuration: its seeds.
    """
    curves = {name: [lines_of(run) for run in runs] for name, runs in groups.items()}
    titles = dict.fromkeys(title for of in curves.values() for one in of for title in one)
    ordered = sorted(titles, key=lambda title: ("loss" in title, "Accuracy of a" in title))
    axes = []
    for axis, (button, x_title, unit) in _AXES.items():
        charts = [
            chart for title in ordered if (chart := _chart(title, curves, axis, x_title, unit))
        ]
        if charts:
            axes.append(AxisChoice(button, charts))
    if not axes:
        return None
    notes = ["Vertical axes need not begin at 0."]
    if any(len(of) > 1 for of in curves.values()):
        notes.append(
            "A line is the mean over the seeds; its band reaches from the least to the most."
        )
    if any(curve.spread for of in curves.values() for one in of for curve in one.values()):
        notes.append(
            "Bytes and seconds were kept for the whole stage and are spread evenly over its rounds."
        )
    return Charts(axes, notes)


def _chart(
    title: str,
    curves: Mapping[str, Sequence[Mapping[str, Reached]]],
    axis: str,
    x_title: str,
    unit: str,
) -> LineChart | None:
    series = []
    for name, seeds in curves.items():
        of = [seed[title] for seed in seeds if title in seed]
        if of and any(x > 0 for x in getattr(of[0], axis)):
            series.append(_joined(name, of, axis, smooth="loss" in title))
    good = [one for one in series if any(map(math.isfinite, one.x))]
    if not good:
        return None
    return line_chart(title, good, x_title=x_title, unit=unit, share="loss" not in title)


def _joined(name: str, seeds: Sequence[Reached], axis: str, *, smooth: bool) -> LineSeries:
    """The mean of a curve's seeds, as far as all of them go, and the band around it."""
    length = min(len(curve.values) for curve in seeds)
    x = [statistics.fmean(getattr(curve, axis)[i] for curve in seeds) for i in range(length)]
    values = [curve.values[:length] for curve in seeds]
    if smooth and length >= _SMOOTHED:
        width = max(11, length // 20 | 1)
        values = [moving_mean(np.array(one), width).tolist() for one in values]
    columns = list(zip(*values, strict=True))
    y = [statistics.fmean(column) for column in columns]
    if len(seeds) == 1:
        return LineSeries(name, x, y)
    return LineSeries(name, x, y, [min(column) for column in columns], [max(c) for c in columns])
