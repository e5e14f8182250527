"""How loss and test accuracy went over the rounds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.report.canvas import BLUE, colours, count_rounds, light_grid, new, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_rounds", "moving_mean"]

Points = dict[str, list[tuple[float, float]]]

_TEST = "-test"
_ELSEWHERE = ("balanced", "probe-", "knn-")  # no metrics of training, or in figures of their own
_COLUMNS = 2
_LONG = 30


def draw_rounds(rounds: Sequence[Mapping[str, Any]], path: Path, *, note: str = "") -> None:
    """Loss of every stage over its rounds, test accuracy beside it where it was measured.

    From 30 rounds on, the loss of a round is drawn pale and a moving mean strong: rounds differ in
    who takes part, and that jumps more than the training moves.

    Args:
        rounds: Records of rounds.jsonl; stages without a loss and an accuracy are left out. The
            accuracy of stage ``<name>-test`` belongs to ``<name>``.
        path: The PNG to write.
        note: What the figure stands for, as the seed.
    """
    names = dict.fromkeys(_stage(record).removesuffix(_TEST) for record in rounds)
    panels = [
        (stage, kind, points)
        for stage in names
        for kind in ("loss", "accuracy")
        if (points := _points(rounds, stage, kind))
    ]
    columns = min(max(len(panels), 1), _COLUMNS)
    lines = max(math.ceil(len(panels) / columns), 1)
    figure = new(3.6 * columns, 2.1 * lines)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis, (stage, kind, points) in zip(axes, panels, strict=False):
        axis.set_title(stage, fontsize=8.5, loc="left")
        (_draw_loss if kind == "loss" else _draw_accuracy)(axis, points)
        axis.legend(
            loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3, frameon=False, fontsize=6.5,
            handlelength=1.6, columnspacing=1.2, borderpad=0.2,
        )  # fmt: skip
        count_rounds(axis)
        light_grid(axis, which="both")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    save(figure, path, note=note)


def _stage(record: Mapping[str, Any]) -> str:
    return str(record.get("stage", ""))


def _points(rounds: Sequence[Mapping[str, Any]], stage: str, kind: str) -> Points:
    """Points of every metric of a stage that speaks of ``kind``, by name, in order of rounds."""
    curves: Points = {}
    for record in rounds:
        metrics = record.get("metrics")
        if _stage(record) not in {stage, stage + _TEST} or not isinstance(metrics, dict):
            continue
        for name, value in metrics.items():
            number = isinstance(value, int | float) and math.isfinite(value)
            if number and kind in name and not name.startswith(_ELSEWHERE):
                curves.setdefault(name, []).append((float(record.get("round", 0)), float(value)))
    return {name: sorted(points) for name, points in curves.items()}


def _draw_loss(axis: "Axes", curves: Points) -> None:
    for (name, points), colour in zip(curves.items(), colours(len(curves)), strict=True):
        x, y = np.array(points).T
        label = name if len(curves) > 1 else ""
        if len(x) < _LONG:
            axis.plot(x, y, color=colour, linewidth=1.2, marker="o", markersize=2.5,
                      label=label or "each round")  # fmt: skip
            continue
        width = max(11, len(x) // 20 | 1)
        axis.plot(x, y, color=colour, linewidth=0.5, alpha=0.3, label=label or "each round")
        axis.plot(x, moving_mean(y, width), color=colour, linewidth=1.5,
                  label=f"{label} mean of {width} rounds".strip())  # fmt: skip
    axis.set_ylabel("Training loss")


def _draw_accuracy(axis: "Axes", curves: Points) -> None:
    # Dashes on top let the curve below show: the two are often equal.
    styles: dict[str, tuple[Any, Any, str, float]] = {
        "accuracy-local": (BLUE, "-", "o", 4.5),
        "accuracy-iid": ("#E69F00", (0, (3, 2)), "s", 2.4),
    }
    spare = iter(colours(10)[2:])
    for name in sorted(curves, reverse=True):
        x, y = np.array(curves[name]).T
        colour, dashes, marker, size = styles.get(name) or (next(spare, BLUE), "-", "^", 3)
        label = name.removeprefix("accuracy-").replace("iid", "IID") + " test"
        axis.plot(x, y, color=colour, linestyle=dashes, linewidth=1.3, marker=marker,
                  markersize=size, label=label if name in styles else name)  # fmt: skip
    axis.set_ylabel("Test accuracy")


def moving_mean(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Mean over ``width`` neighbours, an odd number.

    At the start it takes as many on either side as there are before: losses fall fast there, and
    the mean begins where they do. At the end, where they are level, it takes those there are.

    >>> moving_mean(np.array([9.0, 4.0, 2.0, 3.0, 1.0]), 3)
    array([9., 5., 3., 2., 2.])
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    first = np.maximum(place - width // 2, 0)
    last = np.minimum(np.minimum(place + width // 2, 2 * place) + 1, len(values))
    means: npt.NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means
