"""Measure what a round costs, print and write it."""

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.rounds.kinds import FLOOR_GOALS, KINDS, START_GOALS
from benchmarks.rounds.measure import RoundFigures, measure_kind, measure_memory
from benchmarks.rounds.remote import RUNNERS
from benchmarks.yardstick import columns, machine_line
from nmoe_flower.arguments import SEED, NameList, OutputFile, Whole
from nmoe_flower.engine import interruptible
from nmoe_flower.files import write_json
from nmoe_flower.provenance import provenance

__all__ = ["main", "other_lines", "table"]

_HEAD = ("kind", "runner", "to round 1", "per round", "x bare", "x cpu", "goals")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it measured, whatever the figures are."""
    args = _parser().parse_args(argv)
    source = provenance(args.seed)
    options = {"seed": args.seed, "workers": args.workers}
    with interruptible():
        figures: list[RoundFigures] = []
        for name in args.kind:
            runners = [runner for runner in RUNNERS if runner in args.runner and runner != "bare"]
            _tell(f"measuring {name}: {', '.join(['bare', *runners])}")
            figures += measure_kind(KINDS[name], runners, rounds=args.rounds, **options)
        memory = {}
        for strategy in ("streaming", "fedavg") if args.memory else ():
            _tell(f"measuring memory: {strategy}")
            memory[strategy] = measure_memory(strategy, **options)
    print(table(figures))
    for line in other_lines(figures, memory):
        print(line)
    print(machine_line(source, args.workers))
    if args.json is not None:
        write_json(args.json, _as_json(source, args, figures, memory))
    return 0


def _as_json(
    source: dict[str, Any],
    args: argparse.Namespace,
    figures: list[RoundFigures],
    memory: dict[str, float],
) -> dict[str, Any]:
    return {
        "provenance": source,
        "workers": args.workers,
        "rows": [one.as_json() for one in figures],
        "server-peak-bytes": memory,
    }


def table(figures: Iterable[RoundFigures]) -> str:
    """One line per kind and runner."""
    return columns([_HEAD, *(_row(one) for one in figures)], left=(0, 1, 6))


def _row(one: RoundFigures) -> tuple[str, ...]:
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


def other_lines(figures: Iterable[RoundFigures], memory: Mapping[str, float]) -> list[str]:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rounds",
        description="Seconds per round of the engines, as multiples of a bare PyTorch loop.",
    )
    parser.add_argument("--kind", type=NameList(tuple(KINDS)), default=list(KINDS), metavar="A,B")
    parser.add_argument("--runner", type=NameList(RUNNERS), default=list(RUNNERS), metavar="A,B")
    parser.add_argument("--workers", type=Whole(1, 4096), default=2, help="client processes")
    parser.add_argument("--rounds", type=Whole(1), help="measured rounds at least")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--memory", action="store_true", help="also 100 clients x 45 MB")
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    return parser


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
