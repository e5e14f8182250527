"""Tables and figures of a study as parts of a page: to sort, and to point at."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nmoe_flower.report.html import (
    COLOURS,
    MINUS,
    MISSING,
    AxisChoice,
    Charts,
    DotRow,
    Dots,
    LineSeries,
    Maps,
    PagePart,
    Prose,
    Said,
    SortableTable,
    TableCell,
    TableColumn,
    dot_chart,
    heat_map,
    line_chart,
    number_cell,
)
from nmoe_flower.study.comparisons import Comparison
from nmoe_flower.study.figures import Figure, Series
from nmoe_flower.study.labels import is_number
from nmoe_flower.study.sweep import SweepTable
from nmoe_flower.study.tables import IN_THE_NOISE, Cell, Column, StudyTable, without_absent
from nmoe_flower.study.writing import sentence

__all__ = ["figure_parts", "table_part", "words_part"]

_NO_NUMBER = ("-", "", "failed", "missing", "skipped")


# --- tables ---


def table_part(table: StudyTable) -> SortableTable:
    """A table of the study: ours, and beside it the published value and the difference."""
    columns = [TableColumn(_head(head), words=True) for head in table.heads]
    for column in table.columns:
        columns += _columns(column)
    rows = [
        [
            *(TableCell(label.replace("`", "")) for label in line.labels),
            *(
                cell
                for one, column in zip(line.cells, table.columns, strict=True)
                for cell in _cells(one, column)
            ),
        ]
        for line in table.lines
    ]
    return SortableTable(table.title, columns, rows, _beneath(table.notes))


def _beneath(notes: Sequence[str]) -> list[str]:
    """Notes as the page has them: its head says which runs are not there, and a dash is longer."""
    dashes = (f"{MISSING}{note[1:]}" if note.startswith("-:") else note for note in notes)
    return without_absent(dashes)


def _head(text: str) -> str:
    """What stands above a column: never nothing, for it can be sorted by."""
    plain = text.replace("`", "") or "number"
    return plain[0].upper() + plain[1:]


def _columns(column: Column) -> list[TableColumn]:
    *above, last = column.labels or ("",)
    if not column.shows:
        return [TableColumn(last.replace("`", "") or "Value", group=", ".join(above))]
    group = ", ".join(filter(None, column.labels))
    return [TableColumn("ours", group=group), TableColumn("paper", group=group)]


def _cells(cell: Cell, column: Column) -> list[TableCell]:
    """Ours and, where the table shows it, the published value with what ours has more."""
    if not column.shows:
        return [_ours(cell)]
    more = cell.difference
    if cell.paper is None or more is None:
        return [_ours(cell), TableCell(cell.paper_text.replace("-", MISSING), tone="p")]
    tone = "same" if cell.within_noise else "better" if more >= 0 else "worse"
    tone = "" if cell.within_noise is None else tone
    shown = number_cell(more, digits=cell.decimals, signed=True).text
    shown += f" {IN_THE_NOISE}" if cell.within_noise else ""
    return [_ours(cell), TableCell(cell.paper_text, shown, tone=f"p {tone}".strip())]


def _ours(cell: Cell) -> TableCell:
    text = cell.text.removesuffix(cell.counted).rstrip()
    if text in ("failed", "missing"):
        return TableCell(text, tone="failed", about=cell.note)
    if text == "-":
        return TableCell(MISSING, about=cell.note)
    mean, _, spread = text.partition(" ± ")
    mean = mean if cell.words else mean.replace("-", MINUS)
    beside = f"± {spread}\n{cell.counted}".rstrip() if spread else cell.counted  # a line on paper
    return TableCell(mean, beside, about=cell.note)


def words_part(table: Comparison | SweepTable) -> SortableTable:
    """A table that is words already."""
    lines = table.lines
    numbers = [_is_numbers([line[at] for line in lines]) for at in range(len(table.header))]
    columns = [
        TableColumn(_head(head), words=not number)
        for head, number in zip(table.header, numbers, strict=True)
    ]
    rows = [
        [
            _from_words(text, verdict=at == len(line) - 1, number=number)
            for at, (text, number) in enumerate(zip(line, numbers, strict=True))
        ]
        for line in lines
    ]
    return SortableTable(table.title, columns, rows, _beneath(table.notes))


def _is_numbers(texts: Sequence[str]) -> bool:
    """Whether a column is of numbers, some of which may not be there."""
    words = [text.partition(" ")[0].replace(",", "") for text in texts if text not in _NO_NUMBER]
    return bool(words) and all(map(is_number, words))


def _from_words(text: str, *, verdict: bool, number: bool) -> TableCell:
    if text in ("-", ""):
        return TableCell(MISSING)
    if text in _NO_NUMBER:
        return TableCell(text, tone="failed")
    if number:
        mean, _, spread = text.partition(" ± ")
        key = mean.partition(" ")[0] if " " in mean else None
        return TableCell(mean.replace("-", MINUS), f"± {spread}" if spread else "", key=key)
    tones = {"higher": "better", "lower": "worse", "within the noise": "same"}
    return TableCell(text, tone=tones.get(text, "") if verdict else "")


# --- figures ---


def figure_parts(figure: Figure) -> list[PagePart]:
    """A figure to point at, or why there is nothing in it."""
    notes = [sentence("; ".join(figure.notes))] if figure.notes else []
    if figure.kind == "routing":
        maps = [
            heat_map(
                panel.shares,
                title=panel.label or figure.title,
                said=sentence(
                    ", ".join(
                        [f"local ratio {100 * panel.local_ratio:.1f} %"]
                        + [f"{name} {value:.3f}" for name, value in panel.scores]
                    )
                ),
                say="Client {r} asks expert {c} for {v} of its samples.",
                row_title="Client",
                column_title="Expert",
                own=len(panel.shares) == len(panel.shares[0]) > 1,
            )
            for panel in figure.panels
        ]
        if not maps:
            return _nothing(figure, notes)
        return [Maps(maps, f"{figure.title}: share of a client's samples", notes)]
    drawn = [series for series in figure.series if series.points]
    if not drawn:
        return _nothing(figure, notes)
    if figure.kind == "scatter":
        told = [(f"{one.label}: {p.x:.3g} {figure.x}", p) for one in drawn for p in one.points]
        drawn = [Series("", tuple(replace(point, x=label) for label, point in told))]
    if figure.kind in ("dots", "scatter"):
        return [Dots([_dots(figure, drawn)], notes)]
    return [Charts([AxisChoice(figure.x, [_lines(figure, drawn)])], notes)]


def _nothing(figure: Figure, notes: Sequence[str]) -> list[PagePart]:
    """In place of a figure: why there is nothing in it."""
    return [Prose([Said(" ".join(notes), f"{figure.title}.")])]


def _lines(figure: Figure, drawn: Sequence[Series]) -> Any:
    """Lines over numbers or names; where numbers lie far apart, evenly by their logarithms."""
    names = list(figure.categories)

    def place(x: float | str) -> float:
        if names:
            return float(names.index(str(x)))
        return math.log10(float(x)) if figure.log else float(x)

    known = dict.fromkeys(point.x for series in drawn for point in series.points)
    stops = sorted((place(x), x if isinstance(x, str) else f"{x:g}") for x in known)
    series = []
    for one in drawn:
        errors = [point.se or 0.0 for point in one.points]
        means = [point.mean for point in one.points]
        spread = any(errors)
        series.append(
            LineSeries(
                one.label or figure.y,
                [place(point.x) for point in one.points],
                means,
                [m - e for m, e in zip(means, errors, strict=True)] if spread else (),
                [m + e for m, e in zip(means, errors, strict=True)] if spread else (),
            )
        )
    share = all(0 <= point.mean <= 1 for one in drawn for point in one.points)
    across = f"{figure.x} (log scale)" if figure.log else figure.x
    return line_chart(
        f"{figure.title}: {figure.y}",
        series,
        x_title=across,
        share=share,
        stops=() if figure.kind == "rounds" else stops,
    )


def _dots(figure: Figure, drawn: Sequence[Series]) -> Any:
    """A row for each name and series; below a head for each name where there are several series."""
    names = list(figure.categories)
    if not names:
        places = dict.fromkeys(point.x for one in drawn for point in one.points)
        named = all(isinstance(place, str) for place in places)
        names = [str(p) for p in places] if named else sorted({f"{p:g}" for p in places}, key=float)
    several, coloured = len(drawn) > 1, len(drawn) <= COLOURS
    rows = []
    for name in names:
        rows += [DotRow(name, "head", (), math.nan)] if several else []
        for at, one in enumerate(drawn):
            for point in one.points:
                if (point.x if isinstance(point.x, str) else f"{point.x:g}") == name:
                    e = point.se
                    ends = [] if e is None else [point.mean - e, point.mean + e]
                    kind = f"k{at if coloured else 0}"
                    rows.append(DotRow(one.label if several else name, kind, ends, point.mean))
    return dot_chart(f"{figure.title}: {figure.y}", rows, what="end of the error bar")
