"""Figures of the alignment system: who trained what, loads, accuracy against what it costs."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from nmoe_flower.report.alignment import Curve, curve_of, policy_names
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

__all__ = ["draw_alignment", "draw_assignments", "draw_progress"]

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
        times: By policy: how often each client trained each expert, [clients, experts].
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
        curves: By policy: what `curve_of` gives, one per seed.
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
