"""Start worker processes cleanly, end them with all they started, and say how one ended."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from types import ModuleType
from typing import Protocol

__all__ = [
    "WORKER_ENVIRONMENT",
    "Child",
    "Leader",
    "cause_of_death",
    "end_group",
    "ignore_interrupts",
    "lead_group",
    "spawning",
    "threads_environment",
]


def threads_environment(count: int) -> dict[str, str]:
    """What makes torch compute with ``count`` threads that sleep while they wait for each other.

    >>> threads_environment(2)
    {'OMP_NUM_THREADS': '2', 'OMP_WAIT_POLICY': 'PASSIVE', 'GOMP_SPINCOUNT': '0'}
    """
    return {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


WORKER_ENVIRONMENT = {
    **threads_environment(1),
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "67108864",
}


def cause_of_death(code: int | None) -> str:
    """A process's exit code in words.

    >>> cause_of_death(7)
    'exit code 7'
    >>> cause_of_death(-11)
    'killed by SIGSEGV'
    """
    if code is None:
        return "nobody knows what of"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:  # one of those without a name
            name = f"signal {-code}"
        return f"killed by {name}" + (", often for want of memory" if name == "SIGKILL" else "")
    return f"exit code {code}"


@contextmanager
def spawning() -> Iterator[None]:
    """Set what must be known before a worker's Python starts, and hide this program's main module.

    ``spawn`` would run the main module again in every worker: slow, and a fork bomb for a script
    without a main guard. Workers do not need it, since the ClientApp is named by its module.
    They are born with Ctrl-C held back, until they ignore it: while they import they would die of
    it with a traceback, beside what the program says.
    """
    held = hasattr(signal, "pthread_sigmask")
    if held:
        resource_tracker.ensure_running()  # or the first start would let Ctrl-C through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if held else set()
    old = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    main = sys.modules["__main__"]
    os.environ.update(WORKER_ENVIRONMENT)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if held:  # at last: it raises what was held back
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent, in a process that was born while `spawning`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def lead_group() -> None:
    """Make this process lead a session of its own: what it starts can then be ended with it."""
    if hasattr(os, "setsid"):
        with suppress(OSError):
            os.setsid()


def end_group(leader: int) -> None:
    """Kill every process of the group that process ``leader`` leads or led, itself included."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


class Child(Protocol):
    """What a leader needs of a process; those of multiprocessing have it."""

    @property
    def pid(self) -> int | None:
        """Process id."""

    @property
    def sentinel(self) -> int:
        """For ``wait``: ready once it has ended."""

    @property
    def exitcode(self) -> int | None:
        """Known once it has been joined."""

    def kill(self) -> None:
        """End it by force."""

    def join(self) -> None:
        """Wait until it has ended."""

    def close(self) -> None:
        """Free what belongs to it."""


class Leader:
    """A child that leads a group of its own: its death is seen, and what it started ends with it.

    The sentinel of a process is a pipe, which children that it forks inherit: while one of them
    lives, its death would go unseen. The kernel's handle of the process itself has no such fault.

    Args:
        process: Started, not yet waited for.

    Attributes:
        process: The process that leads.
        death: For ``wait``: ready once the process has ended.
    """

    def __init__(self, process: Child) -> None:
        self.process = process
        self._pid = process.pid or 0
        self._handle = -1
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):  # an old kernel, or no more descriptors
                self._handle = os.pidfd_open(self._pid)
        self.death = process.sentinel if self._handle < 0 else self._handle

    def has_ended(self) -> bool:
        """Whether the process is dead; it is not reaped."""
        return bool(wait([self.death], 0))

    def end(self, timeout: float = 0.0) -> int | None:
        """Wait up to ``timeout`` seconds, then kill; reap it, end its group, return its exit code.

        The group is killed before its leader is reaped, while no other process can have its number.
        """
        wait([self.death], timeout)
        end_group(self._pid)
        self.process.kill()  # it may not have come to lead a group yet
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        return code
