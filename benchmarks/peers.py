"""Measure a signed list of many peers with embeddings: read, checked, and routed by.

Embeddings are made up: what is measured does not depend on what they say.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from benchmarks.yardstick import columns, told
from nmoe_flower.arguments import Parser, Whole
from nmoe_flower.certificates import create_authority
from nmoe_flower.inference.ask import PeerGate, projection_version
from nmoe_flower.inference.protocol import MAX_PEERS, PeerEntry, PeerList, sign_list, verify_list
from nmoe_flower.models import MetricGate

__all__ = ["main"]

Result = TypeVar("Result")
_TIMES = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per part; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--peers", type=Whole(2, MAX_PEERS), default=MAX_PEERS, help="(%(default)s)"
    )
    parser.add_argument("--latent", type=Whole(1, 8192), default=512, help="D (%(default)s)")
    parser.add_argument("--embedding", type=Whole(1, 1024), default=32, help="d (%(default)s)")
    args = parser.parse_args(argv)
    return told(lambda: _measure(args.peers, args.latent, min(args.embedding, args.latent)))


def _measure(count: int, latent_dim: int, dim: int) -> int:
    rng = np.random.default_rng(0)
    gate = MetricGate(latent_dim, 1, dim=dim)
    weights = rng.standard_normal((dim, latent_dim), np.float32)
    gate.projection.data.copy_(torch.from_numpy(weights))
    embeddings = rng.standard_normal((count, dim), np.float32)
    version, now = projection_version(gate), int(time.time())
    peers = PeerList(
        tuple(
            PeerEntry(
                f"node-{place}",
                place,
                f"10.{place >> 16}.{place >> 8 & 255}.{place & 255}:7001",
                embedding=row.tobytes(),
                projection_version=version,
            )
            for place, row in enumerate(embeddings)
        ),
        serial=1,
        issued_unix=now,
        expires_unix=now + 86_400,
    )
    with tempfile.TemporaryDirectory() as folder:
        authority = create_authority(Path(folder) / "authority", name="benchmark")
        pem = authority.certificate_pem
        path = Path(folder) / "peers.json"
        sign_list(peers, authority).write(path)
        size = path.stat().st_size
        read, held = _timed(lambda: PeerList.load(path))
    checked, _ = _timed(lambda: verify_list(held, pem, now=now))
    router = PeerGate(gate, own=0)
    table, _ = _timed(lambda: router.follow(held))
    with torch.inference_mode():
        latents = torch.from_numpy(rng.standard_normal((1, latent_dim), np.float32))
        route, _ = _timed(lambda: router.route(latents))
    rows = [
        ("", "seconds", ""),
        ("read the list", f"{read:.3f}", f"{count} peers, {size / 1e6:.1f} MB"),
        ("check its signature", f"{checked:.3f}", ""),
        ("make the table", f"{table:.3f}", f"{dim} numbers of each"),
        ("all together", f"{read + checked + table:.3f}", ""),
        ("route one latent", f"{route:.5f}", f"{1000 * route:.2f} ms"),
    ]
    print(columns(rows, left=(0, 2)))
    return 0


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """The least of some seconds of this process, so that what else computes does not count."""
    best, result = float("inf"), work()
    for _ in range(_TIMES):
        started = time.process_time()
        result = work()
        best = min(best, time.process_time() - started)
    return best, result


if __name__ == "__main__":
    sys.exit(main())
