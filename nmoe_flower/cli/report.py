"""``nmoe report``: tables and figures from finished runs."""

import argparse
import sys
from collections import Counter
from pathlib import Path

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "tables and figures from finished runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe report``."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="finished runs")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="report.md, results.csv and figures (./report)"
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="one page to open in a browser, send or print; alone, no folder is written",
    )
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    from nmoe_flower.report import write_report
    from nmoe_flower.report.html import write_page

    written = []
    if args.out or not args.html:
        written.append(write_report(args.runs, args.out or Path("report")))
    if args.html:
        written.append(write_page(args.runs, args.html))
    for folder, times in Counter(run.resolve() for run in args.runs).items():
        if times > 1:
            print(f"note: {folder} is named {times} times and counts once", file=sys.stderr)
    for path in written:
        print(f"report  {path}")
    return 0
