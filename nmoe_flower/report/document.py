"""What ``nmoe report`` writes: report.md with its tables and figures, and results.csv."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nmoe_flower.files import write_text
from nmoe_flower.report.figures import draw_accuracy, draw_partition, draw_rounds, draw_routing
from nmoe_flower.report.runs import FinishedRun, load_runs
from nmoe_flower.report.tables import (
    paper_table,
    paper_to_markdown,
    results_table,
    to_csv,
    to_markdown,
)
from nmoe_flower.results import RunFolder

__all__ = ["draw_figures", "write_report"]

# Their routing is known without looking: the diagonal, a lottery, the labels.
_PLAIN_GATES = frozenset({"local", "random", "oracle"})


def draw_figures(run_dir: Path, out: Path | None = None) -> list[Path]:
    """Draw every figure of a finished run.

    Args:
        run_dir: The run's folder.
        out: Where to; the run's own ``figures`` folder if not given.

    Returns:
        The files: accuracy per gate, routing per gate and test, partition, rounds.

    Raises:
        NMoEError: The run is not finished, or matplotlib is missing.
    """
    return _draw(load_runs([run_dir])[0], out or run_dir / "figures")


def _draw(run: FinishedRun, folder: Path) -> list[Path]:
    results, drawn = run.results, [folder / "accuracy.png"]
    draw_accuracy(results, drawn[0])
    for name, matrix in (results.get("routing") or {}).items():
        gate, _, test = name.partition("/")
        if gate.split("+")[0] not in _PLAIN_GATES:
            drawn.append(folder / f"routing-{gate.replace('+', '-')}-{test}.png")
            draw_routing(matrix, drawn[-1], title=f"{gate}, {test} test")
    partition = results.get("partition")
    if partition:
        drawn.append(folder / "partition.png")
        draw_partition(partition["train"], partition["test"], partition["classes"], drawn[-1])
    rounds = RunFolder(run.path, run.config).rounds()
    if rounds:
        drawn.append(folder / "rounds.png")
        draw_rounds(rounds, drawn[-1])
    return drawn


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write tables and figures of finished runs into one folder.

    Runs that differ in the seed alone are averaged; figures show the first seed of each
    configuration.

    Args:
        run_dirs: Folders of finished runs.
        out: The folder to write; made if missing.

    Returns:
        The report, ``out/report.md``; beside it results.csv and figures.

    Raises:
        NMoEError: A run is not finished or a folder foreign, or matplotlib is missing.
    """
    runs = load_runs(run_dirs)
    firsts = {run.group: run for run in sorted(runs, key=lambda run: -run.config.run.seed)}
    figures: list[str] = []
    for number, run in enumerate(run for run in runs if firsts[run.group] is run):
        folder = out / "figures"
        if len(firsts) > 1:
            folder /= f"{number + 1}-{run.config.run.name}"
        figures += [f"### {_run_title(run)}", ""]
        for path in _draw(run, folder):
            link = Path(os.path.relpath(path, out)).as_posix()
            figures += [f"![{path.stem}]({link})", ""]
    table = results_table(runs)
    paper = paper_to_markdown(paper_table(runs))
    parts = [
        "# Results",
        "",
        "## Runs",
        "",
        *_runs(runs),
        "",
        "## Per gate",
        "",
        to_markdown(table),
    ]
    if paper:
        parts += ["## Beside the paper", "", paper]
    parts += ["## Cost of the stages", "", *_stages(runs), "", "## Figures", "", *figures]
    write_text(out / "results.csv", to_csv(table))
    report = out / "report.md"
    write_text(report, "\n".join(parts).rstrip() + "\n")
    return report


def _run_title(run: FinishedRun) -> str:
    details = [f"seed {run.config.run.seed}", *([run.label] if run.label else [])]
    return f"{run.config.run.name} ({', '.join(details)})"


def _runs(runs: Sequence[FinishedRun]) -> list[str]:
    lines = [
        "| Run | Seed | Differs in | Data set | Minutes | Revision | Machine | Started |",
        "| :--- | ---: | :--- | :--- | ---: | :--- | :--- | :--- |",
    ]
    for run in runs:
        git, machine = run.provenance.get("git") or {}, run.provenance.get("machine") or {}
        seconds = run.results.get("seconds")
        cells = (
            run.config.run.name,
            run.config.run.seed,
            run.label or "-",
            Path(run.config.data.dataset).name or run.config.data.dataset,
            "-" if seconds is None else f"{seconds / 60:.1f}",
            str(git.get("revision") or "-")[:10] + (" (changed)" if git.get("dirty") else ""),
            f"{machine.get('cpu', '-')}, {machine.get('cores', '-')} cores",
            run.provenance.get("started", "-"),
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    return lines


def _stages(runs: Sequence[FinishedRun]) -> list[str]:
    lines = [
        "| Run | Seed | Stage | Seconds | MB up | MB down |",
        "| :--- | ---: | :--- | ---: | ---: | ---: |",
    ]
    for run in runs:
        for stage, cost in (run.results.get("stages") or {}).items():
            up, down = (_megabytes(cost.get(key)) for key in ("bytes_up", "bytes_down"))
            seconds = cost.get("seconds")
            time = "-" if seconds is None else f"{seconds:.1f}"
            name, seed = run.config.run.name, run.config.run.seed
            lines.append(f"| {name} | {seed} | {stage} | {time} | {up} | {down} |")
    return lines


def _megabytes(size: Any) -> str:
    return "-" if size is None else f"{size / 1e6:.2f}"
