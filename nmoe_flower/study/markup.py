"""What a study found as Markdown, CSV and LaTeX: tables, comparisons, what a sweep chose."""

import csv
import io
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby

from nmoe_flower.report import grid
from nmoe_flower.study.comparisons import Comparison
from nmoe_flower.study.sweep import SweepTable
from nmoe_flower.study.tables import Cell, Column, StudyTable

__all__ = [
    "FORMATS",
    "Tabular",
    "latex_text",
    "table_to_csv",
    "table_to_latex",
    "table_to_markdown",
]

Tabular = StudyTable | Comparison | SweepTable

_CSV = ("gate", "test", "metric", "status", "n", "seeds", "mean", "se", "paper", "difference",
        "bytes_per_device", "exchanges", "note")  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "±": r"$\pm$", "≈": r"$\approx$", "τ": r"$\tau$", "ε": r"$\varepsilon$",
    "†": r"\dag{}", "‡": r"\ddag{}",
    "\u2212": "$-$", "\u2013": "--", "\u2014": "---", "\u00d7": r"$\times$", "…": r"\ldots{}",
}  # fmt: skip
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


def table_to_markdown(table: Tabular, *, without: Collection[str] = ()) -> str:
    """The table and its notes as Markdown, without its title and ``without`` some notes."""
    header, body = _plain_cells(table)
    lines = grid(
        [_markdown_text(text) for text in header],
        [[_markdown_text(text) for text in line] for line in body],
        words=_words(table),
    )
    for note in table.notes:
        if note not in without:
            lines += ["", _markdown_text(note)]
    return "\n".join(lines) + "\n"


def _plain_cells(table: Tabular) -> tuple[list[str], list[tuple[str, ...]]]:
    """The header and every line in words, as wide as each other."""
    if not isinstance(table, StudyTable):
        return list(table.header), list(table.lines)
    header = [*table.heads]
    for column in table.columns:
        header += _above(column)
    return header, [(*line.labels, *_texts(line.cells, table.columns)) for line in table.lines]


def _words(table: Tabular) -> int:
    """How many columns hold words, from the left; all others hold numbers."""
    if isinstance(table, SweepTable):
        return table.words
    return max(len(table.heads), 1)


def _above(column: Column) -> list[str]:
    return [", ".join(label for label in column.labels if label), *column.shows]


def _texts(cells: Sequence[Cell], columns: Sequence[Column]) -> Iterator[str]:
    """The cells of a line in words, with what is shown beside each."""
    for cell, column in zip(cells, columns, strict=True):
        yield cell.text
        for shown in column.shows:
            yield cell.paper_text if shown == "paper" else cell.difference_text


def _markdown_text(text: str) -> str:
    """Text that ends neither its cell nor its line."""
    return " ".join(text.replace("|", r"\|").split())


def table_to_csv(table: Tabular) -> str:
    """The table as tidy CSV with a header: one value a line, numbers whole, no value twice."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if isinstance(table, StudyTable):
        writer.writerows(_of_table(table))
    elif isinstance(table, Comparison):
        writer.writerows(_of_comparison(table))
    else:
        writer.writerows(_of_sweep(table))
    return text.getvalue()


def _of_table(table: StudyTable) -> Iterator[list[str]]:
    cells = [cell for line in table.lines for cell in line.cells]
    known = {id(cell.row): (cell, cell.row) for cell in cells if cell.row is not None}
    axes = list(dict.fromkeys(axis for _, row in known.values() for axis in row.values))
    yield ["variant", *axes, *_CSV]
    for cell, row in known.values():
        values = (
            row.variant, *(row.values.get(axis) for axis in axes), row.gate, row.test, row.metric,
            cell.status, cell.n, tuple(sorted(row.each)), cell.words or cell.mean, cell.se,
            cell.paper, cell.difference, row.bytes_per_device, row.exchanges, cell.note,
        )  # fmt: skip
        yield [_plain(value) for value in values]


def _of_comparison(table: Comparison) -> Iterator[list[str]]:
    names = ("of", "against", "n", "seeds", "of_mean", "against_mean", "difference", "se", "low",
             "high", "verdict")  # fmt: skip
    yield [*table.heads, *names]
    for pair in table.pairs:
        found, ends = pair.difference, pair.difference.interval if pair.difference else None
        means = [None if e is None else e.mean for e in (pair.of, pair.against)]
        values = (
            *pair.labels, table.of, table.against, len(pair.each), tuple(sorted(pair.each)), *means,
            *((found.mean, found.se) if found else (None, None)), *(ends or (None, None)),
            pair.verdict,
        )  # fmt: skip
        yield [_plain(value) for value in values]


def _of_sweep(table: SweepTable) -> Iterator[list[str]]:
    choices = table.choices
    rest = list(dict.fromkeys(d for choice in choices for d in choice.rest))
    axes = list(dict.fromkeys(a for c in choices for one in c.candidates for a in one.values))
    tests = list(dict.fromkeys(test for choice in choices for test in choice.tests))
    yield [*rest, *axes, "n", "validation", "validation_se", "chosen", *tests, "note"]
    for choice in choices:
        for one in choice.candidates:
            score, won = one.score, one is choice.winner
            tested = [choice.tests[t].mean if won and t in choice.tests else None for t in tests]
            values = (
                *(choice.rest.get(d) for d in rest), *(one.values.get(a) for a in axes),
                *((score.n, score.mean, score.se) if score else (0, None, None)),
                "yes" if won else "no", *tested, one.note or choice.note,
            )  # fmt: skip
            yield [_plain(value) for value in values]


def _plain(value: object) -> str:
    """A value for CSV: whole, without a thousands' comma; nothing for None."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def table_to_latex(table: Tabular) -> str:
    r"""The table as LaTeX for ``booktabs``; what columns share is written once, across them."""
    header, body = _plain_cells(table)
    words = _words(table)
    heads = _latex_heads(table) if isinstance(table, StudyTable) else [_latex_line(header)]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex_text(table.title)}}}",
        f"\\label{{tab:{re.sub(r'[^A-Za-z0-9.-]+', '-', table.name)}}}",
        f"\\begin{{tabular}}{{{'l' * words}{'r' * (len(header) - words)}}}",
        "\\toprule",
        *heads,
        "\\midrule",
        *(_latex_line(line) for line in body),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    if table.notes:
        notes = " ".join(latex_text(note) for note in table.notes)
        lines += ["", "\\smallskip", f"\\footnotesize {notes}"]
    return "\n".join([*lines, "\\end{table}", ""])


def _latex_line(texts: Sequence[str]) -> str:
    return " & ".join(map(latex_text, texts)) + r" \\"


def _latex_heads(table: StudyTable) -> Iterator[str]:
    """A line for each level of the columns' labels; the last has the heads of the lines."""
    levels = max((len(column.labels) for column in table.columns), default=0)
    words = len(table.heads)
    for level in range(max(levels - 1, 0)):
        cells, rules, place = [""] * words, [], words + 1
        for labels, group in groupby(table.columns, key=lambda c: c.labels[: level + 1]):
            width = sum(1 + len(column.shows) for column in group)
            text = latex_text(labels[-1])
            cells.append(f"\\multicolumn{{{width}}}{{c}}{{{text}}}" if width > 1 else text)
            rules += [f"\\cmidrule(lr){{{place}-{place + width - 1}}}"] if width > 1 else []
            place += width
        yield " & ".join(cells) + r" \\" + (" " + " ".join(rules) if rules else "")
    last = [latex_text(head) for head in table.heads]
    for column in table.columns:
        last += [latex_text(column.labels[-1] if column.labels else "")]
        last += [latex_text(shown) for shown in column.shows]
    yield " & ".join(last) + r" \\"


def latex_text(text: str) -> str:
    r"""Text in which LaTeX sees no command.

    >>> latex_text("50 % of data_set #1, 0.5 ± 0.1")
    '50 \\% of data\\_set \\#1, 0.5 $\\pm$ 0.1'
    """
    return _SPECIAL.sub(lambda found: _LATEX[found[0]], " ".join(text.split()))


FORMATS: dict[str, Callable[[Tabular], str]] = {
    "md": table_to_markdown,
    "csv": table_to_csv,
    "tex": table_to_latex,
}
"""How a table can be written, by the suffix of its file."""
