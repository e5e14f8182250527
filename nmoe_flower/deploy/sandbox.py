"""A sandbox: where a federation plays on one machine; its processes, and their certain end."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from nmoe_flower.engine import cause_of_death, excerpt, processes, uninterrupted
from nmoe_flower.errors import EngineError

__all__ = ["Sandbox", "tail"]

_TICK = 0.1
_VARIABLE = "NMOE_STAGE"


class Sandbox:
    """A folder and the processes that live in it; leaving ends all of them, also grandchildren.

    A guard process does the same if this process is killed.

    Args:
        folder: The folder to play in, kept when all is over. None: a temporary one, removed then.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self._own = Path(tempfile.mkdtemp(prefix="nmoe-stage-")).resolve()
        self.folder = (self._given or self._own / "federation").resolve()
        self._guard = processes.guard(self._own, mark=self._mark)
        return self

    def __exit__(self, *_: object) -> None:
        with uninterrupted():
            self.clear()
            shutil.rmtree(self._own, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._guard.communicate()

    @property
    def _mark(self) -> str:
        return f"{_VARIABLE}={self._own}"

    def clear(self) -> None:
        """End every process in this sandbox."""
        processes.end(self._mark, children=self._children)
        for child in self._children:
            child.wait()
        self._children.clear()

    def start(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        log: Path,
    ) -> "subprocess.Popen[str]":
        """Start a program in ``folder``; what it prints goes to ``log``."""
        own = os.environ | {_VARIABLE: str(self._own)}
        programs = str(Path(sys.executable).parent)
        own["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as out:
            child = self._popen(command, folder, own, out)
        self._children.append(child)
        return child

    def run(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        log: Path,
        seconds: float,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a program to its end.

        Raises:
            EngineError: It failed, or did not end within ``seconds``.
        """
        child = self.start(command, folder=folder, log=log)
        what = f"{' '.join(command)} in {folder}"
        self.wait(lambda: child.poll() is not None, seconds, what, log=log, on_tick=on_tick)
        on_tick()
        if child.returncode:
            raise EngineError(f"{what} ended: {cause_of_death(child.returncode)}:\n{tail(log)}")

    def wait(
        self,
        ready: Callable[[], bool],
        seconds: float,
        what: str,
        *,
        log: Path,
        alive: "subprocess.Popen[str] | None" = None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until ``ready``.

        Raises:
            EngineError: It took longer than ``seconds``, or the process ``alive`` ended before.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if alive is not None and alive.poll() is not None:
                raise EngineError(f"{what} ended: {cause_of_death(alive.returncode)}:\n{tail(log)}")
            if time.monotonic() > deadline:
                raise EngineError(f"{what}: not within {seconds:g} s:\n{tail(log)}")
            on_tick()
            time.sleep(_TICK)

    def _popen(
        self, command: Sequence[str], folder: Path, own: Mapping[str, str], out: IO[str]
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            list(command),
            cwd=folder,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def tail(log: Path) -> str:
    """The end of a log, from its last error on."""
    with contextlib.suppress(OSError):
        return excerpt(log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:])
    return ""
