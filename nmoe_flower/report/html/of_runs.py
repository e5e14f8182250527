"""The page of finished runs: ``nmoe report RUN... --html FILE``."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nmoe_flower.files import write_text
from nmoe_flower.plurals import how_many
from nmoe_flower.report.alignment import alignment_lines, is_alignment, policy_names
from nmoe_flower.report.figures import drawn_routing
from nmoe_flower.report.html.charts import DotRow, dot_chart, heat_map
from nmoe_flower.report.html.command import command_of
from nmoe_flower.report.html.lines import charts_of
from nmoe_flower.report.html.page import to_html
from nmoe_flower.report.html.parts import (
    MISSING,
    Command,
    Dots,
    Fold,
    Maps,
    Page,
    PagePart,
    PageSection,
    Prose,
    Said,
    SortableTable,
    TableCell,
    TableColumn,
    number_cell,
)
from nmoe_flower.report.html.words import (
    Groups,
    data_set,
    facts,
    gate_name,
    plain_gates,
    summary,
    test_in_sentence,
)
from nmoe_flower.report.paper import CITATION, paper_table
from nmoe_flower.report.runs import FinishedRun, differing_settings, load_runs, seeds_in_words
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

__all__ = ["page_of_runs", "run_sections", "write_page"]

_MARKS = {"upper bound": "†", "control": "‡"}
_FEW = 3  # configurations, at most, whose figures are open from the start


def write_page(run_dirs: Sequence[Path], path: Path) -> Path:
    """Write the report of finished runs as one HTML file that needs nothing else.

    Args:
        run_dirs: Folders of finished runs.
        path: The file; its folder is made if missing.

    Returns:
        The file.

    Raises:
        NMoEError: A run is not finished or a folder foreign, Jinja is missing, or the file cannot
            be written.
    """
    write_text(path, to_html(page_of_runs(load_runs(run_dirs))))
    return path


def page_of_runs(runs: Sequence[FinishedRun]) -> Page:
    """The page of runs that `load_runs` read."""
    groups = grouped(runs)
    paper = paper_table(runs)
    names = dict.fromkeys(run.config.run.name for run in runs)
    title = next(iter(names)) if len(names) == 1 else f"{len(groups)} configurations side by side"
    return Page(
        title=title,
        under=_under(runs),
        lead=summary(groups, paper),
        facts=facts(groups),
        sections=run_sections(groups, paper),
    )


def grouped(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs by what tells their configuration from the others, each in order of seeds."""
    seeds: dict[str, list[int]] = {}
    for run in runs:
        seeds.setdefault(run.configuration, []).append(run.config.run.seed)
    names = dict.fromkeys(run.configuration for run in runs)
    plain = {name: re.sub(r"^\d+-", "", name) for name in names}
    short = {name: _without_seed(plain[name], seeds[name]) for name in names}
    forms = (short, plain, {name: name for name in names})
    shown = next(form for form in forms if len(set(form.values())) == len(form))
    groups: dict[str, list[FinishedRun]] = {shown[name]: [] for name in names}
    for run in sorted(runs, key=lambda run: run.config.run.seed):
        groups[shown[run.configuration]].append(run)
    return groups


def _without_seed(name: str, seeds: Sequence[int]) -> str:
    """A run's name for all of its seeds.

    >>> _without_seed("joint-0", [0, 1]), _without_seed("joint-0", [0])
    ('joint', 'joint-0')
    """
    end = re.search(r"-(?:seed-?)?(\d+)$", name)
    return name[: end.start()] if end and len(seeds) > 1 and int(end[1]) in seeds else name


def run_sections(groups: Groups, paper: Sequence[dict[str, Any]]) -> list[PageSection]:
    """Everything but the summary; a section that would be empty is left out."""
    runs = [run for of in groups.values() for run in of]
    sections = [
        PageSection("results", "Results", [*_results(groups), *_differing(groups)]),
        PageSection("paper", "Beside the paper", _paper(paper)),
        PageSection("policies", "Policies side by side", _policies(runs)),
        PageSection("rounds", "Rounds, bytes and seconds", _rounds(groups)),
        PageSection("routing", "Who asks whom", _routing(groups)),
        PageSection("partition", "Who holds what", _partition(groups)),
        PageSection("features", "Features", _features(groups)),
        PageSection("privacy", "Privacy", _privacy(groups)),
        PageSection("cost", "Cost of the stages", _cost(groups)),
        PageSection("provenance", "Provenance", _provenance(groups)),
        PageSection("reproduce", "Run it again", _commands(groups)),
    ]
    return [section for section in sections if section.parts]


def _under(runs: Sequence[FinishedRun]) -> str:
    """Versions, revision and dates of the runs; none of today."""
    days = sorted({str(run.provenance.get("started") or "")[:10] for run in runs} - {""})
    told = [
        f"nmoe-flower {(runs[0].provenance.get('versions') or {}).get('nmoe-flower') or ''}".strip()
    ]
    revisions = {str((r.provenance.get("git") or {}).get("revision") or "")[:10] for r in runs}
    if len(revisions - {""}) == 1:
        told.append(f"revision {(revisions - {''}).pop()}")
    if days:
        told.append(days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}")
    return " · ".join(told)


# --- tables ---


def _differing(groups: Groups) -> list[PagePart]:
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


def _results(groups: Groups) -> list[PagePart]:
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
    plain = plain_gates()
    drawn, best = [], 0.0
    for row in rows:
        if row["accuracy"] is None:
            continue
        base = row["gate"].removesuffix("+prior")
        kind = "baseline" if base in plain else row["kind"]
        best = max(best, row["accuracy"] if kind == "baseline" else 0.0)
        own = [
            one
            for run in runs
            for one in run.results["rows"]
            if (one["gate"], one["test"]) == (row["gate"], test)
        ]
        if len(own) > 1:
            values = [one["accuracy"] for one in own if one["accuracy"] is not None]
        else:
            clients = (own[0].get("per_client") or {}).get("accuracy") or []
            values = [value for value in clients if value is not None]
        drawn.append(DotRow(gate_name(row["gate"]), kind, values, row["accuracy"]))
    drawn.sort(key=lambda row: ("gate", "baseline", "control", "upper bound").index(row.kind))
    mark = (best, f"best plain baseline: {best:.3f}") if best else None
    return dot_chart(
        f"Accuracy, {test_in_sentence(test)}",
        drawn,
        mark=mark,
        what="seed" if len(runs) > 1 else "client",
    )


def _paper(paper: Sequence[dict[str, Any]]) -> list[PagePart]:
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


def _policies(runs: Sequence[FinishedRun]) -> list[PagePart]:
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


# --- figures ---


def _rounds(groups: Groups) -> list[PagePart]:
    charts = charts_of(groups)
    if charts is not None:
        return [charts]
    return []


def _routing(groups: Groups) -> list[PagePart]:
    """Heat maps of every configuration's first seed."""
    folds: list[tuple[str, PagePart]] = []
    about: dict[str, str] = {}
    for name, runs in groups.items():
        run = runs[0]
        maps, ratios = [], []
        if is_alignment(run):
            continue
        for gate, test in drawn_routing(run.results.get("routing") or {}):
            matrix = run.results["routing"][f"{gate}/{test}"]
            square = len(matrix) == len(matrix[0])
            ratio = sum(matrix[i][i] for i in range(len(matrix))) / len(matrix) if square else 0.0
            said = f"Local ratio {100 * ratio:.1f} %." if square else ""
            if square and test == "local":
                ratios.append(f"{gate_name(gate)} {100 * ratio:.0f} %")
            maps.append(
                heat_map(
                    matrix,
                    title=f"{gate_name(gate)}, {test_in_sentence(test)}",
                    said=said,
                    say="Client {r} asks expert {c} for {v} of its samples.",
                    row_title="Client",
                    column_title="Expert",
                    own=square and len(matrix) > 1,
                )
            )
        if maps:
            seeds = [one.config.run.seed for one in runs]
            note = seeds_in_words(seeds, averaged=False)
            note = f"{note[0].upper()}{note[1:]}. In the cells: per cent. "
            note += "Outlined: a client's own expert."
            folds.append((name, Maps(maps, "Share of a client's samples", [note])))
            about[name] = f"local ratio: {', '.join(ratios)}" if ratios else ""
    return _folded(folds, about)


def _folded(
    folds: Sequence[tuple[str, PagePart]], about: Mapping[str, str] = MappingProxyType({})
) -> list[PagePart]:
    """Parts of several configurations, each to be opened; that of a single one as it is."""
    if len(folds) <= 1:
        return [part for _, part in folds]
    return [
        Fold(name, [part], about.get(name, ""), open=len(folds) <= _FEW) for name, part in folds
    ]


def _partition(groups: Groups) -> list[PagePart]:
    """Samples per client and class; a partition that several configurations share, once."""
    shared: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    for name, runs in groups.items():
        partition = runs[0].results.get("partition")
        if partition:
            key = json.dumps([partition[part] for part in ("train", "test", "classes")])
            shared.setdefault(key, []).append(name)
            found[key] = partition
    folds = []
    for key, names in shared.items():
        partition = found[key]
        classes = [str(name) for name in partition["classes"]]
        maps = []
        for part, title in (("train", "Training data"), ("test", "Local test data")):
            counts = partition[part]
            sums = [sum(row) for row in counts]
            each = f"{min(sums):,}" if min(sums) == max(sums) else f"{min(sums):,} to {max(sums):,}"
            maps.append(
                heat_map(
                    counts,
                    title=title,
                    said=f"{how_many(sum(sums), 'sample')}, {each} per client.",
                    say="Client {r} holds {v} samples of class {c}, of {s} in all.",
                    row_title="Client",
                    column_title="Class",
                    columns=classes,
                    share=False,
                    of_row=True,
                )
            )
        seeds = [run.config.run.seed for run in groups[names[0]]]
        note = seeds_in_words(seeds, averaged=False)
        note = f"{note[0].upper()}{note[1:]}. In the cells: samples; beside a row: all of it."
        folds.append(("; ".join(names), Maps(maps, "Share of a client's samples", [note])))
    return _folded(folds)


# --- what else is known ---


def _features(groups: Groups) -> list[PagePart]:
    columns = [
        TableColumn("Configuration", words=True),
        TableColumn("Seed"),
        TableColumn("Effective rank"),
    ]
    columns += [
        TableColumn("of"),
        TableColumn("Linear probe"),
        TableColumn("k-NN"),
        TableColumn("Collapse", words=True),
    ]
    body = []
    for name, runs in groups.items():
        for run in runs:
            found = run.results.get("representation")
            if found:
                body.append([
                    TableCell(name), TableCell(str(run.config.run.seed)),
                    number_cell(found.get("effective_rank"), digits=1),
                    number_cell(found.get("dimensions"), digits=0),
                    number_cell(found.get("probe_accuracy")),
                    number_cell(found.get("knn_accuracy")),
                    TableCell(found.get("collapse") or "none"),
                ])  # fmt: skip
    return [SortableTable("What stage 1 left", columns, body)] if body else []


def _privacy(groups: Groups) -> list[PagePart]:
    points = []
    for name, runs in groups.items():
        for run in runs:
            found = run.results.get("privacy")
            if found:
                seed = f"seed {run.config.run.seed}"
                points.append(Said(f"{name} ({seed}). {found['statement']}"))
    if points:
        return [Prose(points, listed=len(points) > 1)]
    return [
        Prose([Said(
            "No privacy mechanism was on. Raw samples stay where they are; weights, and whatever "
            "else the method exchanges, leave the devices as they are and can say something about "
            "the samples behind them."
        )])
    ]  # fmt: skip


def _cost(groups: Groups) -> list[PagePart]:
    """Every stage of every run; of several configurations their sums before that."""
    several = sum(map(len, groups.values())) > 1
    columns = [TableColumn("Configuration", words=True), TableColumn("Seed")] if several else []
    columns.append(TableColumn("Stage", words=True))
    columns += map(TableColumn, ("Rounds", "Seconds", "MB up", "MB down"))
    body = []
    sums = []
    for name, runs in groups.items():
        costs = [(run, run.results.get("stages") or {}) for run in runs]
        for run, stages in costs:
            for stage, cost in stages.items():
                cells = [TableCell(name), TableCell(str(run.config.run.seed))] if several else []
                cells += [TableCell(stage), number_cell(cost.get("rounds"), digits=0)]
                body.append([*cells, *_amounts([cost])])
        if any(stages for _, stages in costs):
            every = [cost for _, stages in costs for cost in stages.values()]
            sums.append([TableCell(name), TableCell(str(len(runs))), *_amounts(every, len(runs))])
    if not body:
        return []
    table = SortableTable("All clients together", columns, body)
    if not several:
        return [table]
    heads = [TableColumn("Configuration", words=True), TableColumn("Seeds")]
    heads += map(TableColumn, ("Seconds", "MB up", "MB down"))
    tested = all(
        "evaluation" in run.results.get("stages", {}) for runs in groups.values() for run in runs
    )
    counted = "tests and controls too" if tested else "without tests and controls"
    notes = [f"Mean over the seeds, all stages and all clients together, {counted}."]
    return [
        SortableTable("A whole run", heads, sums, notes),
        Fold("Every stage of every run", [table]),
    ]


def _amounts(costs: Sequence[Mapping[str, Any]], runs: int = 1) -> list[TableCell]:
    """Seconds, megabytes up and megabytes down of stages; a dash where none is known."""
    cells = []
    for key, unit, digits in (("seconds", 1, 1), ("bytes_up", 1e6, 2), ("bytes_down", 1e6, 2)):
        known = [cost[key] for cost in costs if cost.get(key) is not None]
        cells.append(number_cell(sum(known) / unit / runs if known else None, digits=digits))
    return cells


def _provenance(groups: Groups) -> list[PagePart]:
    """A row per run; what all runs share is said once, below."""
    rows: list[dict[str, TableCell]] = []
    for name, runs in groups.items():
        for run in runs:
            known = run.provenance
            git = known.get("git") or {}
            seconds = run.results.get("seconds")
            revision = str(git.get("revision") or MISSING)[:10]
            versions = {k: v for k, v in (known.get("versions") or {}).items() if v}
            rows.append(
                {
                    "Configuration": TableCell(name),
                    "Seed": TableCell(str(run.config.run.seed)),
                    "Minutes": number_cell(None if seconds is None else seconds / 60, digits=1),
                    "Started": TableCell(_moment(known.get("started"))),
                    "Revision": TableCell(revision + " (changed)" * bool(git.get("dirty"))),
                    "Data set": TableCell(data_set(run.config)),
                    "Machine": TableCell(_machine(known.get("machine") or {})),
                    "Versions": TableCell(", ".join(f"{k} {v}" for k, v in versions.items())),
                }
            )
    optional = ("Data set", "Machine", "Versions")
    same = {key: rows[0][key].text for key in optional if len({row[key].text for row in rows}) == 1}
    columns = [
        TableColumn(key, words=key not in {"Seed", "Minutes"}) for key in rows[0] if key not in same
    ]
    body = [[row[column.title] for column in columns] for row in rows]
    notes = [f"{key}: {text}." for key, text in same.items() if text]
    if any("(changed)" in row["Revision"].text for row in rows):
        notes.append("(changed): the code had changes that were not committed.")
    return [SortableTable("Where the numbers come from", columns, body, notes)]


def _moment(started: Any) -> str:
    """A recorded start to the minute.

    >>> _moment("2026-11-22T03:32:07+00:00")
    '2026-11-22 03:32 UTC'
    """
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00", str(started))
    return f"{found[1]} {found[2]} UTC" if found else str(started or MISSING)


def _machine(machine: dict[str, Any]) -> str:
    told = [str(machine[key]) for key in ("gpu", "cpu") if machine.get(key)]
    if machine.get("cores"):
        told.append(f"{how_many(machine['cores'], 'core')}")
    if machine.get("memory-gib"):
        told.append(f"{machine['memory-gib']} GiB")
    return ", ".join(told) or MISSING


def _commands(groups: Groups) -> list[PagePart]:
    """One command per configuration, of its first seed."""
    commands = []
    for name, runs in groups.items():
        first, *others = [str(run.config.run.seed) for run in runs]
        seeds = f"seed {first}" + (f"; others by --seed {', '.join(others)}" if others else "")
        title = f"S{seeds[1:]}" if len(groups) > _FEW else f"{name}, {seeds}"
        commands.append((name, Command(title, command_of(runs[0].config))))
    return _folded(commands) if len(commands) > _FEW else [part for _, part in commands]
