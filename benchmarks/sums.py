"""Measure what sums over latents cost: at a client, on the wire, and at the server.

Latents are made up: what is measured does not depend on what they say.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from benchmarks.yardstick import json_option, told, write_figures
from nmoe_flower.arguments import Parser, Whole
from nmoe_flower.sums import Sums, solve

__all__ = ["main"]

Result = TypeVar("Result")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per part; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.sums", description=__doc__)
    parser.add_argument("--dim", type=Whole(1, 8192), default=1536, help="D (1536)")
    parser.add_argument("--clients", type=Whole(2, 1000), default=10, help="(10)")
    parser.add_argument("--images", type=Whole(1, 10**6), default=2500, help="of a client (2500)")
    parser.add_argument("--classes", type=Whole(2, 10**4), default=10, help="(10)")
    parser.add_argument("--components", type=Whole(0, 8192), default=0, help="(0: none)")
    json_option(parser)
    args = parser.parse_args(argv)
    return told(lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    rng = np.random.default_rng(0)
    packed, at_clients = [], 0.0
    for _ in range(args.clients):
        latents = rng.standard_normal((args.images, args.dim), np.float32) + rng.normal(
            size=args.dim
        )
        labels = rng.integers(0, args.classes, args.images)
        seconds, sums = _timed(partial(_packed, latents, labels, args.classes))
        at_clients += seconds
        packed.append(sums)
    size = sum(array.nbytes for array in packed[0].values())
    seconds, _ = _timed(
        lambda: solve((Sums.read(one) for one in packed), components=args.components)
    )
    client = at_clients / args.clients
    print(f"sums at a client          {client:8.2f} s")
    print(f"sums of a client          {size / 1e6:8.2f} MB")
    print(f"read, ridge head, lda     {seconds:8.2f} s   {args.clients} clients")
    print(f"all together              {client + seconds:8.2f} s")
    asked = ("dim", "clients", "images", "classes", "components")
    write_figures(
        args.json,
        {key: getattr(args, key) for key in asked}
        | {"client_seconds": client, "client_bytes": size, "server_seconds": seconds},
    )
    return 0


def _packed(latents: Any, labels: Any, classes: int) -> dict[str, Any]:
    return Sums.of(latents, labels, classes).packed()


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    started = time.monotonic()
    found = work()
    return time.monotonic() - started, found


if __name__ == "__main__":
    sys.exit(main())
