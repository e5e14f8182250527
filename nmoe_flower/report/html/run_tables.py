"""What finished runs say of themselves: features, privacy, costs, provenance, commands."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nmoe_flower.plurals import how_many
from nmoe_flower.report.html.command import command_of
from nmoe_flower.report.html.parts import (
    FEW,
    MISSING,
    Command,
    Fold,
    PagePart,
    Prose,
    Said,
    SortableTable,
    TableCell,
    TableColumn,
    folded,
    number_cell,
)
from nmoe_flower.report.html.words import Groups, data_set

__all__ = ["command_parts", "cost_parts", "features_parts", "privacy_parts", "provenance_parts"]


def features_parts(groups: Groups) -> list[PagePart]:
    """How good the features are that stage 1 left, where they were measured."""
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


def privacy_parts(groups: Groups) -> list[PagePart]:
    """What left a client privately, and at which cost."""
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


def cost_parts(groups: Groups) -> list[PagePart]:
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


def provenance_parts(groups: Groups) -> list[PagePart]:
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


def command_parts(groups: Groups) -> list[PagePart]:
    """One command per configuration, of its first seed."""
    commands = []
    for name, runs in groups.items():
        first, *others = [str(run.config.run.seed) for run in runs]
        seeds = f"seed {first}" + (f"; others by --seed {', '.join(others)}" if others else "")
        title = f"S{seeds[1:]}" if len(groups) > FEW else f"{name}, {seeds}"
        commands.append((name, Command(title, command_of(runs[0].config))))
    return folded(commands) if len(commands) > FEW else [part for _, part in commands]
