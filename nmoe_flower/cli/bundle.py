"""``nmoe bundle``: from a finished run to the folders that devices serve and ask with."""

import argparse
from pathlib import Path

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe bundle``."""
    parser.description = "Write DIR/0, DIR/1, ...: a bundle for every client of a finished run."
    parser.epilog = (
        "example: nmoe bundle runs/nmoe --out bundles && nmoe serve bundles/3 --insecure"
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--out", type=Path, default=Path("bundles"), metavar="DIR", help="(bundles)"
    )
    parser.add_argument("--gate", default="federated", help="which gate routes (federated)")

    def command(args: argparse.Namespace) -> int:
        from nmoe_flower.inference import export_run

        for bundle in export_run(args.run, args.out, gate=args.gate):
            print(
                f"{bundle.folder}  expert {bundle.expert_version}  gate {bundle.gate_version}  "
                f"extractor {bundle.extractor_version}"
            )
        return 0

    parser.set_defaults(command=command)
