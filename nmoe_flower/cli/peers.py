"""The options of ``nmoe peers``. What it does is in ``peer_table``, imported when needed."""

import argparse
from pathlib import Path

from nmoe_flower.arguments import Number, OutputFile
from nmoe_flower.cli.options import add_keys, check_keys, needs_serve, take_node

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "how the peers are; sign their list"

_EXAMPLES = """\
examples:
  nmoe peers --peers peers.json --certificate camera-0.pem --key camera-0.key --authority ca.pem
  nmoe peers --node node-0
  nmoe peers --peers peers.json --insecure --once --format json
  nmoe peers --peers draft.json --sign authority/ --out peers.json --days 30
  nmoe peers --heat-map traffic.png traffic.jsonl

The table shows what every peer says of itself: version, health, rows that wait, the time of a
question and its answer, and its share of all answers. With --once the exit code is 1 if a peer does
not serve.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe peers``."""
    parser.description = "Show how the peers are, sign their list, or draw who was asked."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--peers", type=Path, metavar="FILE", help="peers.json")
    add_keys(parser)
    parser.add_argument("--once", action="store_true", help="print one table and leave")
    parser.add_argument("--format", choices=("auto", "text", "json"), default="auto")
    seconds = Number(0, 86_400, open=True)
    parser.add_argument("--interval", type=seconds, default=2.0, help="seconds (%(default)s)")
    parser.add_argument("--timeout", type=seconds, default=2.0, help="of an answer (%(default)s)")
    parser.add_argument(
        "--sign", type=Path, metavar="FOLDER", help="sign the list with ca.key, or directory.key"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="of --sign (the list itself)")
    parser.add_argument(
        "--days",
        type=Number(0, 36_500, open=True),
        default=30.0,
        help="a signed list holds (%(default)s)",
    )
    parser.add_argument(
        "--heat-map",
        type=OutputFile((".png", ".pdf", ".svg")),
        metavar="FILE.png",
        help="draw who was asked",
    )
    parser.add_argument("records", nargs="*", type=Path, metavar="RECORDS.jsonl")

    def command(args: argparse.Namespace) -> int:
        if args.heat_map is not None:
            if not args.records:
                parser.error("--heat-map needs files of records, written by nmoe infer --records")
            from nmoe_flower.cli.traffic import draw

            return draw(args.records, args.heat_map)
        if (args.peers is None and args.node is None) or args.records:
            parser.error(
                "give --peers FILE, --node FOLDER, or --heat-map FILE.png and files of records"
            )
        with needs_serve("nmoe peers"):
            from nmoe_flower.cli import peer_table

        if args.sign is not None:
            if args.peers is None:
                parser.error("--sign needs --peers FILE, the list to sign")
            return peer_table.sign(args.peers, args.sign, out=args.out, days=args.days)
        check_keys(parser, args)
        take_node(args)
        return peer_table.show(args)

    parser.set_defaults(command=command)
