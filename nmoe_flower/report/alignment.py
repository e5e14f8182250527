"""Runs of the alignment system beside each other: the table of policies, and their figures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from nmoe_flower.catalogue import POLICIES
from nmoe_flower.report.canvas import (
    INK,
    count_rounds,
    few_ticks,
    light_grid,
    line_colours,
    new,
    save,
)
from nmoe_flower.report.runs import FinishedRun, seeds_in_words
from nmoe_flower.report.tables import grid

__all__ = [
    "Curve",
    "alignment_lines",
    "alignment_table",
    "curve_of",
    "draw_alignment",
    "draw_assignments",
    "draw_progress",
    "is_alignment",
    "most_bytes",
    "policy_names",
    "reached",
]

Curve = dict[str, np.ndarray]
SUSTAINED = 3
TARGETS = (0.4, 0.59)
PART = "bytes-to-part"
_ORDER = ("single model", "single model, one step", *POLICIES)


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


def alignment_table(runs: Sequence[FinishedRun], *, targets: Sequence[float] = TARGETS) -> str:
    """Markdown: one line per configuration, means over seeds with their standard deviation."""
    header, lines, note = alignment_lines(runs, targets=targets)
    return "\n".join([*grid(header, lines, words=1), "", note, ""])


def alignment_lines(
    runs: Sequence[FinishedRun], *, targets: Sequence[float] = TARGETS
) -> tuple[list[str], list[list[str]], str]:
    """`alignment_table` as its header, its lines and what is said below it."""
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
        "± is the standard deviation over n seeds. Whole mixture: IID test after the last round, "
        "and mean of the last 5 tests. "
        "A target or the plateau (a point below the "
        f"mean of the last {SUSTAINED} tests) is reached in the first of {SUSTAINED} tests in a "
        "row at or above it; one number per seed, - for never. Load CV: of all samples trained per "
        "expert, and of the clients per expert in a round. Bytes / part: the most that a client "
        "got or sent in any round, per byte of extractor, gate and its experts. Clock: simulated "
        "seconds, or those that clients measured."
    )
    return header, lines, note


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


_ANNOTATED = 12
_MAPS_IN_A_LINE = 4
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.2)))


def draw_alignment(runs: Sequence[FinishedRun], folder: Path) -> list[Path]:
    """Draw both figures of one or several runs: maps of the first seed, curves of all.

    A single model has no map beside those of mixtures.
    """
    names = policy_names(runs)
    by_seed = sorted(runs, key=lambda run: run.config.run.seed)
    groups = {name: [r for r in by_seed if r.configuration == c] for c, name in names.items()}
    seeds = sorted({run.config.run.seed for run in runs})
    paths = [folder / "assignments.png", folder / "alignment.png"]
    times = {name: of[0].results["alignment"]["assignments"] for name, of in groups.items()}
    mixtures = {name: counts for name, counts in times.items() if len(counts[0]) > 1}
    draw_assignments(mixtures or times, paths[0], note=seeds_in_words(seeds, averaged=False))
    curves = {name: [curve_of(run) for run in of] for name, of in groups.items()}
    draw_progress(curves, paths[1], note=seeds_in_words(seeds))
    return paths


def draw_assignments(
    times: Mapping[str, Sequence[Sequence[int]]], path: Path, *, note: str = ""
) -> None:
    """Client x expert heat maps, one per policy, in the manner of the paper's Fig. 3.

    Args:
        times: How often each client trained each expert, [clients, experts], by policy.
        path: The PNG to write.
        note: What the figure stands for, as the seed.
    """
    maps = {name: np.asarray(counts, dtype=float) for name, counts in times.items()}
    lines = -(-len(maps) // _MAPS_IN_A_LINE)
    columns = -(-len(maps) // lines)
    figure = new(max(2.1 * columns + 0.9, 3.4), 2.4 * lines + 0.2)
    from matplotlib.ticker import MaxNLocator

    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    most = max(1.0, *(counts.max() for counts in maps.values()))
    for place, (axis, (name, counts)) in enumerate(zip(axes, maps.items(), strict=False)):
        image = axis.imshow(counts, cmap="Blues", vmin=0, vmax=most, aspect="auto")
        axis.set_title(name, fontsize=8.5)
        axis.set_xlabel("Expert ID")
        axis.set_xticks(few_ticks(counts.shape[1]))
        axis.set_yticks(few_ticks(counts.shape[0]))
        if place % columns == 0:
            axis.set_ylabel("Client ID")
        if max(counts.shape) <= _ANNOTATED:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if count > 0.55 * most else INK
                    axis.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=5,
                              color=colour)  # fmt: skip
    for axis in axes[len(maps) :]:
        axis.set_axis_off()
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
    bar.locator = MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10])
    bar.update_ticks()
    bar.set_label("Rounds in which the client\ntrained the expert")
    bar.outline.set_linewidth(0.4)
    save(figure, path, note=note)


def draw_progress(curves: Mapping[str, Sequence[Curve]], path: Path, *, note: str = "") -> None:
    """Accuracy against rounds, bytes and simulated seconds; and the loads' variation.

    A line is the mean over seeds; a band reaches from the least of them to the most.

    Args:
        curves: What `curve_of` gives, one per seed, by policy.
        path: The PNG to write.
        note: What the figure stands for, as the seeds.
    """
    joined = {name: _join(of) for name, of in curves.items()}
    panels = [("round", "accuracy", "Round", "Accuracy, IID test")]
    panels.append(("megabytes", "accuracy", "MB per client", "Accuracy, IID test"))
    if any((of["seconds"] > 0).any() for of in joined.values()):
        panels.append(("seconds", "accuracy", "Seconds of the clock", "Accuracy, IID test"))
    panels.append(("round", "variation", "Round", "Load CV of the round"))
    columns = 2
    figure = new(3.5 * columns, 2.3 * -(-len(panels) // columns) + 0.3)
    axes = list(figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat)
    for axis, (x, y, across, up) in zip(axes, panels, strict=False):
        looks = zip(joined.items(), line_colours(len(joined)), cycle(_DASHES), strict=False)
        for place, ((name, curve), colour, dashes) in enumerate(looks):
            across_seeds, up_seeds = curve[x], curve[y]
            mean = across_seeds.mean(axis=0)
            # Dashed ones on top, so that equal curves show both.
            layer = 2 + place % len(_DASHES)
            if len(up_seeds) > 1:
                axis.fill_between(mean, up_seeds.min(axis=0), up_seeds.max(axis=0), color=colour,
                                  alpha=0.15, linewidth=0)  # fmt: skip
            axis.plot(mean, up_seeds.mean(axis=0), color=colour, linewidth=1.3, linestyle=dashes,
                      zorder=layer, label=name, clip_on=False,
                      marker="o" if len(mean) == 1 else "", markersize=2.5)  # fmt: skip
        axis.set_xlabel(across)
        if x == "round":
            count_rounds(axis)
        axis.set_ylabel(up)
        axis.set_ylim(bottom=0)
        light_grid(axis, which="both")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    if any(len(of) > 1 for of in curves.values()):
        note += "; bands: least to most" if note else "bands: least to most of the seeds"
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=7,
                  handlelength=2.6)  # fmt: skip
    save(figure, path, note=note)


def _join(seeds: Sequence[Curve]) -> Curve:
    """The curves of seeds as arrays [seeds, tested rounds], as far as all of them go."""
    tests = min(len(curve["round"]) for curve in seeds)
    return {name: np.stack([curve[name][:tests] for curve in seeds]) for name in seeds[0]}
