"""What a page is made of: prose, tables, charts, commands. Templates know one way to show each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from nmoe_flower.report.html.charts import DotChart, HeatMap, LineChart

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = [
    "FEW",
    "MISSING",
    "AxisChoice",
    "Charts",
    "Command",
    "Dots",
    "Fold",
    "Maps",
    "Page",
    "PagePart",
    "PageSection",
    "Picture",
    "Prose",
    "Said",
    "SortableTable",
    "TableCell",
    "TableColumn",
    "folded",
    "number_cell",
]

FEW = 3  # configurations, at most, whose parts are open from the start
MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_MANY = 15  # rows, from which on a table has a filter
_WIDE = 10  # columns, from which on paper is turned for a table


@dataclass(frozen=True)
class Said:
    """A paragraph.

    Attributes:
        text: Sentences, as plain text.
        first: The sentence before them that matters most, set strong.
        tone: How the first sentence is coloured: ``warning`` or nothing.
        more: What a reader opens to see, at the head of a page.
    """

    text: str
    first: str = ""
    tone: str = ""
    more: str = ""


@dataclass(frozen=True)
class Prose:
    """Paragraphs, or the points of a list."""

    kind: ClassVar[str] = "prose"
    points: Sequence[Said]
    listed: bool = False


@dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    Attributes:
        title: What the head says.
        words: It holds words, which stand on the left; otherwise numbers, which stand on the right.
        group: What stands above it and its neighbours of the same group.
        about: What the head says when it is pointed at.
    """

    title: str
    words: bool = False
    group: str = ""
    about: str = ""


@dataclass(frozen=True)
class TableCell:
    """What stands in a table.

    Attributes:
        text: As it is read.
        spread: Goes after it, smaller.
        mark: A dagger, explained below the table.
        key: What the column is sorted by, where the text does not say it.
        strong: The best of its kind.
        tone: How it is coloured: ``better``, ``worse``, ``same``, ``failed`` or nothing.
        about: What is told when it is pointed at.
    """

    text: str
    spread: str = ""
    mark: str = ""
    key: str | None = None
    strong: bool = False
    tone: str = ""
    about: str = ""


@dataclass(frozen=True)
class SortableTable:
    """A table that can be sorted by each of its columns; the first column names the row."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[TableColumn]
    rows: Sequence[Sequence[TableCell]]
    notes: Sequence[str] = ()

    @property
    def filtered(self) -> bool:
        """Whether there are so many rows that a reader wants to see only some."""
        return len(self.rows) > _MANY

    @property
    def wide(self) -> bool:
        """Whether it has so many columns that it is printed across."""
        return len(self.columns) >= _WIDE

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The groups above the columns, each with how many it spans; nothing without any."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = column.group, found[-1][1] + 1
            else:
                found.append((column.group, 1))
        return found if any(name for name, _ in found) else []


@dataclass(frozen=True)
class AxisChoice:
    """One choice of the horizontal axis, and the charts over it."""

    name: str
    charts: Sequence[LineChart]


@dataclass(frozen=True)
class Charts:
    """Line charts whose horizontal axis the reader chooses."""

    kind: ClassVar[str] = "charts"
    axes: Sequence[AxisChoice]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Dots:
    """Dot charts beside each other."""

    kind: ClassVar[str] = "dots"
    charts: Sequence[DotChart]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Maps:
    """Heat maps beside each other, with one legend."""

    kind: ClassVar[str] = "maps"
    maps: Sequence[HeatMap]
    legend_title: str
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """An image that was drawn elsewhere, as SVG that this package made."""

    kind: ClassVar[str] = "figure"
    title: str
    svg: "Markup"


@dataclass(frozen=True)
class Command:
    """A command line to copy."""

    kind: ClassVar[str] = "command"
    title: str
    text: str


@dataclass(frozen=True)
class FormattedText:
    """Markdown that was made into HTML."""

    kind: ClassVar[str] = "text"
    html: "Markup"


@dataclass(frozen=True)
class Fold:
    """Parts that a reader opens; ``about`` says beside the title what is in them."""

    kind: ClassVar[str] = "fold"
    title: str
    parts: Sequence["PagePart"]
    about: str = ""
    open: bool = False


PagePart = Prose | SortableTable | Charts | Dots | Maps | Picture | Command | FormattedText | Fold


@dataclass(frozen=True)
class PageSection:
    """A section with its heading."""

    anchor: str
    title: str
    parts: Sequence[PagePart]


@dataclass(frozen=True)
class Fact:
    """A number at the head of the page."""

    name: str
    value: str
    about: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: The heading of the page.
        under: What stands below it, small.
        lead: The summary in words, what matters most first.
        facts: A few numbers.
        sections: The rest; empty ones are left out.
    """

    title: str
    under: str
    lead: Sequence[Said]
    facts: Sequence[Fact] = ()
    sections: Sequence[PageSection] = field(default_factory=tuple)


def number_cell(
    value: float | None,
    spread: float | None = None,
    *,
    digits: int = 3,
    strong: bool = False,
    signed: bool = False,
    tone: str = "",
) -> TableCell:
    """A number with its spread, or the dash that stands for none.

    >>> number_cell(0.87351, 0.004).text, number_cell(float("nan")).text
    ('0.874', '–')
    >>> number_cell(-0.0132, signed=True).text, number_cell(1566.0, digits=0).text
    ('−0.013', '1,566')
    """
    if value is None or not math.isfinite(value):
        return TableCell(MISSING)
    shown = f"{value:{'+' if signed else ''},.{digits}f}"
    if float(shown.replace(",", "")) == 0:
        shown = shown.lstrip("+-")
    after = "" if spread is None or not math.isfinite(spread) else f"± {spread:.{digits}f}"
    return TableCell(shown.replace("-", MINUS), after, strong=strong, tone=tone)


def folded(
    folds: Sequence[tuple[str, PagePart]], about: Mapping[str, str] = MappingProxyType({})
) -> list[PagePart]:
    """Parts of several configurations, each to be opened; that of a single one as it is.

    Args:
        folds: The part of each configuration, with its title.
        about: By title, what stands beside it.
    """
    if len(folds) <= 1:
        return [part for _, part in folds]
    return [Fold(name, [part], about.get(name, ""), open=len(folds) <= FEW) for name, part in folds]
