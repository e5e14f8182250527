"""``nmoe bench infer``: what a peer's answer costs, beside a raw gRPC echo of the same bytes."""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from nmoe_flower.arguments import OutputFile, Whole
from nmoe_flower.bench.infer_encodings import EncodingCost, bytes_per_sample, encoding_costs
from nmoe_flower.bench.infer_measure import KINDS, Figures, measure
from nmoe_flower.bench.infer_soak import soak
from nmoe_flower.bench.infer_table import LATENTS, print_figures, soak_line
from nmoe_flower.bench.table import machine_line
from nmoe_flower.certificates import Identity, create_authority
from nmoe_flower.files import write_json
from nmoe_flower.inference import Bundle, export_run
from nmoe_flower.inference.protocol.wire import ENCODINGS
from nmoe_flower.provenance import provenance

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it measured and every query was answered, whatever the figures."""
    args = _parser().parse_args(argv)
    source = provenance(seed=0)
    found: dict[str, Any] = {"provenance": source, "encrypted": not args.insecure}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundles = export_run(args.run, folder / "bundles")
        certificates, identity = (None, None) if args.insecure else _certificates(folder)
        soaked = None
        if args.soak:
            _tell(f"soaking: {args.soak:,} queries")
            soaked = soak(bundles[0], certificates, identity, queries=args.soak)
            found["soak"] = soaked.as_json()
            print(soak_line(soaked))
        else:
            _tell("measuring: " + ", ".join(f"{r} rows x {c} at once" for r, c in args.loads))
            loads = measure(
                bundles[0],
                certificates,
                identity,
                loads=args.loads,
                blocks=args.blocks,
                block=args.block,
            )
            costs = encoding_costs(args.run, bundles)
            found |= _as_json(loads, costs, bundles[0])
            print_figures(loads, costs, bundles[0])
    print(machine_line(source, 1))
    if args.json is not None:
        write_json(args.json, found)
    return 1 if soaked is not None and soaked.errors else 0


def _certificates(folder: Path) -> tuple[Path, Identity]:
    """Keys of a federation of two: the folder, and the caller's identity."""
    authority = create_authority(folder / "keys", name="bench")
    authority.issue(folder / "keys", "server")
    return folder / "keys", authority.issue(folder / "keys", "asker")


def _as_json(
    loads: Sequence[Mapping[str, Figures]], costs: Sequence[EncodingCost], bundle: Bundle
) -> dict[str, Any]:
    return {
        "rows": [
            load[kind].as_json({name: load[name] for name in KINDS if name != kind})
            for load in loads
            for kind in KINDS
        ],
        "encodings": [cost.as_json() for cost in costs],
        "bytes-per-sample": {
            str(dim): {encoding: bytes_per_sample(dim, encoding) for encoding in ENCODINGS}
            for dim in (bundle.latent_dim, *LATENTS)
        },
        "image-bytes": prod(bundle.manifest.image_shape),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nmoe bench infer",
        description="Requests per second of a peer, beside a gRPC echo of the same bytes (echo), "
        "a peer with a network of one layer (service), and a server that only runs the expert "
        "(bare); bytes and accuracy of the encodings of latents.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a finished run")
    parser.add_argument(
        "--load",
        dest="loads",
        type=_load,
        nargs="+",
        default=[(1, 1), (1, 8), (64, 1), (64, 8)],
        metavar="ROWSxCONCURRENCY",
        help="what to ask, as in --load 64x8",
    )
    parser.add_argument("--blocks", type=Whole(1), default=6, help="turns of each server")
    parser.add_argument("--block", type=Whole(1), default=400, help="requests per turn")
    parser.add_argument("--soak", type=Whole(1), metavar="N", help="N queries instead; memory")
    parser.add_argument("--insecure", action="store_true", help="without TLS")
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    return parser


def _load(text: str) -> tuple[int, int]:
    rows, _, concurrency = text.partition("x")
    try:
        return Whole(1, 256)(rows), Whole(1, 1024)(concurrency)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r}; allowed: ROWSxCONCURRENCY, up to 256 and 1024, as in 64x8"
        ) from None


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
