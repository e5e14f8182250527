"""What ``nmoe report`` writes: report.md with its tables and figures, and results.csv."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nmoe_flower.files import all_or_none, write_text
from nmoe_flower.report.alignment import alignment_table, draw_alignment, is_alignment
from nmoe_flower.report.figures import (
    draw_accuracy,
    draw_bits_per_byte,
    draw_partition,
    draw_rounds,
    draw_routing,
    drawn_routing,
)
from nmoe_flower.report.paper import paper_table, paper_to_markdown
from nmoe_flower.report.representation import (
    draw_representation,
    has_representation,
    privacy_lines,
    representation_lines,
)
from nmoe_flower.report.runs import (
    FinishedRun,
    differing_settings,
    load_runs,
    seeds_in_words,
)
from nmoe_flower.report.tables import (
    GATE_NAMES,
    grid,
    is_of_text,
    results_table,
    to_csv,
    to_markdown,
)

__all__ = ["draw_figures", "write_report"]


def draw_figures(run_dir: Path, out: Path | None = None) -> list[Path]:
    """Draw every figure of a finished run.

    Args:
        run_dir: The run's folder.
        out: Where to; the run's own ``figures`` folder if not given.

    Returns:
        The files: accuracy per gate (of text bits per byte), routing per gate and test, partition,
        rounds; of FedSC the representation too.

    Raises:
        NMoEError: The run is not finished, or matplotlib is missing.
    """
    return _draw(load_runs([run_dir])[0], out or run_dir / "figures")


def _draw(run: FinishedRun, folder: Path, seeds: Sequence[FinishedRun] = ()) -> list[Path]:
    results, of_text = run.results, any(map(is_of_text, run.results["rows"]))
    drawn = [folder / ("bits-per-byte.png" if of_text else "accuracy.png")]
    numbers = [one.config.run.seed for one in seeds or (run,)]
    note = seeds_in_words(numbers, averaged=False)
    draw_scores = draw_bits_per_byte if of_text else draw_accuracy
    draw_scores([r.results for r in seeds or (run,)], drawn[0], note=seeds_in_words(numbers))
    routing = results.get("routing") or {}
    for gate, test in drawn_routing(routing):
        drawn.append(folder / f"{_file_name(f'routing-{gate}-{test}')}.png")
        title = f"{GATE_NAMES.get(gate, gate)}, {'IID' if test == 'iid' else test} test"
        draw_routing(routing[f"{gate}/{test}"], drawn[-1], title=title, note=note)
    partition = results.get("partition")
    if partition:
        drawn.append(folder / "partition.png")
        draw_partition(
            partition["train"],
            partition["test"],
            partition["classes"],
            drawn[-1],
            counts_validation=partition.get("validation") or (),
            note=note,
            of_text=of_text,
        )
    rounds = run.rounds
    if rounds:
        drawn.append(folder / "rounds.png")
        draw_rounds(rounds, drawn[-1], note=note)
    if has_representation(rounds):
        drawn.append(folder / "representation.png")
        draw_representation(rounds, drawn[-1], note=note)
    return drawn + (draw_alignment(seeds or [run], folder) if is_alignment(run) else [])


def _file_name(text: str) -> str:
    """A name that every system takes.

    >>> _file_name("routing-control:centralized+prior-local")
    'routing-control-centralized-prior-local'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write tables and figures of finished runs into one folder; all of them, or none.

    Runs that differ in the seed alone are averaged, also in the figure of accuracy; the other
    figures show the first seed of each configuration.

    Args:
        run_dirs: Folders of finished runs.
        out: The folder to write; made if missing.

    Returns:
        The report, ``out/report.md``; beside it results.csv and figures.

    Raises:
        NMoEError: A run is not finished or a folder foreign, or matplotlib is missing.
    """
    runs = load_runs(run_dirs)
    table, paper = results_table(runs), paper_to_markdown(paper_table(runs))
    parts = ["# Results", "", "## Runs", "", *_runs(runs), "", *_differing(runs)]
    parts += ["## Per gate", "", to_markdown(table)]
    with all_or_none(out) as new:
        parts += _alignment([run for run in runs if is_alignment(run)], new)
        if paper:
            parts += ["## Beside the paper", "", paper]
        parts += [*representation_lines(runs), *privacy_lines(runs)]
        parts += ["## Cost of the stages", "", *_stages(runs), "", "## Figures", ""]
        parts += _figures(runs, new)
        write_text(new / "results.csv", to_csv(table))
        write_text(new / "report.md", "\n".join(parts).rstrip() + "\n")
    return out / "report.md"


def _alignment(runs: Sequence[FinishedRun], out: Path) -> list[str]:
    """The section on policies side by side; nothing without runs of the alignment system."""
    if not runs:
        return []
    drawn = draw_alignment(runs, out / "figures")
    links = [f"![{path.stem}]({path.relative_to(out).as_posix()})" for path in drawn]
    return ["## Alignment", "", alignment_table(runs), *links, ""]


def _figures(runs: Sequence[FinishedRun], out: Path) -> list[str]:
    """Draw the figures of every configuration; returns the lines that show them."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: run.config.run.seed):
        groups.setdefault(run.configuration, []).append(run)
    lines = []
    for name in dict.fromkeys(run.configuration for run in runs):
        seeds = groups[name]
        folder = out / "figures" / name if len(groups) > 1 else out / "figures"
        numbers = ", ".join(str(run.config.run.seed) for run in seeds)
        lines.append(f"### {name} (seed {numbers})")
        last = None
        for path in _draw(seeds[0], folder, seeds):
            link = Path(os.path.relpath(path, out)).as_posix()
            stem = path.stem.rpartition("-")[0]
            if not stem or stem != last:  # local and IID test of a gate stand side by side
                lines.append("")
            lines.append(f"![{path.stem}]({link})")
            last = stem
        lines.append("")
    return lines


def _runs(runs: Sequence[FinishedRun]) -> list[str]:
    header = ("Configuration", "Run", "Seed", "Data set", "Minutes", "Revision", "Machine")
    body = []
    for run in runs:
        git, machine = run.provenance.get("git") or {}, run.provenance.get("machine") or {}
        seconds = run.results.get("seconds")
        cells = (
            run.configuration,
            run.config.run.name,
            run.config.run.seed,
            Path(run.config.data.dataset).name or run.config.data.dataset,
            "-" if seconds is None else f"{seconds / 60:.1f}",
            str(git.get("revision") or "-")[:10] + (" (changed)" if git.get("dirty") else ""),
            f"{machine.get('cpu', '-')}, {machine.get('cores', '-')} cores",
            run.provenance.get("started", "-"),
        )
        body.append([_plain(cell) for cell in cells])
    return grid((*header, "Started"), body, words=len(header) + 1)


def _differing(runs: Sequence[FinishedRun]) -> list[str]:
    table = differing_settings(runs)
    if not table:
        return []
    names = list(dict.fromkeys(run.configuration for run in runs))
    body = [[key, *(_plain(values[name]) for name in names)] for key, values in table.items()]
    lines = grid(("Setting", *map(_plain, names)), body, words=len(names) + 1)
    return ["Where the configurations differ:", "", *lines, ""]


def _plain(cell: Any) -> str:
    return str(cell).replace("|", "/")


def _stages(runs: Sequence[FinishedRun]) -> list[str]:
    body = []
    for run in runs:
        for stage, cost in (run.results.get("stages") or {}).items():
            seconds = cost.get("seconds")
            time = "-" if seconds is None else f"{seconds:.1f}"
            up, down = (_megabytes(cost.get(key)) for key in ("bytes_up", "bytes_down"))
            first = [_plain(run.config.run.name), stage, str(run.config.run.seed)]
            body.append([*first, time, up, down])
    return grid(("Run", "Stage", "Seed", "Seconds", "MB up", "MB down"), body, words=2)


def _megabytes(size: Any) -> str:
    return "-" if size is None else f"{size / 1e6:.2f}"
