"""The figures of a study: what is drawn as plain data, and the drawing of it.

A `Figure` is plain data, for matplotlib here and for whoever draws it elsewhere. Marks are
means over the seeds, bars and bands reach one standard error to either side; a single seed has
none.
"""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nmoe_flower.plurals import how_many, one_or_many
from nmoe_flower.report import Mark, canvas, estimate, seeds_in_words, write_names
from nmoe_flower.study.curves import Curve, RoutingMap
from nmoe_flower.study.declared import FigureSpec
from nmoe_flower.study.labels import Labels, is_number
from nmoe_flower.study.measured import asking_gates_of
from nmoe_flower.study.product import StudyRun, same, selects
from nmoe_flower.study.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Figure", "Panel", "Point", "Series", "draw_figure", "fill_figure"]

_MARKS = ("o", "s", "D", "^", "v", "P", "X")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.2)))
_ACROSS = {"round": "rounds", "bytes": "bytes", "seconds": "seconds"}
_ANNOTATED = 12  # experts, at most, whose shares are written into a map
_MAPS_IN_A_LINE = 4
_NAMED = 4  # variants, at most, whose runs a note names
_MEGA = 1e6


@dataclass(frozen=True)
class Point:
    """One mark: a mean over seeds.

    Attributes:
        x: Where it stands: a number, or the label of a value that is none.
        mean: The mean.
        se: The standard error; None for one seed.
        n: How many seeds count.
    """

    x: float | str
    mean: float
    se: float | None
    n: int


@dataclass(frozen=True)
class Series:
    """One line or colour: its label, and its points from left to right."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """One heat map: from each client (row) to each expert (column), and what stands above it.

    Attributes:
        label: Which variant, gate, test.
        shares: [clients, experts]; rows sum to 1.
        local_ratio: The mean of the diagonal.
        scores: What else is known of it, as macro F1: by its label.
    """

    label: str
    shares: tuple[tuple[float, ...], ...]
    local_ratio: float
    scores: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure as plain data.

    Attributes:
        name: The name of the files.
        title: What stands above it.
        kind: lines, dots, rounds, scatter: `series`; routing: `panels`.
        x: What the horizontal axis is.
        y: What the vertical axis is; with dots, which lie, the other way round.
        series: The lines, or the colours of dots.
        panels: The heat maps.
        notes: What it stands for: seeds, bars, what is missing.
        log: Whether the horizontal axis is logarithmic, as its values are.
        categories: The values along the axis if they are no numbers, in order; else empty.
    """

    name: str
    title: str
    kind: str
    x: str = ""
    y: str = ""
    series: tuple[Series, ...] = ()
    panels: tuple[Panel, ...] = ()
    notes: tuple[str, ...] = ()
    log: bool = False
    categories: tuple[str, ...] = ()


def fill_figure(
    figure: FigureSpec,
    rows: Sequence[Row],
    labels: Labels,
    *,
    curves: Sequence[Curve] = (),
    routing: Sequence[RoutingMap] = (),
    runs: Sequence[StudyRun] = (),
) -> Figure:
    """What a figure shows.

    Args:
        figure: As its file declares it.
        rows: The study's rows.
        labels: What things are called.
        curves: How the runs went; for rounds.
        routing: Who asked whom; for routing.
        runs: The runs whose curves and routing may be told, finished or not: notes name those that
            have none.
    """
    if figure.kind == "routing":
        return _maps(figure, rows, labels, routing, runs)
    if figure.kind == "rounds":
        return _curves(figure, labels, curves, runs)
    if figure.kind == "scatter":
        return _scatter(figure, rows, labels)
    return _lines(figure, rows, labels)


@dataclass(frozen=True)
class _Mark:
    """A row that a figure shows; of one of its seeds, where seeds are a dimension."""

    row: Row
    seed: int | None

    def at(self, dimension: str) -> Any:
        """Where it stands in a dimension."""
        return self.seed if dimension == "seed" else self.row.at(dimension)


def _marks(figure: FigureSpec, rows: Sequence[Row]) -> Iterator[_Mark]:
    """The rows that a figure shows, each of the seeds that are meant."""
    where = _where(figure)
    seeds = where.pop("seed", None)
    for row in rows:
        if row.metric == figure.y and all(row.stands(d, v) for d, v in where.items()):
            one = row if seeds is None else row.of_seeds(seeds)
            for seed in one.asked if _by_seed(figure) else (None,):
                yield _Mark(one if seed is None else one.of_seeds([seed]), seed)


def _by_seed(figure: FigureSpec) -> bool:
    return "seed" in (figure.x, *figure.series)


def _lines(figure: FigureSpec, rows: Sequence[Row], labels: Labels) -> Figure:
    chosen = list(_marks(figure, rows))
    found: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for one in chosen:
        key = tuple(one.at(d) for d in figure.series)
        found.setdefault(key, {})[one.at(figure.x)] = one.row
    xs = list(dict.fromkeys(x for points in found.values() for x in points))
    xs.sort(key=lambda x: labels.order(figure.x, x))
    values = {x: number for x in xs if (number := _number(x)) is not None}
    numbers = len(values) == len(xs)
    if numbers:
        xs.sort(key=lambda x: values[x])
    places = {x: values[x] if numbers else labels.of_value(figure.x, x) for x in xs}
    series, there = [], set()
    for key in _in_order(found, figure, labels):
        marks = [
            Point(places[x], e.mean, e.se, e.n)
            for x in xs
            if x in found[key] and (e := found[key][x].estimate) is not None
        ]
        there |= {point.x for point in marks}
        series.append(Series(_label(figure, key, labels), tuple(marks)))
    return Figure(
        figure.name, figure.heading, figure.kind, labels.of_dimension(figure.x),
        _y_label(figure, labels), tuple(series), notes=tuple(_row_notes(figure, chosen)),
        log=numbers and _is_geometric(list(values.values())),
        categories=tuple(
            dict.fromkeys(x for x in places.values() if isinstance(x, str) and x in there)
        ),
    )  # fmt: skip


def _scatter(figure: FigureSpec, rows: Sequence[Row], labels: Labels) -> Figure:
    """A mark for each series, at what it cost a device."""
    chosen = list(_marks(figure, rows))
    found = {tuple(one.at(d) for d in figure.series): one.row for one in chosen}
    series = []
    for key in _in_order(found, figure, labels):
        row = found[key]
        cost = _spent(figure, row)
        if (e := row.estimate) is not None and cost is not None:
            cost = max(0.0, cost - _before(figure, row, rows))
            place = cost / (_MEGA if figure.x == "bytes" else 1)
            series.append(Series(_label(figure, key, labels), (Point(place, e.mean, e.se, e.n),)))
    places = [float(point.x) for one in series for point in one.points if point.x]
    across = "MB per device" if figure.x == "bytes" else "exchanges"
    if figure.since:
        across += f" since {labels.of_value('variant', figure.since, alone=True)}"
    return Figure(
        figure.name, figure.heading, figure.kind, across, _y_label(figure, labels),
        tuple(series), notes=tuple(_row_notes(figure, chosen)), log=_is_geometric(places),
    )  # fmt: skip


def _spent(figure: FigureSpec, row: Row) -> float | None:
    return row.bytes_per_device if figure.x == "bytes" else row.exchanges


def _before(figure: FigureSpec, row: Row, rows: Sequence[Row]) -> float:
    """What it cost to come to where the variant ``since`` stands, in the setting of a row."""
    starts = [one for one in rows if one.variant == figure.since and one.values == row.values]
    return max((_spent(figure, one) or 0.0 for one in starts), default=0.0)


def _number(value: Any) -> float | None:
    """A value of an axis as a finite number, where it is one or the name of one.

    >>> _number("20"), _number(0.5), _number("iid"), _number("inf"), _number(True)
    (20.0, 0.5, None, None, None)
    """
    return float(value) if is_number(str(value)) else None


def _where(figure: FigureSpec) -> dict[str, tuple[Any, ...]]:
    chosen = {"gate": figure.gate, "test": figure.test}
    return {**figure.where, **{d: (value,) for d, value in chosen.items() if value}}


def _label(figure: FigureSpec, key: tuple[Any, ...], labels: Labels) -> str:
    told: list[str] = []
    for dimension, value in zip(figure.series, key, strict=True):
        name = labels.of_value(dimension, value, alone=True)
        if not any(_letters(one).startswith(_letters(name)) for one in told):
            told.append(name)  # FedEM's gate fedem says nothing more
    return ", ".join(told)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _in_order(
    keys: Sequence[tuple[Any, ...]] | dict[tuple[Any, ...], Any], figure: FigureSpec, labels: Labels
) -> list[tuple[Any, ...]]:
    return sorted(
        keys,
        key=lambda key: [labels.order(d, v) for d, v in zip(figure.series, key, strict=True)],
    )


def _y_label(figure: FigureSpec, labels: Labels) -> str:
    test = f", {labels.of_value('test', figure.test)}" if figure.test else ""
    return f"{labels.of_value('metric', figure.y)}{test}"


def _row_notes(figure: FigureSpec, marks: Sequence[_Mark]) -> Iterator[str]:
    rows = [one.row for one in marks]
    seeds = sorted({seed for row in rows for seed in row.each})
    yield _of_seeds(figure, seeds)
    fewer = sum(len(row.asked) < len(seeds) for row in rows)
    if fewer and not _by_seed(figure):
        yield f"{fewer} of {how_many(len(rows), 'mark')} of fewer seeds"
    if any(row.estimate is not None and row.estimate.se is not None for row in rows):
        yield "bars: standard error"
    absent = [row for row in rows if row.failed or row.missing]
    if absent:
        folders = {row.folder for row in absent}
        yield f"runs missing or failed in {len(folders)} of {len({row.folder for row in rows})}"


def _of_seeds(figure: FigureSpec, seeds: Sequence[int]) -> str:
    """What a mark stands for: the mean over the seeds that are there, or each by itself."""
    if not seeds:
        return "nothing is there to be drawn"
    if _by_seed(figure) and len(seeds) > 1:
        return f"each seed by itself: {', '.join(map(str, seeds))}"
    return seeds_in_words(seeds)


def _without(runs: Sequence[StudyRun], there: Container[tuple[str, int]], what: str) -> list[str]:
    """Which runs have left nothing to draw: the note that says so, if there are any."""
    gone: dict[str, list[int]] = {}
    for run in runs:
        if (run.variant, run.seed) not in there:
            gone.setdefault(run.variant, []).append(run.seed)
    if not gone:
        return []
    if len(gone) > _NAMED:
        count = sum(map(len, gone.values()))
        return [f"no {what} of {count} of {how_many(len(runs), 'run')}"]
    told = (f"{folder} {one_or_many(len(seeds), 'seed')} {', '.join(map(str, sorted(seeds)))}"
            for folder, seeds in gone.items())  # fmt: skip
    return [f"no {what} of {'; '.join(told)}"]


def _meant(figure: FigureSpec, runs: Sequence[StudyRun]) -> list[StudyRun]:
    return [run for run in runs if selects(figure.where, run)]


def _of_run(one: StudyRun | Curve | RoutingMap) -> tuple[Any, ...]:
    """What a run shares with what it leaves, whatever its folder is called."""
    named = one.named if isinstance(one, StudyRun) else one.variant
    return named, *one.values.values()


def _is_geometric(xs: Sequence[float]) -> bool:
    """Whether numbers lie far apart, so that a plain axis would heap the small ones.

    >>> _is_geometric([5, 10, 20, 50]), _is_geometric([1, 2, 3]), _is_geometric([0, 1, 100])
    (True, False, False)
    """
    return len(xs) > 2 and min(xs) > 0 and max(xs) / min(xs) >= 10


def _curves(
    figure: FigureSpec, labels: Labels, curves: Sequence[Curve], runs: Sequence[StudyRun]
) -> Figure:
    across = _ACROSS[figure.x]
    chosen = [
        curve for curve in curves
        if curve.metric == figure.y
        and all(any(same(curve.at(d), v) for v in values) for d, values in _where(figure).items())
    ]  # fmt: skip
    found: dict[tuple[Any, ...], list[Curve]] = {}
    for curve in chosen:
        found.setdefault(tuple(curve.at(d) for d in figure.series), []).append(curve)
    series, shorter = [], []
    for key in _in_order(found, figure, labels):
        label = _label(figure, key, labels)
        tests = min(len(curve.rounds) for curve in found[key])
        longest = max(found[key], key=lambda curve: len(curve.rounds))
        if tests < len(longest.rounds):
            ends = f"round {longest.rounds[tests - 1]:g} of {longest.rounds[-1]:g}"
            shorter.append(f"{label} to {ends}" if label else f"to {ends}")
        points = []
        for at in range(tests):
            e = estimate([curve.scores[at] for curve in found[key]])
            place = estimate([getattr(curve, across)[at] for curve in found[key]]).mean
            points.append(Point(place / (_MEGA if across == "bytes" else 1), e.mean, e.se, e.n))
        series.append(Series(label, tuple(points)))
    seeds = sorted({curve.seed for curve in chosen})
    notes = [_of_seeds(figure, seeds) if seeds else "no run kept its rounds"]
    if any(point.se is not None for one in series for point in one.points):
        notes.append("bands: standard error")
    if shorter:
        notes.append(f"drawn as far as all seeds go: {', '.join(shorter)}")
    meant = _meant(figure, runs)
    have = {(*_of_run(curve), curve.seed) for curve in chosen}
    there = {(run.variant, run.seed) for run in meant if (*_of_run(run), run.seed) in have}
    notes += _without(meant, there, "rounds") if seeds else []
    names = {"rounds": "round", "bytes": "MB per device", "seconds": "seconds of training"}
    return Figure(
        figure.name, figure.heading, figure.kind, names[across], _y_label(figure, labels),
        tuple(series), notes=tuple(notes),
    )  # fmt: skip


def _maps(
    figure: FigureSpec,
    rows: Sequence[Row],
    labels: Labels,
    routing: Sequence[RoutingMap],
    runs: Sequence[StudyRun],
) -> Figure:
    where = _where(figure)
    chosen = [one for one in routing if all(one.stands(d, v) for d, v in where.items())]
    chosen.sort(
        key=lambda one: [labels.order(d, one.at(d)) for d in (*figure.series, "gate", "test")]
    )
    several = [
        d for d in ("variant", *dict.fromkeys(a for one in chosen for a in one.values), "gate",
                    "test")
        if d in figure.series or len({one.at(d) for one in chosen}) > 1
    ]  # fmt: skip
    panels = []
    for one in chosen:
        label = ", ".join(labels.of_value(d, one.at(d), alone=True) for d in several)
        scores = [
            (labels.of_value("metric", row.metric), e.mean)
            for row in rows
            if row.metric == figure.y
            and all(row.at(d) == one.at(d) for d in ("variant", "gate", "test", *one.values))
            and (e := row.estimate) is not None
        ]
        panels.append(Panel(label, one.shares, one.local_ratio, tuple(scores)))
    seeds = sorted({seed for one in chosen for seed in one.seeds})
    gates = where.get("gate")
    meant = [
        run
        for run in _meant(figure, runs)
        if gates is None or {*gates} & {*asking_gates_of(run.config)}
    ]
    have = {(*_of_run(one), seed) for one in chosen for seed in one.seeds}
    there = {(run.variant, run.seed) for run in meant if (*_of_run(run), run.seed) in have}
    notes = [seeds_in_words(seeds) if seeds else "no routing is here: published runs keep none"]
    notes += _without(meant, there, "routing") if seeds else []
    return Figure(
        figure.name, figure.heading, "routing", "expert", "client", panels=tuple(panels),
        notes=tuple(notes),
    )  # fmt: skip


def draw_figure(figure: Figure, path: Path) -> None:
    """Draw a figure; the suffix of the file says whether PNG, PDF or SVG.

    Raises:
        NMoEError: matplotlib is missing, or the file cannot be written.
    """
    draw = {"routing": _draw_maps, "dots": _draw_dots, "scatter": _draw_scatter}
    draw.get(figure.kind, _draw_lines)(figure, path)


def _note(figure: Figure) -> str:
    return "; ".join(figure.notes)


def _draw_lines(figure: Figure, path: Path) -> None:
    lines = math.ceil(len(figure.series) / _legend_columns(figure))
    drawn = canvas.new(4.8, 3.0 + 0.17 * lines)
    axis = drawn.subplots()
    names = list(figure.categories)
    colours = canvas.line_colours(len(figure.series))
    for at, (series, colour) in enumerate(zip(figure.series, colours, strict=True)):
        xs = [names.index(str(p.x)) if names else float(p.x) for p in series.points]
        means = np.array([p.mean for p in series.points])
        errors = np.array([p.se or 0.0 for p in series.points])
        look = {"color": colour, "linestyle": _DASHES[at % len(_DASHES)],
                "linewidth": 1.3, "label": canvas.shortened(series.label, 40)}  # fmt: skip
        if figure.kind == "rounds":
            if errors.any():
                axis.fill_between(xs, means - errors, means + errors, color=colour, alpha=0.15,
                                  linewidth=0)  # fmt: skip
            axis.plot(xs, means, marker="o" if len(xs) < 30 else "", markersize=2.5, **look)
        else:
            axis.errorbar(xs, means, yerr=errors if errors.any() else None,
                          marker=_MARKS[at % len(_MARKS)], markersize=3.6, capsize=2,
                          elinewidth=0.9, **look)  # fmt: skip
    axis.set_xlabel(figure.x)
    axis.set_ylabel(figure.y)
    if figure.log:
        _log_axis(axis, figure)
    elif names:
        axis.set_xticks(range(len(names)), names)
    elif figure.kind == "rounds" and figure.x == "round":
        canvas.count_rounds(axis)
    canvas.light_grid(axis, which="both")
    _legend(drawn, axis, figure)
    canvas.save(drawn, path, note=_note(figure))


def _draw_scatter(figure: Figure, path: Path) -> None:
    """A mark for each series, its name beside it; what cost nothing is a line across."""
    drawn = canvas.new(5.6, 3.6)
    axis = drawn.subplots()
    marks = []
    colours = canvas.line_colours(len(figure.series))
    for at, (series, colour) in enumerate(zip(figure.series, colours, strict=True)):
        label = canvas.shortened(series.label, 40)
        for point in series.points:
            x = float(point.x) or None
            marks.append(Mark(label, x, point.mean, point.se or 0.0))
            if x is None:
                axis.axhline(point.mean, color=colour, linewidth=1.0,
                             linestyle=_DASHES[1 + at % (len(_DASHES) - 1)])  # fmt: skip
                continue
            axis.errorbar([x], [point.mean], yerr=point.se, linestyle="",
                          marker=_MARKS[at % len(_MARKS)], markersize=5, color=colour,
                          capsize=2, elinewidth=0.9)  # fmt: skip
    if figure.log:
        axis.set_xscale("log")
    axis.set_xlabel(f"{figure.x} (log scale)" if figure.log else figure.x)
    axis.set_ylabel(figure.y)
    canvas.light_grid(axis, which="both")
    canvas.save(drawn, path, note=_note(figure), last=lambda: write_names(axis, marks))


def _log_axis(axis: "Axes", figure: Figure) -> None:
    """A logarithmic axis with a tick where there is a point."""
    from matplotlib.ticker import FixedLocator, NullLocator

    xs = sorted({float(point.x) for series in figure.series for point in series.points})
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(xs))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(xs, [f"{x:g}" for x in xs])
    axis.set_xlabel(f"{figure.x} (log scale)")


def _draw_dots(figure: Figure, path: Path) -> None:
    names = list(figure.categories) or sorted(
        {f"{p.x:g}" for series in figure.series for p in series.points}, key=float
    )
    count = len(figure.series)
    legend = 0.17 * math.ceil(count / _legend_columns(figure))
    drawn = canvas.new(4.8, 0.9 + max(0.3, 0.1 * count + 0.1) * max(len(names), 1) + legend)
    axis = drawn.subplots()
    colours = canvas.line_colours(count)
    for at, (series, colour) in enumerate(zip(figure.series, colours, strict=True)):
        shift = min(0.8, 0.16 * count) * ((at + 0.5) / count - 0.5)
        ys = [names.index(p.x if isinstance(p.x, str) else f"{p.x:g}") + shift
              for p in series.points]  # fmt: skip
        errors = [p.se or 0.0 for p in series.points]
        axis.errorbar([p.mean for p in series.points], ys, xerr=errors if any(errors) else None,
                      linestyle="", marker=_MARKS[at % len(_MARKS)], markersize=4, color=colour,
                      capsize=1.8, elinewidth=0.9,
                      label=canvas.shortened(series.label, 40))  # fmt: skip
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel(figure.y)
    canvas.light_grid(axis, which="both")
    _legend(drawn, axis, figure)
    canvas.save(drawn, path, note=_note(figure))


def _legend(drawn: Any, axis: "Axes", figure: Figure) -> None:
    if any(series.label for series in figure.series):
        handles, names = axis.get_legend_handles_labels()
        drawn.legend(handles, names, loc="outside lower center", frameon=False, fontsize=7,
                     ncols=_legend_columns(figure), handlelength=2.2)  # fmt: skip


def _legend_columns(figure: Figure) -> int:
    """How many labels fit beside each other."""
    longest = max((len(series.label) for series in figure.series), default=0)
    return 3 if longest < 24 else 2


def _draw_maps(figure: Figure, path: Path) -> None:
    panels = figure.panels
    lines = max(1, -(-len(panels) // _MAPS_IN_A_LINE))
    columns = max(1, -(-len(panels) // lines))
    drawn = canvas.new(2.2 * columns + 0.9, 2.45 * lines + 0.2)
    drawn.set_layout_engine("compressed")
    axes = list(drawn.subplots(lines, columns, squeeze=False).flat)
    image = None
    for at, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        shares = np.asarray(panel.shares)
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        told = [f"LR = {100 * panel.local_ratio:.0f} %"]
        told += [f"{name} = {value:.3f}" for name, value in panel.scores]
        label = canvas.shortened(panel.label, 40)
        axis.set_title("\n".join(filter(None, (label, ", ".join(told)))), fontsize=7.5)
        axis.set_xticks(canvas.few_ticks(shares.shape[1]))
        axis.set_yticks(canvas.few_ticks(shares.shape[0]))
        axis.set_xlabel("Expert ID")
        if at % columns == 0:
            axis.set_ylabel("Client ID")
        if max(shares.shape) <= _ANNOTATED:
            canvas.write_shares(axis, shares, fontsize=4)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    if image is not None:
        bar = drawn.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
        bar.set_label("Share of the client's samples")
        bar.outline.set_linewidth(0.4)
    canvas.save(drawn, path, note=_note(figure))
