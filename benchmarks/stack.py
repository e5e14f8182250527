"""Clients that take their steps one after the other, and the same clients at once."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.yardstick import columns, say, told, write_rows
from nmoe_flower.arguments import SEED, NameList, OutputFile, Parser, Whole
from nmoe_flower.models import Expert
from nmoe_flower.provenance import provenance
from nmoe_flower.rendezvous import run_together
from nmoe_flower.training import RowBatches, SharedLoss, batch_indices, fit, seeded, stack

__all__ = ["main"]

_ROWS, _BATCH, _CLASSES = 64, 32, 10
_SMALL = ("linear", "mlp")
_LATENT, _IMAGE = 64, (3, 16, 16)


@dataclass(frozen=True)
class Pace:
    """One network at one number of clients.

    Attributes:
        network: One of the names in `NETWORKS`.
        clients: How many train, N.
        loop: Milliseconds of a step of one client, one after the other.
        stacked: Milliseconds of a step of one client, all at once.
        gain: Median quotient of neighbouring turns, loop over stacked.
    """

    network: str
    clients: int
    loop: float
    stacked: float
    gain: float


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, _CLASSES),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Expert(_LATENT, _CLASSES, hidden=()), (_LATENT,)),
    "mlp": (lambda: Expert(_LATENT, _CLASSES, hidden=(64,)), (_LATENT,)),
    "mlp-512-256-128": (lambda: Expert(_LATENT, _CLASSES), (_LATENT,)),
    "conv": (_convolutions, _IMAGE),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    with patch.multiple(stack, SLOW_ON_CPU=(), MOST_ON_CPU=1 << 62):  # to time what is not done
        return _tell(args)


def _tell(args: argparse.Namespace) -> int:
    found = []
    for name in args.network:
        say(f"measuring {name}")
        for clients in args.clients:
            if clients <= args.most or name in _SMALL:
                found.append(_measured(name, clients, args))
    print(
        f"AdamW, batches of {_BATCH}, {args.device}, {args.threads} threads; "
        f"medians of {args.turns} turns"
    )
    head = ("network", "clients", "ms loop", "ms stacked", "x faster")
    rows = [
        (one.network, f"{one.clients:,}", *(f"{v:.3f}" for v in (one.loop, one.stacked, one.gain)))
        for one in found
    ]
    print(columns([head, *rows], left=(0,)))
    if args.json is not None:
        content = {"paces": [asdict(one) for one in found], "batch": _BATCH, "steps": args.steps}
        place = {"device": args.device, "threads": args.threads}
        write_rows(args.json, {**content, **place, "source": provenance(args.seed)})
    return 0


def _measured(name: str, clients: int, args: argparse.Namespace) -> Pace:
    build, shape = NETWORKS[name]
    with seeded(args.seed):
        networks = [build().to(args.device) for _ in range(clients)]
        rows = torch.randn(clients, _ROWS, *shape).to(args.device)
        labels = torch.randint(_CLASSES, (clients, _ROWS)).to(args.device)
    calls = [
        partial(_train, networks[k], (rows[k], labels[k]), args.steps, k) for k in range(clients)
    ]
    _turn(calls[:2], together=True, device=args.device)  # what is compiled or looked up once
    loops, stacks = [], []
    for _ in range(args.turns):
        loops.append(_turn(calls, together=False, device=args.device))
        stacks.append(_turn(calls, together=True, device=args.device))
    each = 1000 / clients / args.steps
    gain = median(a / b for a, b in zip(loops, stacks, strict=True))
    return Pace(name, clients, each * median(loops), each * median(stacks), gain)


def _turn(calls: Sequence[Callable[[], object]], *, together: bool, device: str) -> float:
    began = time.perf_counter()
    if together:
        run_together(calls)
    else:
        for call in calls:
            call()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _train(network: nn.Module, rows: tuple[Tensor, ...], steps: int, seed: int) -> object:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    order = batch_indices(_ROWS, _BATCH, first=0, count=steps, seed=seed)
    return fit(network, RowBatches(rows, order), SharedLoss(_loss, network), optimizer=optimizer)


def _loss(network: Any, batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(network(batch[0]), batch[1], reduction=reduction)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks.stack", description=__doc__)
    parser.add_argument(
        "--clients", type=_counts, default=[10, 100, 1_000], metavar="N,N",
        help="numbers of clients (10,100,1000)",
    )  # fmt: skip
    parser.add_argument(
        "--network", type=NameList(tuple(NETWORKS)), default=list(NETWORKS), metavar="A,B"
    )
    parser.add_argument(
        "--most",
        type=Whole(2, 4096),
        default=100,
        help="clients of larger networks than linear and mlp (100)",
    )
    parser.add_argument("--steps", type=Whole(1, 10_000), default=20, help="of a client (20)")
    parser.add_argument("--turns", type=Whole(1, 1_000), default=3, help="of each way (3)")
    parser.add_argument("--threads", type=Whole(1, 4096), default=1, help="of torch (1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    return parser


def _counts(text: str) -> list[int]:
    return [Whole(2, 4096)(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(told(main))
