"""The tables of a study: rows of ``table.json`` laid out by whatever dimensions the file names.

A `StudyTable` is plain data: heads, lines of cells, notes. Renderers (`nmoe_flower.study.markup`,
the HTML page) add nothing to it and leave nothing out.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nmoe_flower.plurals import how_many, one_or_many
from nmoe_flower.report import Estimate
from nmoe_flower.study.declared import NUMBER, TableSpec
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.rows import Row

__all__ = [
    "IN_THE_NOISE",
    "Cell",
    "Column",
    "Line",
    "StudyTable",
    "absent_in_words",
    "beside_paper_in_words",
    "cell_of",
    "fill_table",
    "without_absent",
]

Status = Literal["measured", "partial", "failed", "missing", "none"]
Shown = Literal["paper", "difference"]
_FEWER, _WHOLE = 10, 100  # means from here on are shown with one decimal, and without any
FAILED, MISSING = "Failed", "Missing"  # before the names of runs
NOTHING = "-: the study has no such run, or it does not measure this."
_NAMED = 12  # variants with missing runs; `nmoe study plan` lists them all


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        status: ``measured``: all seeds that were asked for; ``partial``: some of them;
            ``failed``: none, and at least one run failed; ``missing``: none, and no run failed;
            ``none``: the study has no such run, or it does not measure this.
        mean: Mean over the seeds; None if there is no number.
        se: The standard error; None for one seed.
        n: Seeds that count.
        asked: Seeds of the study.
        paper: The published value; None if there is none.
        words: What the cell says if it is text and no number, as a setting may be.
        note: Which seeds are missing, and why others failed; empty if all is there.
        digits: How many decimals a fraction is shown with.
        row: Where the numbers come from, with the value of every seed; None with ``none``.
    """

    status: Status
    mean: float | None = None
    se: float | None = None
    n: int = 0
    asked: int = 0
    paper: float | None = None
    words: str = ""
    note: str = ""
    digits: int = 3
    row: Row | None = None

    @property
    def difference(self) -> float | None:
        """What we have more than the paper; None if one of both is not known."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper

    @property
    def within_noise(self) -> bool | None:
        """Whether the paper's value lies in our own 95 % interval; None if one of both is not."""
        if self.difference is None:
            return None
        return Estimate(self.difference, self.se, self.n).within_noise

    @property
    def decimals(self) -> int:
        """How many decimals are shown: ``digits`` of a fraction, fewer of large numbers."""
        known = [abs(value) for value in (self.mean, self.paper) if value is not None]
        size = max(known, default=0.0)
        return 0 if size >= _WHOLE else min(self.digits, 1) if size >= _FEWER else self.digits

    @property
    def _is_tiny(self) -> bool:
        """Whether nothing of it would be left after so many decimals."""
        return self.mean is not None and self.mean != 0 and abs(self.mean) < 0.5 / 10**self.digits

    @property
    def counted(self) -> str:
        """How many seeds a mean has if not all, and how many failed: ``(n = 1, 2 failed)``."""
        if self.status != "partial" or self.mean is None:
            return ""
        failed = len(self.row.failed) if self.row else 0
        return f"(n = {self.n}, {failed} failed)" if failed else f"(n = {self.n})"

    @property
    def text(self) -> str:
        """The cell in words: ``0.873 ± 0.002``, ``0.873 (n = 1)``, ``failed``, ``missing``, ``-``.

        >>> Cell("measured", 0.8731, 0.0021, 3, 3).text, Cell("partial", 0.8731, None, 1, 3).text
        ('0.873 ± 0.002', '0.873 (n = 1)')
        >>> Cell("failed").text, Cell("none").text, Cell("measured", 1028.4, None, 1, 1).text
        ('failed', '-', '1,028')
        """
        if self.words:
            return self.words
        if self.mean is None:
            return "-" if self.status in ("none", "measured") else self.status
        if self._is_tiny:
            return f"{self.mean:.{max(self.digits, 1)}g} {self.counted}".rstrip()
        same = self.digits == 0 and not self.se  # a setting, or a count that all seeds share
        spread = "" if self.se is None or same else f" ± {self.se:,.{self.decimals}f}"
        return f"{self.mean:,.{self.decimals}f}{spread} {self.counted}".rstrip()

    @property
    def paper_text(self) -> str:
        """The published value in words; ``-`` if there is none."""
        return "-" if self.paper is None else f"{self.paper:,.{self.decimals}f}"

    @property
    def difference_text(self) -> str:
        """The difference to the published value, with its sign; ``-`` if there is none.

        >>> Cell("measured", 0.51, 0.01, 3, 3, paper=0.5).difference_text
        '+0.010 ≈'
        """
        if self.difference is None:
            return "-"
        sign = f" {IN_THE_NOISE}" if self.within_noise else ""
        return f"{self.difference:+,.{self.decimals}f}{sign}"


@dataclass(frozen=True)
class Column:
    """One column of cells.

    Attributes:
        labels: What stands above it, outermost dimension first; empty where all columns share it.
        shows: What is shown beside its values: ``paper``, ``difference``. Only what at least one
            of its cells has.
    """

    labels: tuple[str, ...]
    shows: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class Line:
    """One line: its labels, and a cell for each column."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class StudyTable:
    """A table as plain data.

    Attributes:
        name: The name of the files.
        title: What stands above it.
        heads: Above the labels of the lines, one for each.
        columns: The columns of cells, from left to right.
        lines: From top to bottom; each has as many labels as there are heads and as many cells as
            there are columns.
        notes: Sentences below it: what is the same in all cells, the seeds, what is missing.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


Place = tuple[Any, ...]
IN_THE_NOISE = "≈"
"""What stands behind a difference that may be noise: a sign, which print and ears keep, too."""


@dataclass(frozen=True)
class _Entry:
    """A row that belongs into a table, and where.

    Attributes:
        row: The row, of the seeds that are meant.
        seed: The seed, where seeds are a dimension.
        number: Which of the table's numbers it is, if it has numbers of its own.
        digits: Decimals.
    """

    row: Row
    seed: int | None
    number: str
    digits: int

    def at(self, dimension: str) -> Any:
        """Where it stands in a dimension."""
        if dimension == "seed":
            return self.seed
        return self.number if dimension == NUMBER else self.row.at(dimension)

    def place(self, dimensions: Sequence[str]) -> Place:
        """Where it stands in several."""
        return tuple(self.at(dimension) for dimension in dimensions)


def fill_table(table: TableSpec, rows: Sequence[Row], labels: Labels) -> StudyTable:
    """Put rows into a table, as its file declares it.

    Lines and columns stand in the order of the file; those without any row are left out, but for
    those of a number that the file names.
    """
    chosen = list(_chosen(table, rows))
    down, along = (_places(part, table, chosen, labels) for part in (table.rows, table.columns))
    cells: dict[tuple[Place, Place], Cell] = {}
    for entry in chosen:
        for line in _fitting(entry.place(table.rows), down):
            for column in _fitting(entry.place(table.columns), along):
                cells[line, column] = cell_of(entry.row, entry.seed, digits=entry.digits)
    lines = tuple(
        Line(
            tuple(labels.of_value(d, v) for d, v in zip(table.rows, line, strict=True)),
            tuple(cells.get((line, column), Cell("none", digits=table.digits)) for column in along),
        )
        for line in down
    )
    above = [
        tuple(labels.of_value(d, v, alone=True) for d, v in zip(table.columns, column, strict=True))
        for column in along
    ]
    telling = _telling(above)
    columns = tuple(
        Column(
            tuple(label for label, tells in zip(head, telling, strict=True) if tells),
            _shows(table, [line.cells[at] for line in lines]),
        )
        for at, head in enumerate(above)
    )
    heads = tuple(labels.of_dimension(dimension) for dimension in table.rows)
    notes = [
        *_shared(table, chosen, above, telling, labels),
        *cells_in_words([cell for line in lines for cell in line.cells]),
        *beside_paper_in_words(
            [
                cell
                for line in lines
                for cell, column in zip(line.cells, columns, strict=True)
                if column.shows
            ]
        ),
    ]
    return StudyTable(table.name, table.heading, heads, columns, lines, tuple(notes))


def _chosen(table: TableSpec, rows: Iterable[Row]) -> Iterator[_Entry]:
    """The rows that belong into the table; each once per seed if seeds are a dimension."""
    by_seed = "seed" in (*table.rows, *table.columns)
    seeds = table.where.get("seed")
    where = {name: values for name, values in table.where.items() if name != "seed"}
    for row in rows:
        if not all(row.stands(name, values) for name, values in where.items()):
            continue
        one = row if seeds is None else row.of_seeds(seeds)
        for number, digits in _numbers(table, row):
            for seed in one.asked if by_seed else (None,):
                yield _Entry(one, seed, number, digits)


def _numbers(table: TableSpec, row: Row) -> list[tuple[str, int]]:
    """Which of a table's numbers a row is, and their decimals; without a name if none has one."""
    if not table.numbers:
        asked = {"gate": table.gates, "test": table.tests, "metric": table.metrics}
        there = all(row.stands(name, values) for name, values in asked.items())
        return [("", table.digits)] if there else []
    return [
        (number.label, table.digits if number.digits is None else number.digits)
        for number in table.numbers
        if (row.gate, row.test, row.metric) == (number.gate, number.test, number.metric)
    ]


def _fitting(place: Place, known: Sequence[Place]) -> list[Place]:
    """The places of the table where a row stands: one, or those of all gates and tests."""
    if place in known:
        return [place]
    return [k for k in known if all(p in ("", q) for p, q in zip(place, k, strict=True))]


def _places(
    dimensions: Sequence[str], table: TableSpec, chosen: Sequence[_Entry], labels: Labels
) -> list[Place]:
    """Every place that has a row, or a number, each dimension in the order of the file."""
    found = list(dict.fromkeys(entry.place(dimensions) for entry in chosen))
    there = {entry.number for entry in chosen}
    for number in table.numbers if NUMBER in dimensions else ():
        if number.label not in there:
            at = {NUMBER: number.label, "gate": number.gate, "test": number.test,
                  "metric": number.metric}  # fmt: skip
            places = (tuple(map(at.get, dimensions, place)) for place in found)
            found = list(dict.fromkeys((*found, *places)))
    # What has no gate or test stands beside those that have one, if there are any.
    whole = [place for place in found if not _is_half(place, dimensions)]
    halves = [p for p in found if _is_half(p, dimensions) and not _fitting(p, whole)]
    listed = {"gate": table.gates, "test": table.tests, "metric": table.metrics}
    listed |= {NUMBER: tuple(number.label for number in table.numbers)}
    return sorted(
        whole + halves,
        key=lambda place: [
            labels.order(d, value, listed.get(d, ()))
            for d, value in zip(dimensions, place, strict=True)
        ],
    )


def _is_half(place: Place, dimensions: Sequence[str]) -> bool:
    return any(d in ("gate", "test") and not v for d, v in zip(dimensions, place, strict=True))


def cell_of(row: Row, seed: int | None = None, *, digits: int = 3) -> Cell:
    """The cell of a row, or of one of its seeds."""
    row = row if seed is None else row.of_seeds([seed])
    found, asked = row.estimate, len(row.asked)
    status: Status = "failed" if row.failed else "missing" if row.missing else "none"
    if row.each:
        status = "measured" if len(row.each) == asked else "partial"
    if found is None:
        return Cell(status, asked=asked, paper=row.paper, words=row.text, note=_note(row), row=row,
                    digits=digits)  # fmt: skip
    counts = all(isinstance(value, int) for value in row.each.values()) and not found.se
    return Cell(status, found.mean, found.se, found.n, asked, row.paper, note=_note(row), row=row,
                digits=0 if counts else digits)  # fmt: skip


def _note(row: Row) -> str:
    """What is not there, and why."""
    told = {"failed": row.failed_in_words, "missing": row.missing_in_words}
    return "; ".join(f"{word}: {note}" for word, note in told.items() if note)


def _telling(heads: Sequence[Sequence[str]]) -> list[bool]:
    """Which labels of the columns tell them apart; one at least, if there are any."""
    kept = [len(set(level)) > 1 for level in zip(*heads, strict=True)]
    return kept if any(kept) or not kept else [*kept[:-1], True]


def _shows(table: TableSpec, cells: Sequence[Cell]) -> tuple[Shown, ...]:
    return () if all(cell.paper is None for cell in cells) else tuple(table.show)


def _shared(
    table: TableSpec,
    chosen: Sequence[_Entry],
    heads: Sequence[Sequence[str]],
    telling: Sequence[bool],
    labels: Labels,
) -> Iterator[str]:
    """What is the same in all cells, where no head tells it."""
    same_heads = [label for label, tells in zip(heads[0], telling, strict=True) if not tells] if (
        heads
    ) else []  # fmt: skip
    for dimension in ("metric", "gate", "test"):
        values = {entry.at(dimension) for entry in chosen} - {""}
        open_to = dimension not in (*table.rows, *table.columns) and not table.numbers
        if open_to and len(values) == 1:
            same_heads.append(labels.of_value(dimension, values.pop(), alone=True))
    if same_heads:
        text = ", ".join(label for label in same_heads if label)
        yield f"{text[0].upper()}{text[1:]}."


def cells_in_words(cells: Sequence[Cell]) -> Iterator[str]:
    """What the cells of a table stand for: their seeds, and what is not there."""
    rows = [cell.row for cell in cells if cell.row is not None]
    seeds = sorted({seed for row in rows for seed in row.asked})
    if any(cell.se is not None for cell in cells):
        yield f"Mean ± standard error over seeds {', '.join(map(str, seeds))}."
    elif len(seeds) == 1 and any(cell.mean is not None for cell in cells):
        yield f"Seed {seeds[0]} alone: there is no estimate of the noise."
    if any(cell.status == "partial" for cell in cells):
        yield "n: how many seeds count, where that is not all of them."
    if any(cell.text == "-" for cell in cells):
        yield NOTHING
    yield from absent_in_words(rows)


def beside_paper_in_words(cells: Sequence[Cell]) -> Iterator[str]:
    """How many differences to published values may be noise, as far as our own seeds tell."""
    known = [cell.within_noise for cell in cells if cell.difference is not None]
    judged = [one for one in known if one is not None]
    if judged:
        noise = sum(judged)
        yield (
            f"Of {how_many(len(judged), 'difference')} to a published value {noise} "
            f"{one_or_many(noise, 'lies', 'lie')} within our own 95 % interval"
            + (f" ({IN_THE_NOISE})." if noise else ".")
        )
    open_ = [cell for cell in cells if cell.difference is not None and cell.within_noise is None]
    if any(cell.n == 1 for cell in open_):
        yield "From one seed beside a published value no order follows."
    if any(cell.n > 1 for cell in open_):
        yield "Where all seeds say the same there is no estimate of the noise."


def absent_in_words(rows: Iterable[Row], *, most: int = _NAMED) -> Iterator[str]:
    """Which runs failed, and why, and which are missing, ``most`` of them by name."""
    rows = list(rows)
    failed = dict.fromkeys(row.failed_in_words for row in rows if row.failed)
    missing = dict.fromkeys(row.missing_in_words for row in rows if row.missing)
    more = len(missing) - most
    named = [*list(missing)[:most], *([f"and {more} more"] if more > 0 else [])]
    for word, notes in ((FAILED, list(failed)), (MISSING, named)):
        if notes:
            yield f"{word}: {'; '.join(notes)}."


def without_absent(notes: Iterable[str]) -> list[str]:
    """Notes but for those that name runs: where one says at the head which are not there."""
    return [note for note in notes if not note.startswith((f"{FAILED}: ", f"{MISSING}: "))]
