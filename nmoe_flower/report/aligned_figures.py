"""Figures of the aligned system: who trained what, loads, accuracy against what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nmoe_flower.report.aligned import Curve, curve_of, policy_names
from nmoe_flower.report.canvas import INK, colours, few_ticks, light_grid, new, save
from nmoe_flower.report.runs import FinishedRun

__all__ = ["draw_alignment", "draw_assignments", "draw_progress"]

_ANNOTATED = 12


def draw_alignment(runs: Sequence[FinishedRun], folder: Path) -> list[Path]:
    """Draw both figures of one or several runs; of seeds, the first one.

    A single model has no map beside those of mixtures.
    """
    names = policy_names(runs)
    first = {name: next(r for r in runs if r.configuration == c) for c, name in names.items()}
    paths = [folder / "assignments.png", folder / "alignment.png"]
    times = {name: run.results["alignment"]["assignments"] for name, run in first.items()}
    mixtures = {name: counts for name, counts in times.items() if len(counts[0]) > 1}
    draw_assignments(mixtures or times, paths[0])
    draw_progress({name: curve_of(run) for name, run in first.items()}, paths[1])
    return paths


def draw_assignments(times: Mapping[str, Sequence[Sequence[int]]], path: Path) -> None:
    """Client x expert heat maps, one per policy, in the manner of the paper's Fig. 3.

    Args:
        times: By policy: how often each client trained each expert, [clients, experts].
        path: The PNG to write.
    """
    figure = new(2.4 * len(times) + 0.4, 2.6)
    figure.set_layout_engine("compressed")
    axes = figure.subplots(1, len(times), squeeze=False)[0]
    for axis, (name, counts) in zip(axes, times.items(), strict=True):
        matrix = np.asarray(counts, dtype=float)
        image = axis.imshow(matrix, cmap="Blues", vmin=0, vmax=max(matrix.max(), 1), aspect="auto")
        axis.set_title(name, fontsize=8.5)
        axis.set_xlabel("Expert")
        axis.set_xticks(few_ticks(matrix.shape[1]))
        axis.set_yticks(few_ticks(matrix.shape[0]))
        if max(matrix.shape) <= _ANNOTATED:
            for (row, column), count in np.ndenumerate(matrix):
                if count:
                    colour = "white" if count > 0.55 * matrix.max() else INK
                    axis.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=5,
                              color=colour)  # fmt: skip
        image.set_rasterized(True)
    axes[0].set_ylabel("Client")
    save(figure, path)


def draw_progress(curves: Mapping[str, Curve], path: Path) -> None:
    """Accuracy against rounds, bytes and simulated seconds; and the loads' variation.

    Args:
        curves: By policy: what `curve_of` gives.
        path: The PNG to write.
    """
    panels = [("round", "accuracy", "Round", "Accuracy, IID test")]
    panels.append(("megabytes", "accuracy", "MB per client", "Accuracy, IID test"))
    if any(len(c["seconds"]) and c["seconds"][-1] > 0 for c in curves.values()):
        panels.append(("seconds", "accuracy", "Seconds of the clock", "Accuracy, IID test"))
    panels.append(("round", "variation", "Round", "Load CV of the round"))
    columns = 2
    figure = new(3.5 * columns, 2.3 * -(-len(panels) // columns) + 0.3)
    axes = list(figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat)
    for axis, (x, y, across, up) in zip(axes, panels, strict=False):
        for place, (name, curve) in enumerate(curves.items()):
            dashed = place % 2  # on top, so that equal curves show both
            axis.plot(curve[x], curve[y], color=colours(len(curves))[place], linewidth=1.3,
                      linestyle=(0, (4, 2)) if dashed else "-", zorder=2 + dashed,
                      label=name)  # fmt: skip
        axis.set_xlabel(across)
        axis.set_ylabel(up)
        axis.set_ylim(bottom=-0.02)
        light_grid(axis, which="both")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=7)
    save(figure, path)
