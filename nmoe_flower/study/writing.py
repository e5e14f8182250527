"""What ``nmoe study report`` writes: report.md, tables, figures, and ``table.json``."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from nmoe_flower.commands import command_line
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import all_or_none, write_text
from nmoe_flower.plurals import how_many, one_or_many
from nmoe_flower.recipes import find_study
from nmoe_flower.study.as_settings import choices_to_toml
from nmoe_flower.study.figures import draw_figure
from nmoe_flower.study.findings import Findings, findings_to_json
from nmoe_flower.study.markup import FORMATS, Tabular, table_to_markdown
from nmoe_flower.study.policies import draw_policies, finished_folders
from nmoe_flower.study.tables import without_absent

__all__ = [
    "PICTURES",
    "again",
    "default_out",
    "from_where",
    "own_settings",
    "sentence",
    "tables_by_name",
    "write_findings",
]

DEFAULT_RUNS = Path("runs")  # where commands put runs and look for them
_CHOSEN = "choice.toml"
PICTURES = ("png", "pdf", "svg")
"""What figures can be written as, by the suffix of the file."""
_OURS = re.compile(
    rf"{re.escape(_CHOSEN)}|table-.+\.({'|'.join(FORMATS)})|figure-.+\.({'|'.join(PICTURES)})"
)


def write_findings(
    findings: Findings,
    out: Path,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    pictures: Sequence[str] = ("png",),
) -> Path:
    """Write the report of a study into one folder; all of it, or nothing.

    Tables, figures and the choice of an earlier report that this one lacks are removed.

    Args:
        findings: What the study has found.
        out: The folder; made if missing.
        formats: Kinds of each table's files: ``md``, ``csv``, ``tex``.
        pictures: Kinds of each figure's files: ``png``, ``pdf``, ``svg``.

    Returns:
        The report, ``out/report.md``, which shows all tables and, if there is a PNG or SVG of
        them, the figures. Beside it ``table-NAME``, ``figure-NAME`` and ``table.json``, and of a
        sweep ``choice.toml``.

    Raises:
        NMoEError: The folder cannot be written, or matplotlib is missing.
    """
    earlier = _earlier(out.expanduser())
    with all_or_none(out) as new:
        for name, table in tables_by_name(findings).items():
            for suffix in formats:
                write_text(new / f"table-{name}.{suffix}", FORMATS[suffix](table))
        for figure in findings.figures:
            for suffix in pictures:
                draw_figure(figure, new / f"figure-{figure.name}.{suffix}")
        drawn = draw_policies(finished_folders(findings.outcomes), new) if findings.policies else []
        write_text(new / "table.json", findings_to_json(findings))
        if _has_chosen(findings):
            chosen = choices_to_toml(findings.study.name, findings.study.axes, findings.choices)
            write_text(new / _CHOSEN, chosen)
        lines = _report(findings, pictures, drawn, out)
        write_text(new / "report.md", "\n".join(lines).rstrip() + "\n")
        now = {path.name for path in new.iterdir()}
    for path in earlier:
        if path.name not in now:
            path.unlink(missing_ok=True)
    return out / "report.md"


def _earlier(out: Path) -> list[Path]:
    """Tables, figures and the choice of the report that a folder holds; nothing without one."""
    there = out.iterdir() if (out / "report.md").is_file() else ()
    return [path for path in there if _OURS.fullmatch(path.name) and path.is_file()]


def tables_by_name(findings: Findings) -> dict[str, Tabular]:
    """Everything that is a table, by the name of its files: tables, comparisons, the choice."""
    found: dict[str, Tabular] = {table.name: table for table in findings.tables}
    found |= {comparison.name: comparison for comparison in findings.comparisons}
    if findings.sweep is not None:
        found[findings.sweep.name] = findings.sweep
    return found


def default_out(findings: Findings) -> Path:
    """Where a report goes if nobody says: into the study's folder of runs, never of published ones.

    Args:
        findings: What `findings_of` gives.
    """
    places = findings.places
    root = DEFAULT_RUNS if places is None or places.published else places.runs
    return root / findings.study.name / "report"


def again(findings: Findings) -> tuple[list[str], list[str]]:
    """What one types to make the runs that are missing, and to report them from where they lay.

    Folders below the one that commands are typed in are told from there, others as they were given.

    Args:
        findings: What the study has found.
    """
    before_all = ["--set", *findings.study.overrides] if findings.study.overrides else []
    name = _typed(findings)
    run, report = (["nmoe", "study", verb, name, *before_all] for verb in ("run", "report"))
    places = findings.places
    if places is None:
        return run, report
    runs, elsewhere = _shown(places.runs), [_shown(path) for path in places.finished]
    if runs != str(DEFAULT_RUNS):
        report += ["--runs", runs]
        run += [] if places.published else ["--out", runs]
    before = [*elsewhere, *([runs] if places.published else [])]
    for words, folders in ((run, before), (report, elsewhere)):
        words += [word for folder in dict.fromkeys(folders) for word in ("--finished", folder)]
    return run, report


def _shown(path: Path) -> str:
    """A path from the working folder, if it lies there; otherwise as it was given."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _report(
    findings: Findings, pictures: Sequence[str], drawn: Sequence[Path], out: Path
) -> Iterator[str]:
    study = findings.study
    yield from (f"# {study.title}", "")
    if study.about.strip():
        yield from (study.about.strip(), "")
    yield from (f"{from_where(findings)}", "")
    for told in findings.failed:
        yield from (f"**{told}**", "")
    count, named = findings.missing
    if count:
        yield from (f"**{count}** {named}", "")
    if own := own_settings(findings):
        yield from (own, "")
    for told in findings.alarms:
        yield from (f"**{told}**", "")
    for table in tables_by_name(findings).values():
        absent = {*table.notes}.difference(without_absent(table.notes))
        yield from (f"## {table.title}", "", table_to_markdown(table, without=absent))
        if table is findings.sweep and _has_chosen(findings):
            yield from (f"In the words of a study's file: `{_CHOSEN}`.", "")
    for path in drawn:
        yield from (f"![{path.stem}]({path.name})", "")
    shown = next((suffix for suffix in pictures if suffix != "pdf"), None)
    for figure in findings.figures:
        yield from (f"## {figure.title}", "")
        if shown:
            yield from (f"![{figure.title}](figure-{figure.name}.{shown})", "")
        yield from (sentence("; ".join(figure.notes)), "")
    run, report = again(findings)
    report += ["--out", _shown(out)] if _shown(out) != _shown(default_out(findings)) else []
    yield from ("## Again", "", "```bash", command_line(*run), command_line(*report), "```")


def _has_chosen(findings: Findings) -> bool:
    return any(choice.winner is not None for choice in findings.choices)


def own_settings(findings: Findings) -> str:
    """Which runs have settings of their own, in a sentence; empty if none has."""
    told = "; ".join(findings.study.exceptions)
    return f"Runs with settings of their own: {told}." if told else ""


def sentence(text: str) -> str:
    """Words as a sentence.

    >>> sentence("seed 0; no rounds of FedCE"), sentence("")
    ('Seed 0; no rounds of FedCE.', '')
    """
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def _typed(findings: Findings) -> str:
    """What one types for the study: its name, if it comes along, or its file."""
    name, path = findings.study.name, findings.study.path
    with suppress(ConfigError):
        if find_study(name).resolve() == path.resolve():
            return name
    return _shown(path)


def _time_in_words(minutes: float) -> str:
    """Minutes, or seconds where there is none.

    >>> _time_in_words(0.3), _time_in_words(1), _time_in_words(1234.5)
    ('18 seconds', '1 minute', '1,234 minutes')
    """
    number, unit = (minutes, "minute") if minutes >= 1 else (60 * minutes, "second")
    return how_many(round(number), unit)


def from_where(findings: Findings) -> str:
    """Where the numbers come from, in a sentence: runs, seeds, machine, time, versions."""
    told, study = findings.provenance, findings.study
    seeds = ", ".join(map(str, study.seeds))
    parts = [
        f"{told['finished']} of {how_many(told['runs'], 'run')}",
        f"{one_or_many(len(study.seeds), 'seed')} {seeds}",
        " and ".join(told["machine"]),
        f"{_time_in_words(told['minutes'])} of training and tests",
        " to ".join(dict.fromkeys((*told["dates"][:1], *told["dates"][-1:]))),
        " and ".join(
            ", ".join(f"{name} {version}" for name, version in one.items())
            for one in told["versions"]
        ),
        f"revision {', '.join(told['revisions'])}" if told["revisions"] else "",
    ]
    return "; ".join(part for part in parts if part) + "."
