"""``nmoe bench rounds``: what a round costs, beside a bare loop and a stock Flower app."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from nmoe_flower.arguments import SEED, NameList, OutputFile, Whole
from nmoe_flower.bench.kinds import KINDS
from nmoe_flower.bench.measure import Figures, measure_kind, measure_memory
from nmoe_flower.bench.remote import RUNNERS
from nmoe_flower.bench.table import machine_line, other_lines, table
from nmoe_flower.engine.signals import interruptible
from nmoe_flower.files import write_json
from nmoe_flower.provenance import provenance

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it measured, whatever the figures are."""
    args = _parser().parse_args(argv)
    source = provenance(args.seed)
    options = {"seed": args.seed, "workers": args.workers}
    with interruptible():
        figures: list[Figures] = []
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
    figures: list[Figures],
    memory: dict[str, float],
) -> dict[str, Any]:
    return {
        "provenance": source,
        "workers": args.workers,
        "rows": [one.as_json() for one in figures],
        "server-peak-bytes": memory,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nmoe bench rounds",
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
