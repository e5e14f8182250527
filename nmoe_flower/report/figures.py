"""Who asks whom, and who holds what."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nmoe_flower.report.canvas import INK, colours, few_ticks, light_grid, new, save, shortened

__all__ = ["draw_partition", "draw_routing"]

_ANNOTATED = 12


def draw_routing(
    matrix: Sequence[Sequence[float]], path: Path, *, title: str = "", note: str = ""
) -> None:
    """Heat map of who asks whom: row = client, column = expert, rows sum to 1.

    Args:
        matrix: Shares ``[m, m]``.
        path: The PNG to write.
        title: Goes before the local ratio ``LR``, the mean of the diagonal.
        note: What the figure stands for, as the seed.
    """
    shares = np.asarray(matrix, dtype=float)
    clients, experts = shares.shape
    figure = new(3.6, 3.2)
    figure.set_layout_engine("compressed")  # the usual one cuts the labels of square axes
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ratio = f"LR = {100 * np.trace(shares) / clients:.0f} %"
    axis.set_title(f"{title}, {ratio}" if title else ratio, fontsize=8.5)
    axis.set_xlabel("Expert ID")
    axis.set_ylabel("Client ID")
    axis.set_xticks(few_ticks(experts))
    axis.set_yticks(few_ticks(clients))
    if max(clients, experts) <= _ANNOTATED:
        for (row, column), share in np.ndenumerate(shares):
            text = "0" if share < 0.005 else f"{share:.2f}".lstrip("0")
            colour = "white" if share > 0.55 else INK if share >= 0.005 else "#B5B5B5"
            axis.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03)
    bar.set_label("Share of the client's samples")
    bar.outline.set_linewidth(0.4)
    save(figure, path, note=note)


def draw_partition(
    counts_train: Sequence[Sequence[int]],
    counts_test: Sequence[Sequence[int]],
    class_names: Sequence[str],
    path: Path,
    *,
    note: str = "",
) -> None:
    """Who holds what: samples per class, stacked, one bar per client, train and test.

    Args:
        counts_train: Counts ``[clients, C]``.
        counts_test: Counts ``[clients, C]``.
        class_names: The C names.
        path: The PNG to write.
        note: What the figure stands for, as the seed.
    """
    parts = {"Training data": np.asarray(counts_train), "Local test data": np.asarray(counts_test)}
    figure = new(7.2, 2.6)
    from matplotlib.patches import Patch

    axes = figure.subplots(1, 2)
    paint = colours(len(class_names))
    for axis, (title, counts) in zip(axes, parts.items(), strict=True):
        clients = np.arange(len(counts))
        below = np.zeros(len(counts))
        for place in range(len(class_names)):
            held = np.flatnonzero(counts[:, place])  # hundreds of classes leave few at a client
            axis.bar(
                clients[held], counts[held, place], 0.85, bottom=below[held], color=paint[place],
                linewidth=0,
            )  # fmt: skip
            below += counts[:, place]
        axis.set_title(title, fontsize=8.5)
        axis.set_xlabel("Client ID")
        axis.set_xticks(few_ticks(len(counts)))
        axis.set_xlim(-0.6, len(counts) - 0.4)
        light_grid(axis)
    axes[0].set_ylabel("Samples")
    if len(class_names) <= 20:
        figure.legend(
            [Patch(color=colour, linewidth=0) for colour in paint],
            [shortened(name) for name in class_names],
            loc="outside right center", title="Class", title_fontsize=7.5,
            frameon=False, fontsize=7, ncols=math.ceil(len(class_names) / 12), reverse=True,
        )  # fmt: skip
    save(figure, path, note=note)
