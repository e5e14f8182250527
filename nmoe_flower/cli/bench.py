"""``nmoe bench``: says where the benchmarks are; they measure the code, and are not installed."""

import argparse

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "where the benchmarks are"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whatever is measured is measured from a checkout; the command only says so."""
    parser.add_argument(
        "what", choices=("align", "fedsc", "infer", "rounds"), help="what is measured"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")

    def command(args: argparse.Namespace) -> int:
        parser.error(
            "benchmarks are not installed; in a checkout: "
            f"python -m benchmarks.{args.what} (docs/how-to/benchmarks.md)"
        )

    parser.set_defaults(command=command)
