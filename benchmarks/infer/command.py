"""Start the servers, let them take turns, print and write what was measured."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.infer.encodings import EncodingCost, bytes_per_sample, encoding_costs
from benchmarks.infer.load import KINDS, LoadFigures, measure
from benchmarks.infer.soak import Soak, soak
from benchmarks.yardstick import columns, machine_line, say, write_rows
from nmoe_flower.arguments import OutputFile, Parser, Whole
from nmoe_flower.certificates import Identity, create_authority
from nmoe_flower.inference import Bundle, export_run
from nmoe_flower.inference.protocol import ENCODINGS
from nmoe_flower.provenance import provenance

__all__ = ["main", "soak_line"]

_LATENTS = (256, 512)  # of the backbones narrow and resnet18, for images of CIFAR-10
_PAPER_IMAGE = 32 * 32 * 3
_GOAL_ROWS, _GOAL = 64, 0.8


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it measured and every query was answered, whatever the figures."""
    args = _parser().parse_args(argv)
    source = provenance(seed=0)
    found: dict[str, Any] = {"provenance": source, "encrypted": not args.insecure}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exported = export_run(args.run, folder / "bundles")
        bundles = [bundle for bundle in exported if isinstance(bundle, Bundle)]
        certificates, identity = (None, None) if args.insecure else _certificates(folder)
        soaked = None
        if args.soak:
            say(f"soaking: {args.soak:,} queries")
            soaked = soak(bundles[0], certificates, identity, queries=args.soak)
            found["soak"] = soaked.as_json()
            print(soak_line(soaked))
        else:
            say("measuring: " + ", ".join(f"{r} rows x {c} at once" for r, c in args.loads))
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
            _print_figures(loads, costs, bundles[0])
    print(machine_line(source, 1))
    if args.json is not None:
        write_rows(args.json, found)
    return 1 if soaked is not None and soaked.errors else 0


def _certificates(folder: Path) -> tuple[Path, Identity]:
    """Keys of a federation of two: the folder, and the caller's identity."""
    authority = create_authority(folder / "keys", name="bench")
    authority.issue(folder / "keys", "server")
    return folder / "keys", authority.issue(folder / "keys", "asker")


def _as_json(
    loads: Sequence[Mapping[str, LoadFigures]], costs: Sequence[EncodingCost], bundle: Bundle
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
            for dim in (bundle.latent_dim, *_LATENTS)
        },
        "image-bytes": prod(bundle.manifest.image_shape),
    }


def _print_figures(
    loads: Sequence[Mapping[str, LoadFigures]], costs: Sequence[EncodingCost], bundle: Bundle
) -> None:
    """Throughput, then what the encodings cost, then their sizes."""
    head = ["rows", "at once", "server", "requests/s", "p50", "p99", "CPU/sample", "x echo"]
    rows = [[*head, "x bare"]]
    for load in loads:
        for kind in KINDS:
            one = load[kind]
            rows.append(
                [
                    str(one.rows),
                    str(one.concurrency),
                    kind,
                    f"{one.requests_per_second:.0f}",
                    f"{one.quantile(0.5):.2f} ms",
                    f"{one.quantile(0.99):.2f} ms",
                    f"{one.cpu_per_sample:.1f} us",
                    f"{one.ratio_to(load['echo']):.2f}",
                    f"{one.ratio_to(load['bare']):.2f}",
                ]
            )
    print(columns(rows), end="\n\n")
    for load in loads:
        service, peer = load["service"], load["peer"]
        if peer.rows == _GOAL_ROWS:
            ratio = service.ratio_to(load["echo"])
            met = "met" if ratio >= _GOAL else "missed"
            print(
                f"{peer.rows} rows x {peer.concurrency}: the service alone {ratio:.2f} of echo "
                f"({_GOAL}: {met}), with the run's expert {peer.ratio_to(load['echo']):.2f}"
            )
    _print_encodings(costs, bundle)


def _print_encodings(costs: Sequence[EncodingCost], bundle: Bundle) -> None:
    rows = [["encoding", "test", "samples", "accuracy", "loss", "changed", "largest error"]]
    for cost in costs:
        rows.append(
            [
                cost.encoding,
                cost.split,
                str(cost.samples),
                f"{cost.accuracy:.4f}",
                f"{cost.loss:+.4f}",
                f"{cost.changed:.2%}",
                f"{cost.largest_error:.4f}",
            ]
        )
    print(columns(rows), end="\n\n")
    sizes = [["latent", *ENCODINGS, "raw image"]]
    image = prod(bundle.manifest.image_shape)
    for dim, raw in ((bundle.latent_dim, image), *((dim, _PAPER_IMAGE) for dim in _LATENTS)):
        cells = [f"{bytes_per_sample(dim, encoding):.0f} B" for encoding in ENCODINGS]
        sizes.append([str(dim), *cells, f"{raw} B"])
    print(columns(sizes), end="\n\n")


def soak_line(found: Soak) -> str:
    """What a soak found, in a sentence."""
    return (
        f"{found.queries:,} queries in {found.seconds:.0f} s, {found.errors} errors; memory "
        f"{found.first_bytes / 1e6:.1f} MB after a quarter, {found.last_bytes / 1e6:.1f} MB at "
        f"the end, slope {found.slope / 1e3:+.2f} kB per 1,000 queries"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.infer",
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
