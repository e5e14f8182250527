"""Names beside marks: each near its own, none upon another, upon a mark or outside."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nmoe_flower.report.canvas import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

__all__ = ["Mark", "write_names"]

_DISTANCES = (5.0, 9.0, 14.0, 20.0, 28.0, 38.0, 50.0, 64.0, 80.0, 100.0)  # points
_ANGLES = (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90)
_FAR = 12.0  # points from which on a thin line leads to the mark
_SIZE = 3.5  # half a mark


class Mark(NamedTuple):
    """A mark on an axis, and what it is called.

    Attributes:
        name: The text beside it.
        x: Where it stands; None: it is a line across.
        y: How high it stands, in units of the axis.
        reach: How far an error bar goes up and down, in units of y.
    """

    name: str
    x: float | None
    y: float
    reach: float = 0.0


def write_names(axis: "Axes", marks: Sequence[Mark]) -> None:
    """Write every name where there is room; the layout must not move the axis any more.

    Args:
        axis: Drawn, with its final limits.
        marks: All that is on it.
    """
    from matplotlib.text import Annotation

    figure = axis.get_figure(root=True)
    assert figure is not None
    point = figure.dpi / 72  # in pixels
    inside = axis.get_window_extent()
    taken = [_box(axis, mark, point) for mark in marks]
    # The crowded ones first: who has room finds it anyway.
    for at in sorted(range(len(marks)), key=lambda at: -_near(taken, at)):
        mark = marks[at]
        text = axis.annotate(mark.name, (0, 0), fontsize=6, color="black", annotation_clip=False)
        size = text.get_window_extent()
        text.remove()
        best: tuple[float, Bbox, float] | None = None
        for box, far in _candidates(axis, mark, (size.width, size.height), point):
            hidden = sum(_shared(box, other) for other in taken)
            outside = box.width * box.height - _shared(box, inside)
            if best is None or hidden + outside < best[0] - 1e-6:
                best = hidden + outside, box, far
            if best[0] <= 1e-6:
                break
        assert best is not None
        _, box, far = best
        taken.append(box)
        left, low = axis.transAxes.inverted().transform((box.x0, box.y0))
        axis.text(left, low, mark.name, transform=axis.transAxes, fontsize=6, va="bottom", zorder=6)
        if far > _FAR and mark.x is not None:
            x, y = axis.transData.transform((mark.x, mark.y))
            nearest = min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)
            middle = axis.transAxes.inverted().transform(nearest)
            axis.add_artist(
                Annotation("", (mark.x, mark.y), tuple(middle), "data", "axes fraction",
                           arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4,
                                       "shrinkA": 0.5, "shrinkB": 3}, zorder=1)
            )  # fmt: skip


def _box(axis: "Axes", mark: Mark, point: float) -> "Bbox":
    """What a mark covers, in pixels."""
    from matplotlib.transforms import Bbox

    inside, half = axis.get_window_extent(), _SIZE * point
    (x, low), (_, high) = axis.transData.transform(
        [(mark.x or 1.0, mark.y - mark.reach), (mark.x or 1.0, mark.y + mark.reach)]
    )
    if mark.x is None:
        return Bbox.from_extents(inside.x0, low - point, inside.x1, high + point)
    return Bbox.from_extents(x - half, low - half, x + half, high + half)


def _near(boxes: Sequence["Bbox"], at: int) -> int:
    """How many others lie near one."""
    mine = boxes[at].expanded(6, 4)
    return sum(bool(mine.overlaps(other)) for other in boxes)


def _candidates(
    axis: "Axes", mark: Mark, size: tuple[float, float], point: float
) -> Iterator[tuple["Bbox", float]]:
    """Boxes of a text around a mark, the nearest first, and how far they are, in points."""
    from matplotlib.transforms import Bbox

    width, height = size
    inside = axis.get_window_extent()
    if mark.x is None:
        _, y = axis.transData.transform((1.0, mark.y))
        for step in range(40):
            x = inside.x1 - width - 2 * point - step * (inside.width - width) / 40
            yield Bbox.from_bounds(x, y + 1.5 * point, width, height), 0.0
            yield Bbox.from_bounds(x, y - 1.5 * point - height, width, height), 0.0
        return
    x, y = axis.transData.transform((mark.x, mark.y))
    for far in _DISTANCES:
        for angle in _ANGLES:
            turn, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            # The text's edge that looks at the mark is that far away, in its middle if above it.
            left = x + far * point * turn - width * (0.5 - 0.5 * _sign(turn))
            low = y + far * point * up - height * (0.5 - 0.5 * _sign(up))
            yield Bbox.from_bounds(left, low, width, height), far


def _sign(part: float) -> float:
    return 0.0 if abs(part) < 0.1 else math.copysign(1.0, part)


def _shared(one: "Bbox", other: "Bbox") -> float:
    """The area that two boxes share, in square pixels."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(wide, 0.0) * max(high, 0.0))
