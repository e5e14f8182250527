"""The page of a study: who wins in words, its tables to sort, its figures to point at.

Everything is made of `Findings`, so what is published needs no run folder. Where there are run
folders, the page also says who holds what, what is private, and what the stages cost.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nmoe_flower.commands import command_line
from nmoe_flower.files import write_text
from nmoe_flower.plurals import how_many, one_or_many
from nmoe_flower.report import FinishedRun, read_rounds
from nmoe_flower.report.html import (
    Command,
    Fact,
    FormattedText,
    Page,
    PagePart,
    PageSection,
    Said,
    SortableTable,
    TableCell,
    TableColumn,
    markdown,
    run_sections,
    summary,
    time_in_words,
    to_html,
)
from nmoe_flower.study.comparisons import Pair
from nmoe_flower.study.findings import Findings
from nmoe_flower.study.page_parts import figure_parts, table_part, words_part
from nmoe_flower.study.product import BASE
from nmoe_flower.study.rows import RunOutcome
from nmoe_flower.study.tables import Cell, StudyTable, beside_paper_in_words
from nmoe_flower.study.untold import rounds_without_tests, without_tests
from nmoe_flower.study.verdicts import Verdict, verdicts_in_words, verdicts_of, verdicts_tables
from nmoe_flower.study.writing import again, from_where, own_settings

__all__ = ["page_of_study", "write_webpage"]

# Of runs, what the study's own tables and figures do not say.
_OF_RUNS = ("rounds", "routing", "partition", "features", "privacy", "cost")
_MOST_VARIANTS = 16  # whose routing and rounds are shown, beside what figures are declared


def write_webpage(findings: Findings, path: Path) -> Path:
    """Write the report of a study as one HTML file that needs nothing else.

    Args:
        findings: What the study has found.
        path: The file; its folder is made if missing.

    Returns:
        The file.

    Raises:
        NMoEError: Jinja is missing, or the file cannot be written.
    """
    write_text(path, to_html(page_of_study(findings)))
    return path


def page_of_study(findings: Findings) -> Page:
    """The page of a study that `findings_of` or `read_findings` read."""
    study = findings.study
    about: list[PagePart] = [FormattedText(markdown(study.about))] if study.about.strip() else []
    verdicts = verdicts_of(findings)
    tables: list[PagePart] = [*verdicts_tables(verdicts)]
    tables += [table_part(table) for table in findings.tables]
    tables += [words_part(comparison) for comparison in findings.comparisons]
    if findings.sweep is not None:
        tables.append(words_part(findings.sweep))
    figures = [part for figure in findings.figures for part in figure_parts(figure)]
    sections = [
        PageSection("about", "What this is", about),
        PageSection("tables", "Tables", tables),
        PageSection("figures", "Figures", figures),
        *_of_runs(findings),
        PageSection("provenance", "Provenance", [_provenance(findings)]),
        PageSection("reproduce", "Run it again", _commands(findings)),
    ]
    return Page(
        title=study.title,
        under=from_where(findings),
        lead=list(_lead(findings, verdicts)),
        facts=list(_facts(findings)),
        sections=[section for section in sections if section.parts],
    )


# --- words ---


def _lead(findings: Findings, verdicts: Sequence[Verdict]) -> Iterator[Said]:
    """What matters most first: what is not there, baselines that win, then the rest."""
    for gone in findings.failed:
        yield Said("", gone, "warning")
    count, named = findings.missing
    if count:
        yield Said(count, more=named)
    if own := own_settings(findings):
        yield Said(own)
    if rung := findings.alarms:
        count = how_many(len(rung), "answer is", "answers are")
        told = f"{count} behind a gate that does not look, or ahead of the oracle."
        yield Said("", told, "warning", more=" ".join(rung))
    if verdicts:
        yield from verdicts_in_words(verdicts)
    elif groups := _groups(findings):
        yield from summary(groups, ())[1:]
    yield from _beside_paper(findings.tables)
    yield from _paired([pair for comparison in findings.comparisons for pair in comparison.pairs])
    for choice in findings.choices:
        if choice.winner is not None and choice.winner.score is not None:
            values = ", ".join(f"{key} = {value}" for key, value in choice.winner.values.items())
            yield Said(
                f"Chosen on validation data alone: {values} ({choice.winner.score.mean:.3f} there)."
            )


def _beside_paper(tables: Sequence[StudyTable]) -> Iterator[Said]:
    """How many cells reach what was published; one that stands in two tables counts once."""
    cells: dict[tuple[str, ...], Cell] = {}
    for table in tables:
        for line in table.lines:
            for cell, column in zip(line.cells, table.columns, strict=True):
                row = cell.row
                if column.shows and cell.paper is not None and row is not None:
                    place = (row.folder, row.gate, row.test, row.metric)
                    if cell.n >= cells.get(place, Cell("none")).n:
                        cells[place] = cell
    compared = [cell.difference for cell in cells.values() if cell.difference is not None]
    missing = len(cells) - len(compared)
    gone = f" {how_many(missing, 'more is', 'more are')} not measured yet." if missing else ""
    below = sum(more < 0 for more in compared)
    which = "measured " if missing else ""
    if len(compared) == 1:
        told = "below it" if below else "at or above it"
        told = f"The one {which}cell that has a published value beside it is {told}."
    elif compared and not below:
        told = f"All {len(compared)} {which}cells that have a published value beside them are at "
        told += "or above it."
    elif compared:
        told = f"Of {len(compared)} {which}cells that have a published value beside them, "
        reached = len(compared) - below
        told += f"{reached} {one_or_many(reached, 'is', 'are')} at or above it and {below} below."
    elif cells:
        told = "No cell that has a published value beside it is measured yet."
        gone = ""
    else:
        return
    yield Said(" ".join([f"{told}{gone}", *beside_paper_in_words(list(cells.values()))]))


def _paired(pairs: Sequence[Pair]) -> Iterator[Said]:
    """How many paired comparisons say anything, and why others do not."""
    if not pairs:
        return
    verdicts = [pair.verdict for pair in pairs]
    counts = {
        "beyond the noise": verdicts.count("higher") + verdicts.count("lower"),
        "within the noise": verdicts.count("within the noise"),
        "with no estimate of the noise": verdicts.count("no estimate of the noise"),
        "without a pair of finished runs": sum(pair.difference is None for pair in pairs),
    }
    told = [f"{count} {what}" for what, count in counts.items() if count]
    yield Said(f"{how_many(len(pairs), 'paired comparison')}: {'; '.join(told)}.")


def _facts(findings: Findings) -> Iterator[Fact]:
    told = findings.provenance
    settings = len({run.variant for run in findings.study.runs})
    variants = len({run.named for run in findings.study.runs} - {BASE})
    what = one_or_many(settings, "variant" if variants == settings else "setting")
    of = f" of {how_many(variants, 'variant')}" if 0 < variants < settings else ""
    seeds = len(findings.study.seeds)
    yield Fact("runs finished", f"{told['finished']} of {told['runs']}")
    yield Fact(
        f"{what}{of}",
        str(settings),
        f"{how_many(seeds, 'seed')}",
    )
    yield Fact("of training and tests", time_in_words(60 * float(told["minutes"])))


# --- runs ---


def _of_runs(findings: Findings) -> list[PageSection]:
    """What the finished runs say of themselves; nothing where only their numbers are kept."""
    groups = _groups(findings)
    if not groups:
        return []
    left_out = {"rounds", "routing"} if len(groups) > _MOST_VARIANTS else set()
    left_out |= {"routing"} if any(f.kind == "routing" for f in findings.figures) else set()
    left_out |= {"rounds"} if any(f.kind == "rounds" for f in findings.figures) else set()
    wanted = set(_OF_RUNS) - left_out
    return [section for section in run_sections(groups, ()) if section.anchor in wanted]


def _groups(findings: Findings) -> dict[str, list[FinishedRun]]:
    """The finished runs by variant; nothing where only their numbers are kept."""
    runs = [one for one in findings.outcomes if one.results is not None and one.path is not None]
    names = {one.run.variant: _of_run(one, findings) for one in runs}
    told = names if len(set(names.values())) == len(names) else {name: name for name in names}
    groups: dict[str, list[FinishedRun]] = {told[one.run.variant]: [] for one in runs}
    for one in runs:
        tests = findings.tells_tests_of(one.run)
        groups[told[one.run.variant]].append(_finished(one, tests=tests))
    return groups


def _of_run(one: RunOutcome, findings: Findings) -> str:
    """What a run's variant is called, with the values of its axes."""
    run, labels = one.run, findings.labels
    several = len(findings.study.variants) > 1
    variant = [labels.of_value("variant", run.named)] if several else []
    settings = [labels.of_setting(axis, value) for axis, value in run.values.items()]
    return ", ".join([*variant, *settings]).replace("`", "") or run.variant


def _finished(one: RunOutcome, *, tests: bool) -> FinishedRun:
    """A run as the pages of runs read it; without its tests where these may not be told."""
    assert one.path is not None
    assert one.results is not None
    rounds = read_rounds(one.path / "rounds.jsonl")
    return FinishedRun(
        one.path,
        one.run.config,
        dict(one.results) if tests else without_tests(one.results),
        dict(one.provenance),
        rounds if tests else rounds_without_tests(rounds),
        configuration=one.run.variant,
        label=one.run.variant,
    )


def _provenance(findings: Findings) -> SortableTable:
    """Everything that the numbers come from, and how far the runs are."""
    told: Mapping[str, Any] = findings.provenance
    versions = [", ".join(f"{k} {v}" for k, v in one.items()) for one in told["versions"]]
    lines = {
        "Runs finished": f"{told['finished']} of {told['runs']}",
        "Seeds": ", ".join(map(str, findings.study.seeds)),
        "Minutes of training and tests": f"{told['minutes']:,.1f}",
        "Started": " to ".join(dict.fromkeys((*told["dates"][:1], *told["dates"][-1:]))),
        "Machines": "; ".join(told["machine"]),
        "Versions": "; ".join(versions),
        "Revisions": ", ".join(told["revisions"]),
    }
    columns = [TableColumn("Of", words=True), TableColumn("Recorded", words=True)]
    rows = [[TableCell(name), TableCell(text)] for name, text in lines.items() if text]
    return SortableTable("Where the numbers come from", columns, rows)


def _commands(findings: Findings) -> list[PagePart]:
    """How to run the study and make this page again."""
    run, report = again(findings)
    report += ["--html", f"{findings.study.name}.html"]
    return [
        Command("All runs that are missing", command_line(*run)),
        Command("This page", command_line(*report)),
    ]
