"""``nmoe bundle``: from a finished run to the folders that devices serve and ask with."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nmoe_flower.arguments import Whole
from nmoe_flower.cli.options import needs_serve

if TYPE_CHECKING:
    from nmoe_flower.inference import Bundle, TextBundle

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "a finished run as devices serve it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe bundle``."""
    parser.description = (
        "Write DIR/0, DIR/1, ...: a bundle for every client of a finished run. With --store, on a "
        "device: write DIR, the bundle of this device, from what it kept of the run, of images or "
        "of text."
    )
    parser.epilog = (
        "examples: nmoe bundle runs/nmoe --out bundles && nmoe serve bundles/3 --insecure; "
        "nmoe bundle --store store/nmoe --out bundle"
    )
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN_DIR", help="a finished run")
    parser.add_argument("--store", type=Path, metavar="DIR", help="of a device, instead of RUN_DIR")
    parser.add_argument(
        "--out", type=Path, default=Path("bundles"), metavar="DIR", help="where to (bundles)"
    )
    parser.add_argument(
        "--gate", metavar="GATE", help="which gate routes (federated, or what the run has)"
    )
    parser.add_argument(
        "--replicas", type=Whole(1, 10_000), metavar="N",
        help="devices that hold each adapter of a language model (1)",
    )  # fmt: skip
    parser.add_argument(
        "--holders", type=Path, metavar="FILE.csv|json",
        help="which devices hold which, as nmoe align --out writes it, beside each its own",
    )  # fmt: skip

    def command(args: argparse.Namespace) -> int:
        if (args.run is None) == (args.store is None):
            parser.error("give RUN_DIR, or --store alone")
        for option, value in (("--replicas", args.replicas), ("--holders", args.holders)):
            if args.store is not None and value is not None:
                parser.error(f"{option} needs RUN_DIR: a device has its own expert alone")
        if args.replicas is not None and args.holders is not None:
            parser.error("--replicas and --holders exclude each other")
        with needs_serve("nmoe bundle"):
            from nmoe_flower.inference.bundle import bundled_run, read_store

            if args.store is not None:  # refused before torch is loaded
                read_store(args.store)
            else:
                bundled_run(args.run)
            from nmoe_flower.inference import export_run, export_store

        bundles: Sequence[Bundle | TextBundle]
        if args.store is not None:
            bundles = [export_store(args.store, args.out, gate=args.gate)]
        else:
            bundles = export_run(
                args.run,
                args.out,
                gate=args.gate,
                replicas=args.replicas or 1,
                holders=args.holders,
            )
        for bundle in bundles:
            print(
                f"{bundle.folder}  expert {bundle.expert_version}  gate {bundle.gate_version}  "
                f"extractor {bundle.extractor_version}"
            )
        return 0

    parser.set_defaults(command=command)
