"""The options of ``nmoe serve``. What it does is in ``serving``, imported when it is needed."""

import argparse
from pathlib import Path

from nmoe_flower.cli.metrics_port import add_metrics_port
from nmoe_flower.errors import ConfigError

__all__ = ["add_arguments"]

_EXAMPLES = """\
examples:
  nmoe serve bundles/3 --insecure                        a first try, on this machine only
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
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="this device's")
    parser.add_argument("--key", type=Path, metavar="FILE", help="of the certificate")
    parser.add_argument("--authority", type=Path, metavar="FILE", help="ca.pem of the federation")
    parser.add_argument("--insecure", action="store_true", help="no encryption, no names")
    parser.add_argument(
        "--listen", default="127.0.0.1:7600", metavar="HOST:PORT", help="(%(default)s)"
    )
    add_metrics_port(parser)
    parser.add_argument("--peers", type=Path, metavar="FILE", help="signed list to hand on")
    parser.add_argument("--deny", nargs="+", default=[], metavar="NAME", help="who gets no answer")
    parser.add_argument("--max-batch", type=int, default=256, help="rows per pass (%(default)s)")
    parser.add_argument("--max-queue", type=int, default=4096, help="rows that wait (%(default)s)")
    parser.add_argument("--max-wait-ms", type=float, default=0.0, help="for company (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of one pass (%(default)s)")
    parser.add_argument("--drain-seconds", type=float, default=10.0, help="(%(default)s)")
    parser.add_argument("--log", choices=("json", "text"), default="json", help="on stderr")

    def command(args: argparse.Namespace) -> int:
        keys = (args.certificate, args.key, args.authority)
        if args.insecure == (None not in keys) or (args.insecure and any(keys)):
            parser.error("give --certificate, --key and --authority, or --insecure alone")
        try:
            from nmoe_flower.cli.serving import run
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"nmoe serve needs {error.name}: pip install 'nmoe-flower[serve]'"
            ) from None
        return run(args)

    parser.set_defaults(command=command)
