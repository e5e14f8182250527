"""Many queries of one peer: does its memory grow, does anything fail?"""

import asyncio
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.infer.load import Child, Load, payload
from nmoe_flower.certificates import Identity
from nmoe_flower.inference import Bundle

__all__ = ["Soak", "soak"]

_SAMPLES = 40
_ROWS = (1, 3, 16, 64)
_CONCURRENCY = 8


@dataclass(frozen=True)
class Soak:
    """What a long run of queries left.

    Attributes:
        queries: Queries sent.
        errors: Queries that got no answer.
        seconds: Seconds for all queries.
        first_bytes: Resident memory after a quarter of the queries.
        last_bytes: Resident memory at the end.
        slope: Bytes per 1,000 queries, fitted to the last three quarters.
        memory: Pairs of queries sent and resident bytes.
    """

    queries: int
    errors: int
    seconds: float
    first_bytes: int
    last_bytes: int
    slope: float
    memory: tuple[tuple[int, int], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def soak(
    bundle: Bundle, certificates: Path | None, identity: Identity | None, *, queries: int
) -> Soak:
    """Send ``queries`` requests of 1 to 64 rows, 8 at a time, and watch the peer's memory."""
    with Child("peer", bundle.folder, certificates) as child:
        return asyncio.run(_soak(child, bundle, identity, queries))


async def _soak(child: Child, bundle: Bundle, identity: Identity | None, queries: int) -> Soak:
    loads = [
        Load(child, identity, payload(bundle, rows), concurrency=_CONCURRENCY) for rows in _ROWS
    ]
    share = -(-queries // _SAMPLES)
    seconds, sent = 0.0, 0
    memory: list[tuple[int, int]] = []
    while sent < queries:
        load = loads[len(memory) % len(loads)]
        count = min(share, queries - sent)
        seconds += (await load.block(count))[0]
        sent += count
        memory.append((sent, child.resident_bytes()))
    for load in loads:
        await load.close()
    settled = memory[len(memory) // 4 :]
    slope = 0.0
    if len(settled) > 1:
        counts, sizes = np.array(settled, float).T
        slope = float(np.polyfit(counts, sizes, 1)[0])
    errors = sum(load.errors for load in loads)
    ends = settled[0][1], settled[-1][1]
    return Soak(sent, errors, seconds, *ends, 1000 * slope, tuple(memory))
