"""Charts as numbers: where every mark of an SVG goes. The templates write the marks down.

Colours are classes, which the style sheet fills for light and dark; nothing here knows a colour.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = [
    "COLOURS",
    "DotChart",
    "DotRow",
    "HeatMap",
    "LineChart",
    "LineSeries",
    "Tick",
    "dot_chart",
    "heat_map",
    "line_chart",
    "nice_ticks",
]

COLOURS = 7  # of the style sheet, after which dashes tell lines apart
STEPS = 10  # shades of a heat map, the first of them for next to nothing

_WIDTH, _HEIGHT = 440.0, 236.0
_LETTER = 6.1  # of a label, on average
_LINE = 14.0  # between labels
_DIRECT = 8  # lines, at most, with a label of their own
_SHORT = 20  # letters of such a label
_FEW_POINTS = 24  # of a line, at most, that are dots, too
_POINTS = 160  # of a line, at most
_SHARES = (0.01, 0.03, 0.07, 0.13, 0.23, 0.35, 0.50, 0.65, 0.80)
_LONG = 30  # letters of the label of a row of dots
_NUMBERED = 12  # rows and columns, at most, whose numbers are written into the map


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what stands there."""

    at: float
    label: str


# --- lines ---


@dataclass(frozen=True)
class LineSeries:
    """One line to draw: its points in order of x, and the band around them, if any.

    Attributes:
        name: What the line is called.
        x: The places of its points along the axis.
        y: The values at these places.
        low: Lower end of the band at each point; empty: no band.
        high: Upper end of the band.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class DrawnLine:
    """A series on its place."""

    name: str
    colour: int
    dash: int
    path: str
    band: str
    bars: str
    dots: str
    label: str
    label_at: float
    xs: str
    ys: str
    last: str


@dataclass(frozen=True)
class LineChart:
    """Values over rounds, bytes, seconds, or the values of a setting.

    Attributes:
        title: What is drawn.
        x_title: What the horizontal axis counts.
        unit: What follows a number of that axis, as ``MB``.
        lines: The series, on their places.
        x_span: The first and the last value of the horizontal axis.
        stops: The only values of that axis with what they are called; empty: any number.
        direct: Whether lines have labels of their own.
    """

    title: str
    x_title: str
    unit: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[DrawnLine]
    x_span: tuple[float, float]
    stops: list[tuple[float, str]]
    direct: bool


def line_chart(
    title: str,
    series: Sequence[LineSeries],
    *,
    x_title: str,
    unit: str = "",
    share: bool = True,
    stops: Sequence[tuple[float, str]] = (),
) -> LineChart:
    """Lay out lines; the horizontal axis begins at 0, the vertical one where the values do.

    Args:
        title: What is drawn.
        series: What to draw; points that are no number are left out.
        x_title: What the horizontal axis counts.
        unit: What follows a number of that axis.
        share: Values are fractions, and the axis ends at 1 at most.
        stops: The only places of points along the axis, with their labels, from left to right. The
            axis begins and ends a little beyond them, and bands become bars.
    """
    drawn = [_thinned(one) for one in series]
    drawn = [one for one in drawn if one.x]
    values = [v for one in drawn for v in (*one.y, *one.low, *one.high)]
    y_low, y_high, y_ticks = _span(values, share=share)
    if stops:
        room = 0.08 * (stops[-1][0] - stops[0][0]) or 1.0
        x_low, x_high = stops[0][0] - room, stops[-1][0] + room
    else:
        x_low, x_high = 0.0, max((one.x[-1] for one in drawn), default=1.0) or 1.0
    direct = 1 < len(drawn) <= _DIRECT
    names = [_shortened(one.name) for one in drawn]
    margin = max(map(len, names)) * _LETTER + 14 if direct and names else 14.0
    left, right = 44.0, _WIDTH - min(margin, 140.0)
    top, bottom = 12.0, _HEIGHT - 36.0

    def across(x: float) -> float:
        return left + (right - left) * (x - x_low) / (x_high - x_low)

    def up(y: float) -> float:
        return bottom - (bottom - top) * (y - y_low) / (y_high - y_low)

    ends = [up(one.y[-1]) for one in drawn]
    labels = _spread(ends, top, bottom) if direct else ends
    lines = []
    for place, one in enumerate(drawn):
        points = [(across(x), up(y)) for x, y in zip(one.x, one.y, strict=True)]
        highs = [(across(x), up(y)) for x, y in zip(one.x, one.high, strict=False)]
        lows = [(across(x), up(y)) for x, y in zip(one.x, one.low, strict=False)]
        bars = "".join(
            f"M{_at(x)} {_at(high)}V{_at(low)}"
            for (x, high), (_, low) in zip(highs, lows, strict=True)
        )
        few = len(points) <= _FEW_POINTS
        lines.append(
            DrawnLine(
                one.name,
                place % COLOURS,
                place // COLOURS % 3,
                _path(points),
                _path([*highs, *reversed(lows)]) + "z" if highs and not stops else "",
                bars if stops else "",
                "".join(f"M{_at(x)} {_at(y)}h0" for x, y in points) if few else "",
                names[place],
                round(labels[place], 1),
                " ".join(f"{x:.5g}" for x in one.x),
                " ".join(f"{y:.4g}" for y in one.y),
                f"{one.y[-1]:.3f}",
            )
        )
    plain = [(x, _plain(x)) for x in nice_ticks(0.0, x_high, 5)]
    marks = _apart(stops, across) if stops else plain
    return LineChart(
        title, x_title, unit, _WIDTH, _HEIGHT, left, right, top, bottom,
        [Tick(round(across(x), 1), text) for x, text in marks],
        [Tick(round(up(y), 1), _plain(y)) for y in y_ticks],
        lines, (x_low, x_high), [(float(f"{x:.5g}"), label) for x, label in stops], direct,
    )  # fmt: skip


def _apart(
    stops: Sequence[tuple[float, str]], across: Callable[[float], float]
) -> list[tuple[float, str]]:
    """The stops whose labels have room, from the left."""
    found: list[tuple[float, str]] = []
    free = -math.inf
    for x, label in stops:
        half = len(_shortened(label)) * _LETTER / 2 + 3
        if across(x) - half >= free:
            found.append((x, _shortened(label)))
            free = across(x) + half
    return found


def _thinned(series: LineSeries) -> LineSeries:
    """Without what is no number, and with no more points than anybody can see."""
    parts = [series.x, series.y, *([series.low, series.high] if series.low else [])]
    good = [i for i in range(len(series.x)) if all(math.isfinite(part[i]) for part in parts)]
    if len(good) > _POINTS:
        step = (len(good) - 1) / (_POINTS - 1)
        good = [good[round(step * i)] for i in range(_POINTS)]
    kept = [[float(part[i]) for i in good] for part in parts]
    return LineSeries(series.name, *kept)


def _span(values: Sequence[float], *, share: bool) -> tuple[float, float, list[float]]:
    """Where a vertical axis begins and ends, and its ticks; at 0 if that costs little."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-9:  # a level line runs through the middle
        low, high = low - 0.1 * (abs(low) or 1.0), high + 0.1 * (abs(high) or 1.0)
        high = min(high, 1.0) if share else high
    low = 0.0 if 0 <= low <= 0.4 * high else low
    ticks = nice_ticks(low, high, 5, around=True)
    if share and high <= 1:
        ticks = [tick for tick in ticks if tick <= 1]
    return ticks[0], max(ticks[-1], high), ticks


def nice_ticks(low: float, high: float, most: int, *, around: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most about ``most`` of them.

    Args:
        low: Where the axis begins.
        high: Where it ends.
        most: How many there may be.
        around: The first at or below ``low``, the last at or above ``high``.

    >>> nice_ticks(0, 2000, 5), nice_ticks(0.62, 0.93, 5, around=True)
    ([0.0, 500.0, 1000.0, 1500.0, 2000.0], [0.6, 0.7, 0.8, 0.9, 1.0])
    """
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    near = 1e-9
    first = math.floor(low / step + near) if around else math.ceil(low / step - near)
    last = math.ceil(high / step - near) if around else math.floor(high / step + near)
    return [round(number * step, 10) + 0.0 for number in range(first, last + 1)]


def _spread(places: Sequence[float], top: float, bottom: float) -> list[float]:
    """Move labels apart until none covers another; their order stays."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = [0.0] * len(places)
    least = top - 4
    for i in order:
        found[i] = max(places[i], least)
        least = found[i] + _LINE
    most = bottom + 4
    for i in reversed(order):
        found[i] = min(found[i], most)
        most = found[i] - _LINE
    return found


def _path(points: Sequence[tuple[float, float]]) -> str:
    """An SVG path through points."""
    return "M" + "L".join(f"{_at(x)} {_at(y)}" for x, y in points)


def _at(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _plain(value: float) -> str:
    """A tick's number.

    >>> _plain(0.30000000000000004), _plain(2000.0), _plain(315000.0)
    ('0.3', '2,000', '315,000')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _shortened(name: str) -> str:
    text = " ".join(name.split())
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


# --- heat maps ---


@dataclass(frozen=True)
class Shade:
    """All cells of one shade, as one path; they are told apart by what the pointer is over."""

    step: int
    path: str


@dataclass(frozen=True)
class CellNumber:
    """What is written into a cell."""

    x: float
    y: float
    text: str
    step: int


@dataclass(frozen=True)
class HeatMap:
    """A matrix as shades, its numbers under the pointer.

    Attributes:
        title: What is drawn.
        said: What is said of the whole map, and where no cell is pointed at.
        say: What is said of a cell; ``{r}`` row, ``{c}`` column, ``{v}`` value, ``{s}`` the
            row's sum.
        own: The outline of the diagonal, or empty.
        values: The numbers, row by row: shares in 1/10000, counts as they are.
    """

    title: str
    said: str
    say: str
    row_title: str
    column_title: str
    rows: list[str]
    columns: list[str]
    share: bool
    values: str
    width: float
    height: float
    left: float
    top: float
    cell: float
    shades: list[Shade]
    numbers: list[CellNumber]
    own: str
    row_ticks: list[Tick]
    column_ticks: list[Tick]
    slanted: bool
    sums: list[Tick]
    legend: list[str]

    @property
    def named(self) -> bool:
        """Whether rows or columns are called otherwise than by their number."""
        return self.rows != _numbers(len(self.rows)) or self.columns != _numbers(len(self.columns))


def heat_map(
    matrix: Sequence[Sequence[float]],
    *,
    title: str,
    said: str,
    say: str,
    row_title: str,
    column_title: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    share: bool = True,
    own: bool = False,
    of_row: bool = False,
    most: float | None = None,
) -> HeatMap:
    """Lay out a matrix.

    Args:
        matrix: Shares between 0 and 1, or counts, rows of equal length.
        title: What is drawn.
        said: What is said of the whole map.
        say: What is said of a cell, see `HeatMap`.
        row_title: What a row is.
        column_title: What a column is.
        rows: Names of the rows; left out: 0, 1, ...
        columns: Names of the columns; left out: 0, 1, ...
        share: The values are shares; otherwise counts, shaded up to ``most``.
        own: Outline the diagonal.
        of_row: Shade counts by their share of the row, and write the row's sum beside it.
        most: The count of the darkest shade; left out: the largest.
    """
    height, width = len(matrix), len(matrix[0])
    names_down, names_across = list(rows) or _numbers(height), list(columns) or _numbers(width)
    cell = min(max(336 / max(height, width), 4.0), 27.0)
    slanted = names_across != _numbers(width) and max(map(len, names_across)) > 2
    down = max(len(_shortened(name)) for name in names_down)
    left, top = 24.0 + min(down, 12) * _LETTER, 4.0
    deepest = max(len(_shortened(name)) for name in names_across) * _LETTER
    below = 22.0 + (0.75 * deepest if slanted else 14.0)
    highest = most or max(map(max, matrix)) or 1.0
    sums = [sum(row) for row in matrix] if of_row else []

    def step(row: int, value: float) -> int:
        if share or of_row:
            part = value / (sums[row] or 1.0) if of_row else value
            return bisect_right(_SHARES, part + 1e-9) if part > 0 else 0
        return _of_count(value, highest)

    shades: dict[int, list[str]] = {}
    numbers = []
    numbered = max(height, width) <= _NUMBERED
    for r, row in enumerate(matrix):
        start = 0
        while start < width:
            shade, end = step(r, row[start]), start + 1
            while end < width and step(r, row[end]) == shade:
                end += 1
            if shade:
                path = f"M{_at(left + start * cell)} {_at(top + r * cell)}"
                path += f"h{_at((end - start) * cell)}v{_at(cell)}h-{_at((end - start) * cell)}z"
                shades.setdefault(shade, []).append(path)
            start = end
        if numbered:
            for c, value in enumerate(row):
                text = _in_cell(value, share=share)
                if text:
                    x, y = left + (c + 0.5) * cell, top + (r + 0.5) * cell
                    numbers.append(CellNumber(round(x, 1), round(y, 1), text, step(r, value)))
    edges = ""
    if own:
        edges = "".join(
            f"M{_at(left + i * cell + 0.5)} {_at(top + i * cell + 0.5)}"
            f"h{_at(cell - 1)}v{_at(cell - 1)}h-{_at(cell - 1)}z"
            for i in range(min(height, width))
        )
    each = " ".join(
        str(round(value * 10000) if share else round(value)) for row in matrix for value in row
    )
    beside = max((len(f"{total:,}") for total in sums), default=0) * _LETTER + 8
    return HeatMap(
        title, said, say, row_title, column_title, names_down, names_across, share, each,
        round(left + width * cell + beside, 1), round(top + height * cell + below + 4, 1),
        left, top, cell,
        [Shade(shade, "".join(paths)) for shade, paths in sorted(shades.items())],
        numbers, edges,
        [Tick(round(top + (i + 0.5) * cell, 1), _shortened(names_down[i])[:12])
         for i in _few(height, cell)],
        [Tick(round(left + (i + 0.5) * cell, 1), _shortened(names_across[i]))
         for i in _few(width, cell)],
        slanted,
        [Tick(round(top + (i + 0.5) * cell, 1), f"{sums[i]:,}")
         for i in _few(height, cell) if of_row],
        _legend_of_shares() if share or of_row else _legend_of_counts(highest),
    )  # fmt: skip


def _numbers(count: int) -> list[str]:
    return [str(place) for place in range(count)]


def _few(count: int, cell: float) -> range:
    """Which rows get a tick: all if there is room, otherwise every second, fifth or tenth."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * cell >= 12)
    return range(0, count, step)


def _of_count(value: float, most: float) -> int:
    """The shade of a count: 0 has the first alone, the others share what is left evenly.

    >>> _of_count(0, 30), _of_count(1, 30), _of_count(30, 30)
    (0, 1, 9)
    """
    return 0 if value <= 0 else min(STEPS - 1, 1 + int((STEPS - 1) * value / most * 0.99999))


def _in_cell(value: float, *, share: bool) -> str:
    """A share in per cent without its sign, nothing for less than half of one."""
    if share:
        return f"{100 * value:.0f}" if value > 0.005 else ""
    if value < 10_000:
        return f"{value:.0f}" if value else ""
    return f"{value / 1000:.0f}k"


def _legend_of_shares() -> list[str]:
    edges = ["0", *(f"{100 * edge:.0f}" for edge in _SHARES), "100"]
    return [f"{low} to {high} %" for low, high in itertools.pairwise(edges)]


def _legend_of_counts(most: float) -> list[str]:
    """What each shade stands for, as `_of_count` gives them; shades without a count are empty."""
    found: list[list[int]] = [[] for _ in range(STEPS)]
    for count in range(int(most) + 1):
        found[_of_count(count, most)].append(count)
    ends = [(of[0], of[-1]) if of else None for of in found]
    return [
        "" if of is None else f"{of[0]}" if of[0] == of[1] else f"{of[0]} to {of[1]}" for of in ends
    ]


# --- dots ---


@dataclass(frozen=True)
class DotRow:
    """One line of a dot chart: what it is, its values, and their mean.

    Attributes:
        label: What the line is.
        kind: What colours it: ``gate``, ``upper bound``, ``control``, ``baseline``, or ``k0`` to
            ``k6``, the colours of lines; ``head``: only the label, above the rows that follow.
        values: One per client or seed, as small dots.
        mean: The large one.
    """

    label: str
    kind: str
    values: Sequence[float]
    mean: float


@dataclass(frozen=True)
class Dot:
    """A row on its place."""

    label: str
    kind: str
    y: float
    dots: str
    at: float
    number: str
    said: str


@dataclass(frozen=True)
class DotChart:
    """Values of many things under each other."""

    title: str
    width: float
    height: float
    left: float
    right: float
    bottom: float
    ticks: list[Tick]
    rows: list[Dot]
    mark: Tick | None
    notes: list[str]


def dot_chart(
    title: str, rows: Sequence[DotRow], *, mark: tuple[float, str] | None = None, what: str
) -> DotChart:
    """Lay out rows of dots; the axis begins at a round number below the least and says so.

    Args:
        title: What is drawn.
        rows: From top to bottom.
        mark: A value that a line is drawn at, and what it is.
        what: What a small dot is, as ``client``.
    """
    rows = [row for row in rows if math.isfinite(row.mean) or row.kind == "head"]
    values = [v for row in rows for v in (*row.values, row.mean) if math.isfinite(v)]
    low, high, ticks = _span(values, share=max(values, default=0.0) <= 1)
    step = 19.0
    labels = [min(len(row.label), _LONG) for row in rows if row.kind != "head"]
    left = 14.0 + max(labels, default=0) * _LETTER
    right, top = _WIDTH - 46.0, 14.0

    def across(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    placed, y, before = [], top, ""
    for row in rows:
        colour = row.kind.startswith("k")
        y += 8.0 if before not in {"", row.kind} and not colour else 0.0
        before = row.kind
        if row.kind == "head":
            placed.append(Dot(row.label, "head", y, "", 0.0, "", row.label))
            y += step
            continue
        inside = [value for value in row.values if math.isfinite(value)]
        spread = f", {what}s from {min(inside):.3f} to {max(inside):.3f}" if inside else ""
        placed.append(
            Dot(
                row.label,
                row.kind,
                y,
                "".join(f"M{_at(across(value))} {_at(y)}h0" for value in inside),
                round(across(row.mean), 1),
                f"{row.mean:.3f}",
                f"{row.label}: {row.mean:.3f}{spread}",
            )
        )
        y += step
    bottom = y - step + 14.0
    return DotChart(
        title, _WIDTH, bottom + 24.0, left, right, bottom,
        [Tick(round(across(tick), 1), _plain(tick)) for tick in ticks],
        placed,
        None if mark is None else Tick(round(across(mark[0]), 1), mark[1]),
        [f"Small dots: one {what} each." if any(row.values for row in rows) else ""],
    )  # fmt: skip
