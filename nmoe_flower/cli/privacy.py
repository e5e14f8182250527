"""The options of ``nmoe privacy``. What it does is in ``noise_table``, imported when needed."""

import argparse

__all__ = ["add_arguments"]

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
    parser.add_argument(
        "--epsilon", type=float, nargs="+", default=[8.0], metavar="E", help="of a client (8)"
    )
    parser.add_argument("--delta", type=float, default=1e-5, help="(%(default)s)")
    parser.add_argument(
        "--releases", type=int, nargs="+", default=[20], metavar="T", help="of a client (20)"
    )
    parser.add_argument(
        "--dim", type=int, nargs="+", default=[128], metavar="D", help="width of a feature (128)"
    )
    parser.add_argument("--examples", type=int, default=2500, metavar="N", help="per client (2500)")
    parser.add_argument("--clients", type=int, default=10, metavar="M", help="(10)")
    parser.add_argument("--classes", type=int, default=10, metavar="C", help="or clusters (10)")
    parser.add_argument("--adjacency", choices=("replace-one", "add-remove"), default="replace-one")
    parser.add_argument("--format", choices=("text", "json"), default="text")

    def command(args: argparse.Namespace) -> int:
        from nmoe_flower.cli.noise_table import show

        return show(args)

    parser.set_defaults(command=command)
