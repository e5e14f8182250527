"""The bench's side of a runner: start it, ask it for rounds, end it."""

import contextlib
import json
import math
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.rounds.kinds import Kind
from benchmarks.yardstick import cpu_seconds, importing, proportional_bytes
from nmoe_flower.engine import processes, run_simulation, threads_environment, write_app
from nmoe_flower.engine.spawn import WORKER_ENVIRONMENT
from nmoe_flower.errors import EngineError

__all__ = ["ON_SUPERLINK", "RUNNERS", "Remote"]

RUNNERS = ("bare", "inprocess", "channels-last", "ray", "stock", "pfl")

_MARK = "NMOE_BENCH_RUNNER"
_START_SECONDS = 180.0
_ANSWER_SECONDS = 600.0
_END_SECONDS = 10.0
_SAMPLE_SECONDS = 0.02
_APPS = {"ray": "ours", "stock": "stock"}
_PLAIN = ("bare", "pfl")

ON_SUPERLINK = frozenset(_APPS)
"""Runners that take a quarter of a minute to start."""


class Remote:
    """A runner in a process of its own; a context manager that ends it.

    Args:
        runner: One of ``RUNNERS``, or ``streaming`` or ``fedavg`` for their memory.
        kind: What it computes.
        seed: Seed of weights and images.
        workers: Client processes.
        python: Interpreter of a runner without a SuperLink.

    Raises:
        EngineError: The runner failed, with the end of its output.
    """

    def __init__(
        self, runner: str, kind: Kind, *, seed: int, workers: int, python: str = sys.executable
    ) -> None:
        self.runner = runner
        self._token = secrets.token_hex(16)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.1)
        address = f"127.0.0.1:{self._server.getsockname()[1]}:{self._token}"
        start: Callable[..., _Simulation | _Process] = (
            _Simulation if runner in _APPS else partial(_Process, python)
        )
        begin = time.perf_counter()
        try:
            with _inherited({_MARK: self._token}):
                self._body = start(runner, kind, seed, workers, address)
                self._stream = self._accept()
                self.ask("rounds", 1)
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - begin
        """From nothing to the end of round 1, interpreter and imports included."""
        self._family = sorted(pid for pid, _ in processes.family(f"{_MARK}={self._token}"))

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, what: str, count: int) -> list[float]:
        """Have the runner do ``what`` so many times; returns its figures.

        Raises:
            EngineError: It failed instead.
        """
        try:
            self._stream.write(json.dumps([what, count]) + "\n")
            self._stream.flush()
            line = self._stream.readline()
        except OSError as error:
            line = ""
            self._body.note(str(error))
        if not line:
            raise EngineError(f"the {self.runner} runner failed:\n{self._body.last_words()}")
        figures: list[float] = json.loads(line)
        return figures

    def cpu_seconds(self) -> float:
        """Seconds of CPU time that this runner's processes have used; NaN without ``/proc``."""
        try:
            return sum(map(cpu_seconds, self._family)) or math.nan
        except OSError:
            return math.nan

    def peak_memory(self, rounds: int) -> float:
        """Most bytes that this runner's processes hold together while it runs ``rounds`` rounds.

        The sum of their proportional set sizes: what n processes share counts a n-th for each. NaN
        where the system does not tell (Linux does).
        """
        sizes: list[float] = []
        done = threading.Event()

        def sample() -> None:
            while not done.is_set():
                sizes.append(self._memory())
                done.wait(_SAMPLE_SECONDS)

        watch = threading.Thread(target=sample)
        watch.start()
        try:
            self.ask("rounds", rounds)
        finally:
            done.set()
            watch.join()
        return max(sizes)

    def _memory(self) -> float:
        try:
            return float(sum(map(proportional_bytes, self._family))) or math.nan
        except OSError:
            return math.nan

    def close(self) -> None:
        """Hang up and wait until the runner and all it started have ended."""
        with contextlib.suppress(AttributeError, OSError):
            self._stream.close()
        self._server.close()
        with contextlib.suppress(AttributeError):
            self._body.close()

    def _accept(self) -> Any:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._body.ended():
                break
            try:
                line, _ = self._server.accept()
            except TimeoutError:
                continue
            line.settimeout(_ANSWER_SECONDS)
            with line:
                stream = line.makefile("rw")
            if json.loads(stream.readline() or '""') == self._token:
                return stream
            stream.close()
        raise EngineError(f"the {self.runner} runner did not start:\n{self._body.last_words()}")


@contextlib.contextmanager
def _inherited(marks: dict[str, str]) -> Iterator[None]:
    """What is started meanwhile, by whomever, finds this package and has the marks."""
    wanted = importing(os.environ) | marks
    before = {name: os.environ.get(name) for name in wanted if wanted[name] != os.environ.get(name)}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Process:
    """A runner without a SuperLink."""

    def __init__(
        self, python: str, runner: str, kind: Kind, seed: int, workers: int, address: str
    ) -> None:
        settings = [f"--seed={seed}", f"--workers={workers}", f"--address={address}"]
        module = f"benchmarks.rounds.{'plain' if runner in _PLAIN else 'runner'}"
        command = [python, "-m", module, runner, kind.name, *settings]
        # The yardstick gets every advantage; ours must set for itself what it needs.
        extra = WORKER_ENVIRONMENT if runner == "bare" else threads_environment(1)
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            env=os.environ | extra,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def note(self, text: str) -> None:
        self._output.write(text)

    def last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._output.seek(0)
        return "".join(self._output.readlines()[-20:]).strip()

    def close(self) -> None:
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()


class _Simulation:
    """A runner on a SuperLink; it runs in a thread, since ``run_simulation`` waits for it."""

    def __init__(self, runner: str, kind: Kind, seed: int, workers: int, address: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        app = _APPS[runner]
        folder = write_app(
            Path(self._folder.name) / "app",
            {"kind": kind.name, "seed": seed, "address": address},
            serverapp=f"benchmarks.rounds.runner:{app}",
            clientapp=f"benchmarks.rounds.client:{app}",
        )
        self._failure = ""
        self._closing = threading.Event()
        self._patience = 0.0
        run: Callable[[], None] = lambda: run_simulation(  # noqa: E731
            folder,
            num_supernodes=kind.clients,
            num_cpus=max(workers, 1),
            log=lambda _: None,
            on_tick=self._tick,
        )
        self._thread = threading.Thread(target=self._run, args=(run,), daemon=True)
        self._thread.start()

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def note(self, text: str) -> None:
        self._failure = text

    def last_words(self) -> str:
        self._thread.join(_END_SECONDS)
        return self._failure

    def close(self) -> None:
        self._patience = time.monotonic() + _END_SECONDS
        self._closing.set()
        self._thread.join()
        self._folder.cleanup()

    def _run(self, run: Callable[[], None]) -> None:
        try:
            run()
        except EngineError as error:
            self._failure = str(error)

    def _tick(self) -> None:
        """The ServerApp ends when the bench hangs up; one that does not is taken down."""
        if self._closing.is_set() and time.monotonic() > self._patience:
            raise EngineError("the bench has ended")
