"""The common look of all figures. Needs matplotlib (``nmoe-flower[report]``).

Colours are those of Okabe and Ito, which colour-blind readers tell apart; where more are needed, a
perceptually even map. Nothing here touches matplotlib's global state, so figures can be drawn from
any thread, without a display.
"""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nmoe_flower.errors import NMoEError
from nmoe_flower.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREY", "INK", "ORANGE", "colours", "few_ticks", "light_grid", "new", "save"]

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8C8C8C", "#333333"
_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9",
    "#D55E00", "#F0E442", "#6A4C93", "#999999", "#1B1B1B",
)  # fmt: skip


def new(width: float, height: float) -> "Figure":
    """An empty figure, inches; needs no display and no pyplot.

    Raises:
        NMoEError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise NMoEError("figures need matplotlib: pip install 'nmoe-flower[report]'") from None
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Give every axis the common look and write the PNG, atomically."""
    for axis in figure.axes:
        axis.tick_params(labelsize=7, width=0.6, length=2.5, color=GREY)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set_fontsize(8)
        for side, spine in axis.spines.items():
            spine.set_linewidth(0.6)
            spine.set_color(GREY)
            spine.set_visible(side in {"left", "bottom"} or bool(axis.images))
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    write_bytes(path, data.getvalue())


def light_grid(axis: "Axes", *, which: Literal["both", "x", "y"] = "y") -> None:
    """Thin grey lines below everything else."""
    axis.grid(axis=which, color="#E3E3E3", linewidth=0.6)
    axis.set_axisbelow(True)


def few_ticks(count: int) -> range:
    """Places 0 to ``count - 1``, about a dozen of them.

    >>> list(few_ticks(3)), list(few_ticks(30))
    ([0, 1, 2], [0, 3, 6, 9, 12, 15, 18, 21, 24, 27])
    """
    return range(0, count, max(1, math.ceil(count / 12)))


def colours(count: int) -> list[Any]:
    """As many colours as there are classes."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0.03, 0.97, count)))
