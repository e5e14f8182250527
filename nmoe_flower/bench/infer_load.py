"""The caller's side of ``nmoe bench infer``: a server process and a load of requests on it."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import grpc.aio
import numpy as np
import numpy.typing as npt

from nmoe_flower.certificates import Identity
from nmoe_flower.errors import EngineError
from nmoe_flower.inference.protocol.rpc import SERVICE

__all__ = ["Child", "Load", "cpu_seconds"]

_END_SECONDS = 10.0
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


class Child:
    """A server of ``infer_server`` in a process of its own; a context manager that ends it.

    Attributes:
        port: Where it listens, on loopback.

    Raises:
        EngineError: It did not start; its own words are on standard error.
    """

    def __init__(self, what: str, bundle: Path, certificates: Path | None) -> None:
        command = [sys.executable, "-m", "nmoe_flower.bench.infer_server", what, str(bundle)]
        self._process = subprocess.Popen(
            command + ([str(certificates)] if certificates else []),
            env=os.environ | _ONE_THREAD,
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
        """Of the process."""
        return self._process.pid

    def resident_bytes(self) -> int:
        """Its resident memory now."""
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


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    """Sends the same bytes over and over, several requests at a time; bytes in, bytes out.

    Args:
        child: Whom to ask.
        identity: To show; None without encryption.
        payload: The request.
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
