"""``nmoe study report``: tables and figures of a study, from its runs or from published ones."""

import argparse
import sys
from pathlib import Path

from nmoe_flower.cli.options import add_finished, add_set, check_finished

__all__ = ["SET_OF_STUDY", "add_report", "add_stage_1"]

SET_OF_STUDY = "settings of every run, before the file's: --set data.dataset=/a/folder"


def add_stage_1(parser: argparse.ArgumentParser, root: str) -> None:
    """``--stage-1``: where stage 1 is shared; ``root`` is what the folder beside it is called."""
    parser.add_argument(
        "--stage-1",
        type=Path,
        metavar="DIR",
        help=f"where stage 1 is trained and found, by all studies (default: {root}/stage-1)",
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe study report``."""
    parser.add_argument(
        "study", metavar="STUDY", help="a TOML file, or the name of one that comes along"
    )
    add_set(parser, SET_OF_STUDY)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR",
        help="the folder that holds the study's folder: runs, or results for published ones",
    )  # fmt: skip
    add_finished(parser)
    add_stage_1(parser, "RUNS")
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where to (default: report in the study's folder; of published runs, in that in "
        "./runs)",
    )  # fmt: skip
    parser.add_argument(
        "--format", type=_several("FORMATS"), metavar="LIST",
        help="files of each table: md,csv,tex (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--figures", type=_several("PICTURES"), default=("png",), metavar="LIST",
        help="files of each figure: png,pdf,svg (default: png)",
    )  # fmt: skip
    parser.add_argument(
        "--html", type=Path, metavar="FILE",
        help="one page to open in a browser, send or print; without --out, no folder is written",
    )  # fmt: skip
    parser.add_argument(
        "--publish", type=Path, metavar="DIR",
        help="also copy the runs' small files and table.json to DIR/<study>",
    )  # fmt: skip
    parser.set_defaults(command=_report)


def _several(known: str) -> "argparse._ActionType":
    """Reads ``a,b`` as names of a list of `nmoe_flower.study`, imported once some are given."""

    def read(text: str) -> tuple[str, ...]:
        from nmoe_flower import study

        allowed = tuple(getattr(study, known))
        names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        unknown = [name for name in names if name not in allowed]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"{', '.join(map(repr, unknown)) or 'nothing'} is given; allowed: "
                f"{','.join(allowed)}"
            )
        return names

    return read


def _report(args: argparse.Namespace) -> int:
    from nmoe_flower.recipes import find_study
    from nmoe_flower.study import (
        FORMATS,
        Study,
        default_out,
        findings_of,
        publish_study,
        write_findings,
        write_webpage,
    )

    check_finished(args.finished)
    study = Study.load(find_study(args.study), args.overrides)
    findings = findings_of(study, args.runs, args.finished, stage_1=args.stage_1)
    out = args.out if args.out is not None else default_out(findings)
    if args.out is not None or args.html is None:
        formats = args.format or tuple(FORMATS)
        path = write_findings(findings, out, formats=formats, pictures=args.figures)
        print(f"report  {path}")
    if args.html is not None:
        print(f"report  {write_webpage(findings, args.html)}")
    if args.publish is not None:
        print(f"published  {publish_study(findings, args.runs, args.publish)}")
    for sentence in findings.absent:
        print(f"note: {sentence}", file=sys.stderr)
    return 1 if any(one.failed for one in findings.outcomes) else 0
