"""Measure what a round costs, print and write it."""

import argparse
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.rounds.kinds import FLOOR_GOALS, KINDS, START_GOALS
from benchmarks.rounds.measure import (
    RoundFigures,
    Row,
    measure_kind,
    measure_memory,
    medians,
)
from benchmarks.rounds.remote import ON_SUPERLINK, RUNNERS
from benchmarks.yardstick import DIGITS, columns, machine_line, say, write_rows
from nmoe_flower.arguments import SEED, NameList, OutputFile, Parser, Whole
from nmoe_flower.engine import interruptible
from nmoe_flower.files import rounded
from nmoe_flower.installation import install_hint
from nmoe_flower.provenance import provenance

__all__ = ["main", "other_lines", "table"]

_HEAD = ("kind", "runner", "to round 1", "per round", "x bare", "x cpu", "memory", "goals")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it measured, whatever the figures are."""
    args = _parser().parse_args(argv)
    source = provenance(args.seed)
    options = {"seed": args.seed, "workers": args.workers}
    runners = [runner for runner in RUNNERS if runner in args.runner and runner != "bare"]
    missing = {}
    if "pfl" in runners and (reason := _no_pfl(str(args.pfl_python))):
        runners.remove("pfl")
        missing["pfl"] = reason
        say(f"pfl is not measured: {reason}")
    with interruptible():
        figures: list[RoundFigures] = []
        for count, name in product(range(1, args.repeat + 1), args.kind):
            due = [runner for runner in runners if count == 1 or runner not in ON_SUPERLINK]
            say(f"measuring {name}, {count} of {args.repeat}: {', '.join(['bare', *due])}")
            figures += measure_kind(
                KINDS[name], due, rounds=args.rounds, pfl_python=str(args.pfl_python), **options
            )
        memory = {}
        for strategy in ("streaming", "fedavg") if args.memory else ():
            say(f"measuring memory: {strategy}")
            memory[strategy] = measure_memory(strategy, **options)
    print(table(figures))
    for line in other_lines(figures, memory):
        print(line)
    for runner, reason in missing.items():
        print(f"{runner} is not measured: {reason}")
    print(machine_line(source, args.workers))
    if args.json is not None:
        found = _as_json(source, args, figures, memory)
        whole = found | ({"not-measured": missing} if missing else {})
        write_rows(args.json, rounded(whole, DIGITS))
    return 0


def _no_pfl(python: str) -> str:
    """Why this interpreter cannot run pfl; empty: it can."""
    command = [python, "-c", "import torch, pfl.model.pytorch"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"--pfl-python {python} cannot be started: {error.strerror}"
    if not done.returncode:
        return ""
    last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return (
        f"{python} cannot import it ({last}); {install_hint('bench-pfl')}, if need be into an "
        "environment of its own that --pfl-python names"
    )


def _as_json(
    source: dict[str, Any],
    args: argparse.Namespace,
    figures: list[RoundFigures],
    memory: dict[str, float],
) -> dict[str, Any]:
    return {
        "provenance": source,
        "workers": args.workers,
        "repeat": args.repeat,
        "medians": [asdict(row) for row in medians(figures)],
        "rows": [one.as_json() for one in figures],
        "server-peak-bytes": memory,
    }


def table(figures: Iterable[RoundFigures]) -> str:
    """One line per kind and runner: medians over all passes."""
    return columns([_HEAD, *(_row(one) for one in medians(figures))], left=(0, 1, 7))


def _row(one: Row) -> tuple[str, ...]:
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
        "-" if math.isnan(one.memory) else f"{one.memory / 1e9:.2f} GB",
        "; ".join(goals),
    )


def _against(value: float, goal: float, unit: str) -> str:
    return f"<= {goal:g}{unit} {'met' if value <= goal else 'missed'}"


def other_lines(figures: Iterable[RoundFigures], memory: Mapping[str, float]) -> list[str]:
    """The exchange floors, and the peak memory in bytes if it was measured."""
    lines = [
        f"exchange of 1 kB with 10 nodes, {one.kind} {one.runner}: {one.floor:.1f} ms"
        f" ({_against(one.floor, FLOOR_GOALS[one.runner], ' ms')})"
        for one in medians(figures)
        if one.floor is not None
    ]
    lines += [
        f"peak memory of the server, 100 clients x 45 MB, {strategy}: {size / 1e9:.2f} GB"
        for strategy, size in memory.items()
    ]
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.rounds",
        description="Seconds per round of the engines, as multiples of a bare PyTorch loop.",
    )
    parser.add_argument("--kind", type=NameList(tuple(KINDS)), default=list(KINDS), metavar="A,B")
    parser.add_argument("--runner", type=NameList(RUNNERS), default=list(RUNNERS), metavar="A,B")
    parser.add_argument("--workers", type=Whole(1, 4096), default=2, help="client processes")
    parser.add_argument("--rounds", type=Whole(1), help="measured rounds at least")
    parser.add_argument(
        "--repeat",
        type=Whole(1, 99),
        default=1,
        help="passes with processes started anew, of which the medians are told; runners on a "
        "SuperLink take part in the first",
    )
    parser.add_argument(
        "--pfl-python",
        type=Path,
        default=Path(sys.executable),
        metavar="FILE",
        help="interpreter that has pfl",
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--memory", action="store_true", help="also 100 clients x 45 MB")
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    return parser
