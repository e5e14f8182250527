"""The options of ``nmoe infer``. What it does is in ``answering``, imported when it is needed."""

import argparse
from pathlib import Path

from nmoe_flower.arguments import Number, OutputFile, Whole
from nmoe_flower.cli.options import add_keys, add_metrics_port, check_keys, needs_serve, take_node

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "classify images with the peers' help"

_EXAMPLES = """\
examples:
  nmoe infer bundles/0 photo.png                          this device's expert alone
  nmoe infer --node node-0 photo.png                      all files from a folder of nmoe deploy
  nmoe infer bundles/0 photo.png --peers peers.json --insecure
  nmoe infer bundle images/ more.npy --peers peers.json --certificate camera-0.pem \\
             --key camera-0.key --authority ca.pem --records traffic.jsonl
  cat photo.png | nmoe infer bundle - --peers peers.json --insecure

One line of JSON per image: class, probability, the experts the gate chose, who answered, the
milliseconds of its batch, and what was fallen back to. An image that cannot be read gets a line
with "error", and the exit code is then 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe infer``."""
    parser.description = "Classify images with the help of the other devices."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="this device's folder; left out with --node"
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="image files, folders, .npy arrays, - for stdin; tables, if it was trained on one",
    )
    parser.add_argument(
        "--peers", type=Path, metavar="FILE", help="peers.json; without, nobody else is asked"
    )
    add_keys(parser)
    parser.add_argument("--resize", action="store_true", help="images of another size, to fit")
    parser.add_argument(
        "--top-k", type=Whole(1, 10_000), metavar="K", help="experts per image (the gate's)"
    )
    parser.add_argument(
        "--batch-size", type=Whole(1, 1 << 20), default=64, help="images at once (%(default)s)"
    )
    seconds = Number(0, 86_400, open=True)
    parser.add_argument("--deadline", type=seconds, default=1.0, help="seconds (%(default)s)")
    parser.add_argument(
        "--hedge-after", type=seconds, metavar="SECONDS", help="then ask the next best besides"
    )
    parser.add_argument(
        "--prefer-margin", type=Number(0, 1e6), default=0.0, metavar="SCORE",
        help="how much lower a healthier expert may score (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--encoding", choices=("float32", "float16", "int8"), default="float32")
    add_metrics_port(parser)
    parser.add_argument(
        "--records", type=OutputFile(), metavar="FILE", help="append a line per batch"
    )

    def command(args: argparse.Namespace) -> int:
        if args.node is not None:
            check_keys(parser, args)
            args.bundle = None
        elif args.peers is not None:
            check_keys(parser, args)
        elif args.insecure or any((args.certificate, args.key, args.authority)):
            parser.error("--certificate, --key, --authority and --insecure need --peers FILE")
        with needs_serve("nmoe infer"):
            from nmoe_flower.cli.answering import run

            take_node(args)
        return run(args)

    parser.set_defaults(command=command)
