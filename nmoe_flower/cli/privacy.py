"""The options of ``nmoe privacy``. What it does is in ``noise_table``, imported when needed."""

import argparse

from nmoe_flower.arguments import Number, Whole

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "what a privacy budget leaves"

_EXAMPLES = """\
examples:
  nmoe privacy --epsilon 8 --delta 1e-5 --releases 20 --dim 128 --examples 2500 --clients 10
  nmoe privacy --epsilon 1 2 4 8 --dim 64 128 256

With several values a row is printed for every combination. Noise hides eigenvalues of the mean
matrix below its noise edge; for C clusters of equal size the smallest that matters is 1/C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe privacy``."""
    parser.description = "What a privacy budget leaves of FedSC's correlation matrices."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    several: tuple[tuple[str, Number | Whole, float, str, str], ...] = (
        ("--epsilon", Number(0, 1e6, open=True), 8.0, "E", "of a client (8)"),
        ("--releases", Whole(1, 10**6), 20, "T", "of a client (20)"),
        ("--dim", Whole(1, 2048), 128, "D", "width of a feature (128)"),
    )
    for name, kind, standard, metavar, text in several:
        parser.add_argument(
            name, type=kind, nargs="+", default=[standard], metavar=metavar, help=text
        )
    for name, default, metavar, text in (
        ("--examples", 2500, "N", "per client (2500)"),
        ("--clients", 10, "M", "(10)"),
        ("--classes", 10, "C", "or clusters (10)"),
    ):
        parser.add_argument(name, type=Whole(1), default=default, metavar=metavar, help=text)
    delta = Number(0, 1, open=True, below=True)
    parser.add_argument("--delta", type=delta, default=1e-5, help="(%(default)s)")
    parser.add_argument("--adjacency", choices=("replace-one", "add-remove"), default="replace-one")
    parser.add_argument("--format", choices=("text", "json"), default="text")

    def command(args: argparse.Namespace) -> int:
        from nmoe_flower.cli.noise_table import show

        return show(args)

    parser.set_defaults(command=command)
