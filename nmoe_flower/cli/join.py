"""``nmoe join``: a finished run with one client more, whose sums are added."""

import argparse

from nmoe_flower.cli.forget import add_change, finish

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "take a client into a finished run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe join``."""
    parser.description = (
        "Begin OUT, a run with one client more, one of data.without: it alone is asked for its "
        "sums, which are added to the others', and what was trained is trained again. Where "
        "experts carry embeddings (gate.form = metric) or read text, it alone trains."
    )
    parser.epilog = "example: nmoe join runs/without-3 --share 3 --out runs/with-3"
    add_change(parser, "--share", "the number of its share of the data, one of data.without")

    def command(args: argparse.Namespace) -> int:
        from nmoe_flower.membership import join

        change = join(args.run, args.share, args.out)
        print(f"share {args.share} joined {args.run} as client {change.client}: {args.out}")
        print(*change.lines(), sep="\n")
        return finish(args, change.folder.path)

    parser.set_defaults(command=command)
