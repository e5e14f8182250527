"""What finished runs reached, as tables of a page: beside each other, and beside the paper."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nmoe_flower.plurals import how_many
from nmoe_flower.report.alignment import alignment_lines, is_alignment, policy_names
from nmoe_flower.report.html.charts import DotRow, dot_chart, heat_map
from nmoe_flower.report.html.parts import (
    MISSING,
    Dots,
    Maps,
    PagePart,
    SortableTable,
    TableCell,
    TableColumn,
    number_cell,
)
from nmoe_flower.report.html.words import Groups, gate_name, plain_gates, test_in_sentence
from nmoe_flower.report.paper import CITATION
from nmoe_flower.report.runs import FinishedRun, differing_settings
from nmoe_flower.report.tables import (
    TEXT_METRICS,
    is_of_text,
    method_label,
    parts_of_text,
    place_of_test,
    results_table,
    shown_tests,
    test_label,
)

__all__ = ["differing_parts", "paper_parts", "policies_parts", "results_parts"]

_MARKS = {"upper bound": "†", "control": "‡"}


def differing_parts(groups: Groups) -> list[PagePart]:
    """The settings in which configurations differ; nothing with one of them."""
    first = {of[0].configuration: name for name, of in groups.items()}
    table = differing_settings([run for of in groups.values() for run in of])
    if not table:
        return []
    if len(table) > len(groups):  # the longer side goes down
        columns = [TableColumn("Setting", words=True)]
        columns += [TableColumn(name, words=True) for name in groups]
        rows = [
            [TableCell(key), *(TableCell(values[number]) for number in first)]
            for key, values in table.items()
        ]
    else:
        columns = [TableColumn("Configuration", words=True)]
        columns += [TableColumn(key, words=True) for key in table]
        rows = [
            [TableCell(name), *(TableCell(values[number]) for values in table.values())]
            for number, name in first.items()
        ]
    return [SortableTable("Where the configurations differ", columns, rows)]


_METRICS = (
    ("accuracy", "Accuracy", 3),
    ("worst_client", "Worst client", 3),
    ("balanced_accuracy", "Balanced accuracy", 3),
    ("macro_f1", "Macro F1", 3),
    ("auc", "AUC", 3),
    *((key, title, 3) for key, title in TEXT_METRICS.items()),
    ("local_ratio", "Local ratio", 3),
    ("bytes_per_sample", "Bytes per sample", 0),
)
_ABOUT = {
    "worst_client": "Accuracy of the client that is served worst",
    "local_ratio": "Share of samples that a client's own expert answers",
    "bytes_per_sample": "What an answer moves over the network, mean over all samples",
    "bits_per_byte": "Bits that predict a byte of text; lower is better",
    "perplexity": "Per token: it depends on what a token is",
}


def results_parts(groups: Groups) -> list[PagePart]:
    """Every gate on every test, beside all others."""
    parts: list[PagePart] = []
    tables = {name: results_table(list(of)) for name, of in groups.items()}
    tests = {row["test"] for table in tables.values() for row in table}
    drawn = shown_tests(tests)
    dots = []
    for test in sorted(tests, key=place_of_test):
        rows = [(name, row) for name, of in tables.items() for row in of if row["test"] == test]
        if len(groups) == 1 and test in drawn:
            dots.append(_dots(test, [row for _, row in rows], next(iter(groups.values()))))
        parts.append(_table(test, rows, several=len(groups) > 1))
        of_text = [(name, row) for name, row in rows if is_of_text(row)]
        for kind in ("domain", "client"):
            columns = parts_of_text([row for _, row in of_text], kind)
            if len(columns) > 1:
                parts.append(_apart(test, of_text, kind, columns, several=len(groups) > 1))
    if dots:
        seeds = len(next(iter(groups.values())))
        notes = [
            f"A large dot is the mean, its number beside it; a small dot is one "
            f"{'seed' if seeds > 1 else 'client'}. Hollow: upper bound. Orange: plain baseline; "
            "the dashed line is the best of them. Neither blue nor orange: other controls. Axes "
            "need not begin at 0."
        ]
        parts.append(Dots(dots, notes))
    return parts


def _table(
    test: str, rows: Sequence[tuple[str, dict[str, Any]]], *, several: bool
) -> SortableTable:
    shown = [m for m in _METRICS if any(row.get(m[0]) is not None for _, row in rows)]
    many = len({row["n"] for _, row in rows}) > 1
    columns = [
        *([TableColumn("Configuration", words=True)] if several else []),
        TableColumn("Gate", words=True),
        *(TableColumn(title, about=_ABOUT.get(key, "")) for key, title, _ in shown),
        *([TableColumn("Seeds")] if many else []),
    ]
    kinds = {row["kind"] for _, row in rows}
    of_text = any(is_of_text(row) for _, row in rows)
    body = []
    for name, row in rows:
        cells = [TableCell(name)] if several else []
        cells.append(TableCell(gate_name(row["gate"]), mark=_MARKS.get(row["kind"], "")))
        for key, _, digits in shown:
            strong = key in row["best"]
            cells.append(number_cell(row[key], row[f"{key}_std"], digits=digits, strong=strong))
        body.append([*cells, *([TableCell(str(row["n"]))] if many else [])])
    seeds = max(row["n"] for _, row in rows)
    notes = (
        "Measured per client, then averaged. "
        if of_text
        else ("Fractions: measured per client, then averaged. ")
    )
    notes += "Of bits per byte and perplexity less is better. " if of_text else ""
    notes += f"± is the standard deviation over {seeds} seeds. " if seeds > 1 else ""
    notes += f"Bold: the best gate that can be deployed{', of each configuration' * several}. "
    notes += (
        "† upper bound, trained or chosen with what no device has. "
        if "upper bound" in kinds
        else ""
    )
    notes += "‡ control, no networked experts. " if "control" in kinds else ""
    if any(row["gate"].endswith("+prior") for _, row in rows):
        notes += "+ prior: corrected for the class shares of the unlabelled test batch. "
    return SortableTable(test_label(test), columns, body, [notes.strip()])


def _apart(
    test: str,
    rows: Sequence[tuple[str, dict[str, Any]]],
    kind: str,
    parts: Mapping[str, str],
    *,
    several: bool,
) -> SortableTable:
    """Bits per byte of each domain, or of each client."""
    group = "Bits per byte of the domain" if kind == "domain" else "Bits per byte of the client"
    columns = [
        *([TableColumn("Configuration", words=True)] if several else []),
        TableColumn("Gate", words=True),
        *(TableColumn(name, group=group) for name in parts.values()),
    ]
    body = [
        [
            *([TableCell(name)] if several else []),
            TableCell(gate_name(row["gate"]), mark=_MARKS.get(row["kind"], "")),
            *(number_cell(row.get(part), row.get(f"{part}_std")) for part in parts),
        ]
        for name, row in rows
    ]
    return SortableTable(f"{test_label(test)}, by {kind}", columns, body)


def _dots(test: str, rows: Sequence[dict[str, Any]], runs: Sequence[FinishedRun]) -> Any:
    """A dot for each gate: of images the accuracy, of text bits per byte."""
    of_text = any(map(is_of_text, rows))
    plain = plain_gates(of_text=of_text)
    metric, title, better = (
        ("bits_per_byte", "Bits per byte", min) if of_text else ("accuracy", "Accuracy", max)
    )
    drawn = []
    for row in rows:
        if row[metric] is None:
            continue
        base = row["gate"].removesuffix("+prior")
        kind = "baseline" if base in plain else row["kind"]
        own = [
            one
            for run in runs
            for one in run.results["rows"]
            if (one["gate"], one["test"]) == (row["gate"], test)
        ]
        if len(own) > 1:
            values = [one[metric] for one in own if one.get(metric) is not None]
        else:
            clients = (own[0].get("per_client") or {}).get(metric) or []
            values = [value for value in clients if value is not None]
        drawn.append(DotRow(gate_name(row["gate"]), kind, values, row[metric]))
    drawn.sort(key=lambda row: ("gate", "baseline", "control", "upper bound").index(row.kind))
    best = better((row.mean for row in drawn if row.kind == "baseline"), default=None)
    mark = None if best is None else (best, f"best plain baseline: {best:.3f}")
    return dot_chart(
        f"{title}, {test_in_sentence(test)}",
        drawn,
        mark=mark,
        what="seed" if len(runs) > 1 else "client",
    )


def paper_parts(paper: Sequence[dict[str, Any]]) -> list[PagePart]:
    """Cells of the paper's tables beside ours."""
    parts: list[PagePart] = []
    metrics = (("accuracy", "Accuracy"), ("macro_f1", "Macro F1"), ("auc", "AUC"))
    about = {"I": "test data distributed as the client's own", "II": "IID test data"}
    for name in dict.fromkeys(row["table"] for row in paper):
        rows = [row for row in paper if row["table"] == name]
        many = any(row["config"] for row in rows)
        columns = [TableColumn("Method", words=True), TableColumn("Extractor", words=True)]
        columns += [TableColumn("Configuration", words=True)] if many else []
        columns += [TableColumn("Setting", words=True)]
        for _, title in metrics:
            columns += [TableColumn(word, group=title) for word in ("ours", "paper", "difference")]
        body = []
        for row in rows:
            cells = [TableCell(row["method"]), TableCell(method_label(row["extractor"]))]
            cells += [TableCell(row["config"] or MISSING)] if many else []
            cells.append(TableCell(row["setting"]))
            for metric, _ in metrics:
                cells += beside(row[metric], row[f"{metric}_std"], row[f"paper_{metric}"])
            body.append(cells)
        notes = [
            f"Paper: {CITATION}; its numbers come from one seed. Green: at or above the paper's, "
            "red: below."
        ]
        parts.append(SortableTable(f"Table {name} ({about[name]})", columns, body, notes))
    return parts


def beside(ours: float | None, spread: float | None, paper: float | None) -> list[TableCell]:
    """Ours, the paper's, and the difference between them."""
    more = None if ours is None or paper is None else ours - paper
    tone = "" if more is None else "better" if more >= 0 else "worse"
    published = number_cell(paper)
    return [
        number_cell(ours, spread),
        TableCell(published.text, tone="p"),
        number_cell(more, signed=True, tone=tone),
    ]


def policies_parts(runs: Sequence[FinishedRun]) -> list[PagePart]:
    """Policies of the alignment system beside each other."""
    aligned = [run for run in runs if is_alignment(run)]
    if not aligned:
        return []
    header, lines, note = alignment_lines(aligned)
    columns = [TableColumn(header[0], words=True), *map(TableColumn, header[1:])]
    body = [[TableCell(line[0]), *(_read(text) for text in line[1:])] for line in lines]
    names = policy_names(aligned)
    first = {run.configuration: run for run in reversed(aligned)}
    times = {name: first[c].results["alignment"]["assignments"] for c, name in names.items()}
    mixtures = {name: counts for name, counts in times.items() if len(counts[0]) > 1} or times
    most = max(max(map(max, counts)) for counts in mixtures.values()) or 1
    maps = [
        heat_map(
            counts,
            title=name,
            said=f"{how_many(sum(map(sum, counts)), 'training')} of an expert by a client.",
            say="Client {r} trained expert {c} in {v} rounds.",
            row_title="Client",
            column_title="Expert",
            share=False,
            most=most,
        )
        for name, counts in mixtures.items()
    ]
    note_of_maps = "The first seed of each configuration."
    return [
        SortableTable("Policies", columns, body, [note]),
        Maps(maps, "Rounds in which a client trained an expert", [note_of_maps]),
    ]


def _read(text: str) -> TableCell:
    """A cell of another table, its mean and spread told apart."""
    mean, _, spread = text.partition(" ± ")
    if mean == "-":
        return TableCell(MISSING)
    key = re.match(r"-?[\d.]+", mean)
    several = "," in mean
    return TableCell(mean, f"± {spread}" if spread else "", key=key[0] if several and key else None)
