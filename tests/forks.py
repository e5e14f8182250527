"""`nmoe` in a process of its own, to be killed: a fork of one that has imported everything.

Importing torch takes a process seconds; the process that all are forked from does it once, and has
computed nothing, so that no thread is lost.
"""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE = 300.0
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["nmoe_flower.running", "nmoe_flower.server_app", "nmoe_flower.client_app", "torch._dynamo"]
)


class Nmoe:
    """A command line of `nmoe` that runs, and is killed when the test leaves it.

    Args:
        folder: Where it works, and where its data cache is.
        arguments: What is typed after ``nmoe``.
        halt_at: Stage and round, such as ``extractor 8``: it stops once it has told of it, as
            Ctrl-Z stops a process, however slow the tests are.
        package: The folder of another nmoe_flower to run; None: this one.
    """

    def __init__(
        self, folder: Path, *arguments: str, halt_at: str = "", package: Path | None = None
    ) -> None:
        self._said = folder / f"said-{time.monotonic_ns()}.txt"
        self._process: ForkServerProcess = _CONTEXT.Process(
            target=_run, args=(folder, arguments, halt_at, self._said, package)
        )

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()

    @property
    def said(self) -> str:
        """What it has written to standard output and error."""
        return self._said.read_text(encoding="utf-8") if self._said.exists() else ""

    def kill_once(self, path: Path, sign: bytes) -> None:
        """Send SIGKILL as soon as a file holds some bytes."""
        until = time.monotonic() + DEADLINE
        while not (path.is_file() and sign in path.read_bytes()):
            assert self._process.is_alive(), self.said
            assert time.monotonic() < until, f"{sign!r} never came"
            time.sleep(0.002)
        self._process.kill()
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL

    def finish(self) -> str:
        """Wait until it ends well; returns what it said."""
        self._process.join(DEADLINE)
        assert self._process.exitcode == 0, self.said
        return self.said


def _run(
    folder: Path, arguments: tuple[str, ...], halt_at: str, said: Path, package: Path | None
) -> None:
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ |= {"NMOE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    if package is not None:
        for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
            del sys.modules[name]
        sys.path.insert(0, str(package.parent))
    from nmoe_flower.cli import main
    from nmoe_flower.pipeline import Run

    write = Run.record

    def record(run: Run, stage: str, current: int, *others: object, **beside: object) -> None:
        write(run, stage, current, *others, **beside)  # type: ignore[arg-type]
        if f"{stage} {current}" == halt_at:
            os.kill(os.getpid(), signal.SIGSTOP)

    Run.record = record  # type: ignore[method-assign, assignment]
    sys.exit(main(arguments))
