"""The figures of ``nmoe bench infer`` as plain text."""

from collections.abc import Mapping, Sequence
from math import prod

from nmoe_flower.bench.infer_encodings import EncodingCost, bytes_per_sample
from nmoe_flower.bench.infer_measure import KINDS, Figures
from nmoe_flower.bench.infer_soak import Soak
from nmoe_flower.inference import Bundle
from nmoe_flower.inference.protocol.wire import ENCODINGS

__all__ = ["LATENTS", "print_figures", "soak_line"]

LATENTS = (256, 512)  # of the backbones narrow and resnet18, for images of CIFAR-10
_PAPER_IMAGE = 32 * 32 * 3
_GOAL_ROWS, _GOAL = 64, 0.8


def print_figures(
    loads: Sequence[Mapping[str, Figures]], costs: Sequence[EncodingCost], bundle: Bundle
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
    print(_aligned(rows))
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
    print(_aligned(rows))
    sizes = [["latent", *ENCODINGS, "raw image"]]
    image = prod(bundle.manifest.image_shape)
    for dim, raw in ((bundle.latent_dim, image), *((dim, _PAPER_IMAGE) for dim in LATENTS)):
        cells = [f"{bytes_per_sample(dim, encoding):.0f} B" for encoding in ENCODINGS]
        sizes.append([str(dim), *cells, f"{raw} B"])
    print(_aligned(sizes))


def soak_line(found: Soak) -> str:
    """What a soak found, in a sentence."""
    return (
        f"{found.queries:,} queries in {found.seconds:.0f} s, {found.errors} errors; memory "
        f"{found.first_bytes / 1e6:.1f} MB after a quarter, {found.last_bytes / 1e6:.1f} MB at "
        f"the end, slope {found.slope / 1e3:+.2f} kB per 1,000 queries"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(lines) + "\n"
