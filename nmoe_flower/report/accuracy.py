"""The accuracy of every gate and control in one figure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.report.canvas import BLUE, GREY, INK, ORANGE, light_grid, new, save
from nmoe_flower.report.tables import GATE_NAMES, gate_kind, gate_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_accuracy"]

_NEAR = 0.3  # an axis that would start below this starts at 0
_PILE = 0.12  # how far, of a line of the figure, equal dots go to either side
_TESTS = {"local": "Local test", "iid": "IID test"}
_LOOKS = (
    ("", BLUE, "o", -0.17, "without prior correction"),
    ("+prior", ORANGE, "D", 0.17, "with prior correction"),
)


def draw_accuracy(results: Sequence[Mapping[str, Any]], path: Path, *, note: str = "") -> None:
    """Accuracy of every gate and control, local and IID test side by side.

    A marker and the number beside it are the mean over clients and seeds. Small dots are the
    clients of a single seed or, of several, the seeds; then a bar shows their standard deviation.
    Hollow markers are upper bounds. An axis need not start at 0 and says where it does; the two
    differ.

    Args:
        results: What results.json holds, one per seed; only ``rows`` is read.
        path: The PNG to write.
        note: What the figure stands for, as the seeds.
    """
    rows = [row for result in results for row in result["rows"] if row["accuracy"] is not None]
    tests = [test for test in _TESTS if any(row["test"] == test for row in rows)]
    bases = sorted({_base(row["gate"]) for row in rows}, key=gate_order)
    places = _places(bases)
    figure = new(max(3.6 * len(tests), 3.6), 0.9 + 0.27 * (max(places.values(), default=0) + 1))
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots(1, max(len(tests), 1), sharey=True, squeeze=False)[0]
    for axis, test in zip(axes, tests, strict=False):
        lowest = 1.0
        for look in _LOOKS:
            for base, place in places.items():
                cell = [r for r in rows if r["test"] == test and r["gate"] == base + look[0]]
                lowest = min([lowest, *_draw_cell(axis, place, cell, look)])
        axis.set_title(_TESTS[test], fontsize=8.5)
        light_grid(axis, which="both")
        start = math.floor(max(lowest - 0.02, 0) * 10) / 10
        axis.set_xlim(start if start > _NEAR else 0.0, 1.0)
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_xlabel("Accuracy")
    axes[0].set_yticks(list(places.values()), [GATE_NAMES.get(base, base) for base in bases])
    axes[0].set_ylim(max(places.values(), default=0) + 0.6, -0.6)
    if rows:
        _legend(axes[0], rows, seeds=len(results))
    save(figure, path, note=note)


def _base(gate: str) -> str:
    return gate.removesuffix("+prior")


def _places(bases: Sequence[str]) -> dict[str, float]:
    """Where each row goes: gates, upper bounds and controls stand a little apart."""
    places: dict[str, float] = {}
    place, before = 0.0, ""
    for base in bases:
        kind = gate_kind(base)
        place += 0.4 if before not in {"", kind} else 0
        places[base] = place
        place, before = place + 1, kind
    return places


def _draw_cell(
    axis: "Axes",
    place: float,
    cell: Sequence[Mapping[str, Any]],
    look: tuple[str, str, str, float, str],
) -> list[float]:
    """Draw one gate of one test; returns the values drawn."""
    if not cell:
        return []
    _, colour, marker, shift, _ = look
    seeds = [float(row["accuracy"]) for row in cell]
    mean, y = statistics.fmean(seeds), place + shift
    dots = seeds if len(seeds) > 1 else _of_clients(cell[0])
    if dots:  # an empty line that is not clipped breaks the layout
        axis.plot(dots, y + _piled(dots), "o", markersize=2.4, color=colour, alpha=0.4,
                  markeredgewidth=0, clip_on=False)  # fmt: skip
    if len(seeds) > 1:
        axis.errorbar(mean, y, xerr=statistics.stdev(seeds), color=INK, linewidth=0.9, capsize=1.8)
    hollow = gate_kind(cell[0]["gate"]) == "upper bound"
    axis.plot(mean, y, marker, markersize=4.2 if marker == "o" else 3.6, color=colour, zorder=4,
              markerfacecolor="white" if hollow else colour, clip_on=False)  # fmt: skip
    axis.annotate(f"{mean:.3f}", (1, y), (4, 0), xycoords=("axes fraction", "data"),
                  textcoords="offset points", fontsize=5.5, va="center", color=colour)  # fmt: skip
    return [mean, *dots]


def _piled(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """How far each dot goes up or down, so that equal values form a pile and none hides another.

    >>> _piled([0.5, 0.25, 0.5, 0.5]).tolist()
    [0.0, 0.0, 0.06, -0.06]
    """
    found = np.asarray(values)
    before = np.array([np.count_nonzero(found[:place] == v) for place, v in enumerate(found)])
    step = min(_PILE / 2, _PILE / max((before.max() + 1) // 2, 1))
    places: npt.NDArray[np.float64] = (before + 1) // 2 * step * np.where(before % 2, 1.0, -1.0)
    return places + 0.0  # no negative zero


def _of_clients(row: Mapping[str, Any]) -> list[float]:
    values = (row.get("per_client") or {}).get("accuracy") or []
    return [float(value) for value in values if value is not None]


def _legend(axis: "Axes", rows: Sequence[Mapping[str, Any]], *, seeds: int) -> None:
    """Below everything, only the marks that occur."""
    from matplotlib.lines import Line2D

    gates = {str(row["gate"]) for row in rows}
    corrected = {gate.endswith("+prior") for gate in gates}
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=4, linestyle="", label=label)
        for suffix, colour, marker, _, label in _LOOKS
        if bool(suffix) in corrected and (suffix or len(corrected) > 1)
    ]
    if any(gate_kind(gate) == "upper bound" for gate in gates):
        handles.append(Line2D([], [], color=GREY, marker="o", markersize=4, linestyle="",
                              label="upper bound", markerfacecolor="white"))  # fmt: skip
    if seeds > 1 or any(map(_of_clients, rows)):
        label = "one seed" if seeds > 1 else "one client"
        handles.append(Line2D([], [], color=GREY, marker="o", markersize=2.4, linestyle="",
                              alpha=0.6, label=label))  # fmt: skip
    if seeds > 1:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, label="standard deviation"))
    figure = axis.get_figure()
    assert figure is not None
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=7,
            handletextpad=0.5, columnspacing=1.6,
        )  # fmt: skip
