"""The caller's side: a peer and its yardsticks take turns under the same load of requests."""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc.aio
import numpy as np
import numpy.typing as npt

from benchmarks.yardstick import cpu_seconds, importing
from nmoe_flower.certificates import Identity
from nmoe_flower.engine import threads_environment
from nmoe_flower.errors import EngineError
from nmoe_flower.inference import Bundle, encode_tensor
from nmoe_flower.inference.protocol import SERVICE, peer_pb2

__all__ = ["KINDS", "Child", "Load", "LoadFigures", "measure", "payload"]

KINDS = ("echo", "service", "bare", "peer")

_END_SECONDS = 10.0
_WARM_UP = 200


class Child:
    """One server in a process of its own; a context manager that ends it.

    Attributes:
        port: Where it listens, on loopback.

    Raises:
        EngineError: It did not start; its own words are on standard error.
    """

    def __init__(self, what: str, bundle: Path, certificates: Path | None) -> None:
        command = [sys.executable, "-m", "benchmarks.infer.server", what, str(bundle)]
        self._process = subprocess.Popen(
            command + ([str(certificates)] if certificates else []),
            env=importing(os.environ) | threads_environment(1),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip().isdigit():
            self._process.wait(_END_SECONDS)
            raise EngineError(f"the {what} server did not start")
        self.port = int(line)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def resident_bytes(self) -> int:
        """Bytes of resident memory now."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Load:
    """Sends the same bytes over and over, several requests at a time; bytes in, bytes out.

    Args:
        child: Whom to ask.
        identity: To show; None without encryption.
        payload: Bytes of the request.
        concurrency: Requests that are open at any moment.

    Attributes:
        errors: Requests that got no answer.
    """

    def __init__(
        self, child: Child, identity: Identity | None, payload: bytes, *, concurrency: int
    ) -> None:
        self.errors = 0
        self._payload = payload
        self._concurrency = concurrency
        address = f"127.0.0.1:{child.port}"
        if identity is None:
            self._channel: Any = grpc.aio.insecure_channel(address)
        else:
            self._channel = grpc.aio.secure_channel(
                address,
                identity.channel_credentials(),
                options=[("grpc.ssl_target_name_override", "server")],
            )
        self._call = self._channel.unary_unary(f"/{SERVICE}/Predict")

    async def block(self, count: int) -> tuple[float, npt.NDArray[np.float64]]:
        """Send ``count`` requests: seconds for all, and seconds of each."""
        left = iter(range(count))
        latencies = np.zeros(count)

        async def worker() -> None:
            for index in left:
                begin = time.perf_counter()
                try:
                    await self._call(self._payload, timeout=30)
                except grpc.aio.AioRpcError:
                    self.errors += 1
                latencies[index] = time.perf_counter() - begin

        begin = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(self._concurrency)))
        return time.perf_counter() - begin, latencies

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()


@dataclass
class LoadFigures:
    """One server under one load.

    Args:
        kind: Name of the server, one of ``KINDS``.
        rows: Latents per request.
        concurrency: Requests that were open at any moment.
        block: Requests per block.
        seconds: Seconds of every block.
        cpu: Seconds of the server's CPU time in every block.
        latencies: Seconds of every request.
    """

    kind: str
    rows: int
    concurrency: int
    block: int
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def requests_per_second(self) -> float:
        """Median over the blocks."""
        return self.block / statistics.median(self.seconds)

    def quantile(self, share: float) -> float:
        """Milliseconds that this share of the requests did not exceed."""
        return 1000 * float(np.quantile(self.latencies, share))

    @property
    def cpu_per_sample(self) -> float:
        """Microseconds of the server's CPU time per latent."""
        return 1e6 * sum(self.cpu) / (len(self.cpu) * self.block * self.rows)

    def ratio_to(self, yardstick: "LoadFigures") -> float:
        """Throughput against ``yardstick``: the median quotient of blocks of the same turn."""
        quotients = (b / a for a, b in zip(self.seconds, yardstick.seconds, strict=True))
        return statistics.median(quotients)

    def as_json(self, yardsticks: Mapping[str, "LoadFigures"]) -> dict[str, Any]:
        """Everything measured, and what was made of it."""
        return {
            "kind": self.kind,
            "rows": self.rows,
            "concurrency": self.concurrency,
            "requests-per-second": self.requests_per_second,
            "samples-per-second": self.requests_per_second * self.rows,
            "p50-ms": self.quantile(0.5),
            "p99-ms": self.quantile(0.99),
            "server-cpu-us-per-sample": self.cpu_per_sample,
            **{f"ratio-to-{name}": self.ratio_to(one) for name, one in yardsticks.items()},
            "block-requests": self.block,
            "block-seconds": self.seconds,
        }


def payload(bundle: Bundle, rows: int) -> bytes:
    """A request of ``rows`` latents of the size real ones have."""
    latents = 0.25 * np.random.default_rng(0).normal(size=(rows, bundle.latent_dim))
    request = peer_pb2.PredictRequest(
        request_id="0123456789abcdef",
        extractor_version=bundle.extractor_version,
        latents=encode_tensor(latents),
    )
    return bytes(request.SerializeToString())


def measure(
    bundle: Bundle,
    certificates: Path | None,
    identity: Identity | None,
    *,
    loads: Sequence[tuple[int, int]],
    blocks: int,
    block: int,
) -> list[dict[str, LoadFigures]]:
    """LoadFigures by kind, for every load (rows, concurrency).

    Args:
        bundle: What is served.
        certificates: Folder with the servers' keys; None for no encryption.
        identity: Identity of the caller; None without encryption.
        loads: What to ask, one load after the other.
        blocks: Turns of each kind.
        block: Requests per turn.

    Raises:
        EngineError: A server did not start, or a request got no answer.
    """
    with ExitStack() as stack:
        children = {
            kind: stack.enter_context(Child(kind, bundle.folder, certificates)) for kind in KINDS
        }

        async def all_loads() -> list[dict[str, LoadFigures]]:
            return [
                await _take_turns(
                    children,
                    identity,
                    payload(bundle, rows),
                    {kind: LoadFigures(kind, rows, concurrency, block) for kind in KINDS},
                    blocks,
                )
                for rows, concurrency in loads
            ]

        return asyncio.run(all_loads())


async def _take_turns(
    children: Mapping[str, Child],
    identity: Identity | None,
    request: bytes,
    figures: dict[str, LoadFigures],
    blocks: int,
) -> dict[str, LoadFigures]:
    """Blocks in the order A B C D, D C B A, ...: a drift of the machine's speed favours nobody."""
    concurrency = next(iter(figures.values())).concurrency
    loads = {
        kind: Load(child, identity, request, concurrency=concurrency)
        for kind, child in children.items()
    }
    for kind, load in loads.items():
        await load.block(_WARM_UP)
        _check(kind, load)
    for turn in range(blocks):
        for kind in KINDS if turn % 2 else reversed(KINDS):
            found = figures[kind]
            before = cpu_seconds(children[kind].pid)
            seconds, latencies = await loads[kind].block(found.block)
            found.cpu.append(cpu_seconds(children[kind].pid) - before)
            found.seconds.append(seconds)
            found.latencies += latencies.tolist()
    for kind, load in loads.items():
        await load.close()
        _check(kind, load)
    return figures


def _check(kind: str, load: Load) -> None:
    if load.errors:
        raise EngineError(f"{load.errors} requests of {kind} got no answer")
