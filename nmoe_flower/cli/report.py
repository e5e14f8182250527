"""``nmoe report``: tables and figures from finished runs."""

import argparse
import sys
from collections import Counter
from pathlib import Path

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "tables and figures from finished runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe report``."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR")
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    from nmoe_flower.report import write_report

    path = write_report(args.runs, args.out)
    for folder, times in Counter(run.resolve() for run in args.runs).items():
        if times > 1:
            print(f"note: {folder} is named {times} times and counts once", file=sys.stderr)
    print(f"report  {path}")
    return 0
