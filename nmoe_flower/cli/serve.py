"""The options of ``nmoe serve``. What it does is in ``serving``, imported when it is needed."""

import argparse
from pathlib import Path

from nmoe_flower.arguments import ListenAddress, Number, Whole
from nmoe_flower.cli.options import add_keys, add_metrics_port, check_keys, needs_serve, take_node

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "answer peers with this device's expert"

_LISTEN = "127.0.0.1:7600"
_EXAMPLES = """\
examples:
  nmoe serve bundles/3 --insecure                        a first try, on this machine only
  nmoe serve --node node-3                               all files from a folder of nmoe deploy
  nmoe serve bundle --certificate camera-3.pem --key camera-3.key --authority ca.pem \\
             --listen 0.0.0.0:7600 --metrics-port 9600   for the federation

SIGTERM and Ctrl-C finish what is open and stop; SIGHUP reads all files again. A new bundle,
certificate or list of peers is also taken up when its file changes. The exit code is 0 if every
open request was answered.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe serve``."""
    parser.description = "Serve this device's expert to its peers over gRPC."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "bundle", type=Path, nargs="?", metavar="BUNDLE", help="its folder (of --node: its own)"
    )
    add_keys(parser)
    parser.add_argument(
        "--listen", type=ListenAddress(), metavar="HOST:PORT",
        help=f"port 0: any that is free ({_LISTEN}; with --node: where its peers look for it)",
    )  # fmt: skip
    add_metrics_port(parser)
    parser.add_argument("--peers", type=Path, metavar="FILE", help="signed list to hand on")
    parser.add_argument("--deny", nargs="+", default=[], metavar="NAME", help="who gets no answer")
    for name, kind, default, text in (
        ("--max-batch", Whole(1, 1 << 20), 256, "rows per pass"),
        ("--max-queue", Whole(1, 1 << 24), 4096, "rows that wait"),
        ("--max-wait-ms", Number(0, 60_000), 0.0, "for company"),
        ("--threads", Whole(1, 1024), 1, "of one pass"),
        ("--drain-seconds", Number(0, 86_400), 10.0, "to finish what is open"),
    ):
        parser.add_argument(name, type=kind, default=default, help=f"{text} (%(default)s)")
    parser.add_argument("--log", choices=("json", "text"), default="json", help="on stderr")

    def command(args: argparse.Namespace) -> int:
        check_keys(parser, args)
        if (args.bundle is None) == (args.node is None):
            parser.error("give BUNDLE, or --node FOLDER, which has one")
        with needs_serve("nmoe serve"):
            from nmoe_flower.cli.serving import run

            take_node(args)
        args.listen = args.listen or _LISTEN
        return run(args)

    parser.set_defaults(command=command)
