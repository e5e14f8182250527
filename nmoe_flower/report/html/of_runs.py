"""The page of finished runs: ``nmoe report RUN... --html FILE``."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nmoe_flower.files import write_text
from nmoe_flower.report.html.page import to_html
from nmoe_flower.report.html.parts import Page, PageSection
from nmoe_flower.report.html.result_tables import (
    differing_parts,
    paper_parts,
    policies_parts,
    results_parts,
)
from nmoe_flower.report.html.run_figures import partition_parts, rounds_parts, routing_parts
from nmoe_flower.report.html.run_tables import (
    command_parts,
    cost_parts,
    features_parts,
    privacy_parts,
    provenance_parts,
)
from nmoe_flower.report.html.words import Groups, facts, summary
from nmoe_flower.report.paper import paper_table
from nmoe_flower.report.runs import FinishedRun, load_runs

__all__ = ["page_of_runs", "run_sections", "write_page"]


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
        PageSection("results", "Results", [*results_parts(groups), *differing_parts(groups)]),
        PageSection("paper", "Beside the paper", paper_parts(paper)),
        PageSection("policies", "Policies side by side", policies_parts(runs)),
        PageSection("rounds", "Rounds, bytes and seconds", rounds_parts(groups)),
        PageSection("routing", "Who asks whom", routing_parts(groups)),
        PageSection("partition", "Who holds what", partition_parts(groups)),
        PageSection("features", "Features", features_parts(groups)),
        PageSection("privacy", "Privacy", privacy_parts(groups)),
        PageSection("cost", "Cost of the stages", cost_parts(groups)),
        PageSection("provenance", "Provenance", provenance_parts(groups)),
        PageSection("reproduce", "Run it again", command_parts(groups)),
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
