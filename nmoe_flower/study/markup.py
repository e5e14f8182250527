"""A `StudyTable` as Markdown, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from nmoe_flower.report import grid
from nmoe_flower.study.tables import Cell, Column, StudyTable

__all__ = ["latex_text", "table_to_csv", "table_to_latex", "table_to_markdown"]

_CSV = ("gate", "test", "metric", "status", "n", "seeds", "mean", "se", "paper", "difference",
        "bytes_per_device", "exchanges", "note")  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "±": r"$\pm$", "τ": r"$\tau$", "ε": r"$\varepsilon$", "†": r"\dag{}", "‡": r"\ddag{}",
    "\u2212": "$-$", "\u2013": "--", "\u2014": "---", "\u00d7": r"$\times$", "…": r"\ldots{}",
}  # fmt: skip
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


def table_to_markdown(table: StudyTable) -> str:
    """The table and its notes as Markdown, without its title."""
    header = [_markdown_text(head) for head in table.heads]
    for column in table.columns:
        header += [_markdown_text(text) for text in _above(column)]
    body = [
        [_markdown_text(text) for text in (*line.labels, *_texts(line.cells, table.columns))]
        for line in table.lines
    ]
    words = max(len(table.heads), 1)
    lines = grid(header, body, words=words)
    for note in table.notes:
        lines += ["", _markdown_text(note)]
    return "\n".join(lines) + "\n"


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


def table_to_csv(table: StudyTable) -> str:
    """The table as tidy CSV: one value a line, numbers whole, a header; no cell twice."""
    cells = [cell for line in table.lines for cell in line.cells if cell.row is not None]
    rows = list({id(cell.row): cell for cell in cells}.values())
    axes = list(dict.fromkeys(axis for cell in rows if cell.row for axis in cell.row.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", *axes, *_CSV])
    for cell in rows:
        assert cell.row is not None
        row = cell.row
        writer.writerow(
            [
                row.variant, *(_plain(row.values.get(axis)) for axis in axes),
                row.gate, row.test, row.metric, cell.status, cell.n,
                " ".join(map(str, sorted(row.each))),
                _plain(cell.words or cell.mean), _plain(cell.se), _plain(cell.paper),
                _plain(cell.difference), _plain(row.bytes_per_device), _plain(row.exchanges),
                cell.note,
            ]
        )  # fmt: skip
    return text.getvalue()


def _plain(value: object) -> str:
    """A value for CSV: whole, without a thousands' comma; nothing for None."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def table_to_latex(table: StudyTable, *, label: str = "") -> str:
    r"""The table as LaTeX for ``booktabs``; what columns share is written once, across them.

    Args:
        table: The table.
        label: Of ``\label``; the table's name if not given.
    """
    words, numbers = len(table.heads), sum(1 + len(column.shows) for column in table.columns)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex_text(table.title)}}}",
        f"\\label{{tab:{re.sub(r'[^A-Za-z0-9.-]+', '-', label or table.name)}}}",
        f"\\begin{{tabular}}{{{'l' * words}{'r' * numbers}}}",
        "\\toprule",
        *_latex_heads(table),
        "\\midrule",
    ]
    for line in table.lines:
        texts = (*line.labels, *_texts(line.cells, table.columns))
        lines.append(" & ".join(map(latex_text, texts)) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    if table.notes:
        notes = " ".join(latex_text(note) for note in table.notes)
        lines += ["", "\\smallskip", f"\\footnotesize {notes}"]
    return "\n".join([*lines, "\\end{table}", ""])


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
