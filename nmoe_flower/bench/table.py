"""The figures of ``nmoe bench rounds`` as plain text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nmoe_flower.bench.kinds import FLOOR_GOALS, KINDS, START_GOALS
from nmoe_flower.bench.measure import Figures

__all__ = ["machine_line", "other_lines", "table"]

_HEAD = ("kind", "runner", "to round 1", "per round", "x bare", "x cpu", "goals")


def table(figures: Iterable[Figures]) -> str:
    """One line per kind and runner."""
    rows = [_HEAD, *(_row(one) for one in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join(_line(row, widths) for row in rows)


def _row(one: Figures) -> tuple[str, ...]:
    goal = KINDS[one.kind].goals.get(one.runner)
    goals = []
    if goal is not None:
        goals.append(f"x bare {_against(one.ratio, goal, '')}")
    if one.runner in START_GOALS:
        goals.append(f"round 1 {_against(one.start_seconds, START_GOALS[one.runner], ' s')}")
    return (
        one.kind,
        one.runner,
        f"{one.start_seconds:.1f} s",
        f"{one.round_seconds:.4f} s",
        f"{one.ratio:.3f}",
        "-" if math.isnan(one.cpu_ratio) else f"{one.cpu_ratio:.3f}",
        "; ".join(goals),
    )


def _against(value: float, goal: float, unit: str) -> str:
    return f"<= {goal:g}{unit} {'met' if value <= goal else 'missed'}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if 2 <= column <= 5 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def other_lines(figures: Iterable[Figures], memory: Mapping[str, float]) -> list[str]:
    """The exchange floors, and the peak memory in bytes if it was measured."""
    lines = [
        f"exchange of 1 kB with 10 nodes, {one.kind} {one.runner}: {one.floor:.1f} ms"
        f" ({_against(one.floor, FLOOR_GOALS[one.runner], ' ms')})"
        for one in figures
        if one.floor is not None
    ]
    lines += [
        f"peak memory of the server, 100 clients x 45 MB, {strategy}: {size / 1e9:.2f} GB"
        for strategy, size in memory.items()
    ]
    return lines


def machine_line(source: Mapping[str, Any], workers: int) -> str:
    """Where, when and with what this was measured; ``source`` is a provenance."""
    machine = source["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in source["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {workers} workers; {versions}; "
        f"{source['started']}; seed {source['seed']}"
    )
