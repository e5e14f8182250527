"""The common look of all figures. Needs matplotlib (the extra ``report``).

Colours are those of Okabe and Ito, which colour-blind readers tell apart; where more are needed, a
perceptually even map. Nothing here touches matplotlib's global state, so figures can be drawn from
any thread, without a display.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import NMoEError
from nmoe_flower.files import write_bytes
from nmoe_flower.installation import install_hint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREY",
    "INK",
    "ORANGE",
    "colours",
    "count_rounds",
    "few_ticks",
    "light_grid",
    "line_colours",
    "new",
    "resolution",
    "save",
    "shortened",
    "write_shares",
]

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8C8C8C", "#333333"
_NEAR = 0.4  # values that begin below this part of the highest leave 0 on the axis
_NOTHING, _DARK = 0.005, 0.55  # shares that round to 0, and those that need white letters
_LONGEST = 20  # letters of a name in a legend
_DOTS: ContextVar[int] = ContextVar("dots", default=200)  # an inch
_YELLOW = "#F0E442"
_WITHOUT_DATE: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9",
    "#D55E00", _YELLOW, "#6A4C93", "#999999", "#1B1B1B",
)  # fmt: skip


@contextmanager
def resolution(dots: int) -> Iterator[None]:
    """Draw figures with ``dots`` dots an inch within, in this thread alone; else they have 200."""
    before = _DOTS.set(dots)
    try:
        yield
    finally:
        _DOTS.reset(before)


def new(width: float, height: float) -> "Figure":
    """An empty figure, inches; needs no display and no pyplot.

    Raises:
        NMoEError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise NMoEError(f"figures need matplotlib: {install_hint('report')}") from None
    figure = Figure(figsize=(width, height), dpi=_DOTS.get(), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(
    figure: "Figure", path: Path, *, note: str = "", last: Callable[[], None] | None = None
) -> None:
    """Give every axis the common look and write the file, atomically.

    An axis of numbers starts at 0 where that costs little; every other says where it starts.

    Args:
        figure: From `new`, drawn.
        path: The file to write; its suffix says what: ``.png``, ``.pdf`` or ``.svg``.
        note: What the whole figure stands for, as its seeds; small, above everything.
        last: Draws what depends on where everything is; nothing moves after that.
    """
    from matplotlib.text import Text

    for axis in figure.axes:
        if not axis.images and axis.axison and axis.get_label() != "<colorbar>":
            _say_where_it_starts(axis)
        axis.tick_params(labelsize=7, width=0.6, length=2.5, color=GREY)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set_fontsize(8)
        for side, spine in axis.spines.items():
            spine.set_linewidth(0.6)
            spine.set_color(GREY)
            spine.set_visible(side in {"left", "bottom"} or bool(axis.images))
    if note:
        figure.suptitle(note, fontsize=6.5, color=GREY, x=0.995, ha="right")
    for text in figure.findobj(Text):
        if "$" in text.get_text() and "\\mathdefault" not in text.get_text():
            text.set_parse_math(False)  # somebody's name, no formula
    if last is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        last()
    _write(figure, path)


def shortened(name: object, longest: int = _LONGEST) -> str:
    """A name for a legend: not longer than it can be, and never one that matplotlib leaves out.

    >>> shortened("a class with quite a name"), shortened("_background")
    ('a class with quite …', ' _background')
    """
    text = " ".join(str(name).split())
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return f" {text}" if text.startswith("_") else text


def _write(figure: "Figure", path: Path) -> None:
    data = io.BytesIO()
    kind = path.suffix.removeprefix(".")
    figure.savefig(data, format=kind, metadata=_WITHOUT_DATE[kind])
    write_bytes(path, data.getvalue())


def _say_where_it_starts(axis: "Axes") -> None:
    """Let axes begin at 0 or at a tick, and the labels of those that do not begin at 0 tell."""
    from matplotlib.ticker import FixedLocator

    for name, line, between in (("x", axis.xaxis, " "), ("y", axis.yaxis, "\n")):
        if isinstance(line.get_major_locator(), FixedLocator):
            continue  # names and numbers of clients, no amounts
        if line.get_scale() == "log":
            line.set_label_text(f"{line.get_label_text()}{between}(log scale)")
            continue
        low, high = sorted(line.get_view_interval())
        if getattr(axis, f"get_autoscale{name}_on")():
            least = min(line.get_data_interval())
            if math.isfinite(least):
                low = _start(least, high, line.get_major_locator().tick_values(least, high))
                getattr(axis, f"set_{name}lim")(low, high)
        if low:
            line.set_label_text(f"{line.get_label_text()}{between}(axis starts at {low:g})")


def _start(least: float, high: float, ticks: Sequence[float]) -> float:
    """Where an axis of values from ``least`` starts: at 0, or at the last tick before them.

    >>> _start(0.3, 1.0, [0.2, 0.4]), _start(0.74, 0.88, [0.70, 0.75]), _start(-3.1, 1.0, [-4, -2])
    (0.0, 0.7, -4.0)
    """
    if 0 <= least <= _NEAR * high:
        return 0.0
    places = np.asarray(ticks, dtype=float)
    below = places[places <= least + 1e-9 * (high - least)]  # 3 x 0.1 is more than 0.3
    return float(below[-1] if len(below) else least)


def write_shares(axis: "Axes", shares: npt.NDArray[np.float64], *, fontsize: float = 6) -> None:
    """Write every share into its cell of a heat map; next to nothing is a pale 0."""
    for (row, column), share in np.ndenumerate(shares):
        text = "0" if share < _NOTHING else f"{share:.2f}".lstrip("0")
        colour = "white" if share > _DARK else INK if share >= _NOTHING else "#B5B5B5"
        axis.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=colour)


def light_grid(axis: "Axes", *, which: Literal["both", "x", "y"] = "y") -> None:
    """Thin grey lines below everything else."""
    axis.grid(axis=which, color="#E3E3E3", linewidth=0.6)
    axis.set_axisbelow(True)


def count_rounds(axis: "Axes") -> None:
    """Make the horizontal axis one of rounds, which are whole and begin at 0; call it last."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("Round")
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlim(left=0)


def few_ticks(count: int) -> range:
    """Places 0 to ``count - 1``, about a dozen of them.

    >>> list(few_ticks(3)), list(few_ticks(30))
    ([0, 1, 2], [0, 3, 6, 9, 12, 15, 18, 21, 24, 27])
    """
    return range(0, count, max(1, math.ceil(count / 12)))


def line_colours(count: int) -> list[Any]:
    """As many colours as there are lines: no yellow, which a thin line on white loses."""
    dark = [colour for colour in _COLOURS if colour != _YELLOW]
    return dark[:count] if count <= len(dark) else colours(count)


def colours(count: int) -> list[Any]:
    """As many colours as there are classes."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0.03, 0.97, count)))
