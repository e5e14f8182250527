"""Find and end every process of one simulation, also after its parent is gone.

Ray starts its servers in sessions of their own, so a process group is not enough. A simulation is
known by a mark in the environment, the name of its own folder, which children inherit; with
each marked process come its descendants, because some programs overwrite their environment.

Run as a script, this file is a guard: it waits until its parent closes the pipe or dies, then ends
the simulation and removes its folder. It imports the standard library only.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["end", "family", "guard", "visible"]

Process = tuple[int, str]
"""A process id and the time it started, so that a recycled id is never mistaken."""


def family(mark: str) -> set[Process]:
    """Every living process whose environment holds ``mark``, and all their descendants.

    >>> family("NO_PROCESS_HAS=this")
    set()
    """
    return _closure(*_snapshot(mark))


def end(
    mark: str, *, grace: float = 4.0, children: Sequence["subprocess.Popen[Any]"] = ()
) -> set[Process]:
    """Terminate the family of ``mark``, and kill what is left after ``grace`` seconds.

    Args:
        mark: ``NAME=value`` in the environment of the processes meant.
        grace: Seconds between SIGTERM and SIGKILL.
        children: Our own children among them, to be reaped.

    Returns:
        Processes that survived even that; empty unless the machine is in trouble.
    """
    known = family(mark)
    number = signal.SIGTERM
    start = time.monotonic()
    while known and time.monotonic() < start + grace + 5.0:
        if time.monotonic() > start + grace:
            number = signal.SIGKILL
        if number == signal.SIGKILL or time.monotonic() < start + 0.01:
            _send(known, number)
        time.sleep(0.05)
        for child in children:
            child.poll()
        parents, members = _snapshot(mark)
        late = _closure(parents, members) - known
        _send(late, number)
        known = late | {process for process in known if process in parents}
    return known


def visible() -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """Pid, command line and environment of every process that may be looked at (Linux only)."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            held = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            pairs = (entry.partition("=") for entry in held if "=" in entry)
            yield int(folder.name), words, {name: value for name, _, value in pairs}


def _send(processes: Iterable[Process], number: int) -> None:
    for pid, _ in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _closure(parents: dict[Process, int], members: set[Process]) -> set[Process]:
    found = {process for process in members if process[0] != os.getpid()}
    new = found
    while new:
        ids = {pid for pid, _ in new}
        new = {process for process, parent in parents.items() if parent in ids} - found
        found = found | new
    return found


def _snapshot(mark: str) -> tuple[dict[Process, int], set[Process]]:
    """The parent of every living process, and the marked ones; zombies have ended."""
    parents: dict[Process, int] = {}
    members: set[Process] = set()
    if not Path("/proc/self/environ").exists():
        return _snapshot_with_ps(mark)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] in "ZX":
                continue
            process = (int(folder.name), fields[19])
            parents[process] = int(fields[1])
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                members.add(process)
        except (OSError, IndexError):
            continue
    return parents, members


def _snapshot_with_ps(mark: str) -> tuple[dict[Process, int], set[Process]]:
    """The same where there is no ``/proc`` (macOS); ``-E`` adds the environment."""
    command = ["ps", "-A", "-E", "-ww", "-o", "pid=,ppid=,stat=,command="]
    out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    parents: dict[Process, int] = {}
    members: set[Process] = set()
    for line in out.splitlines():
        pid, parent, state, *rest = line.split(maxsplit=3)
        if not state.startswith("Z"):
            parents[int(pid), ""] = int(parent)
            if rest and mark in rest[0].split():
                members.add((int(pid), ""))
    return parents, members


def guard(home: Path, *, mark: str) -> "subprocess.Popen[bytes]":
    """Start a guard for what lives in ``home``; close its ``stdin`` when all is taken down.

    Args:
        home: The folder to remove.
        mark: ``NAME=value`` that the processes have in their environment.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(home), mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


if __name__ == "__main__":
    sys.stdin.buffer.read()
    if Path(sys.argv[1]).exists():
        end(sys.argv[2])
        shutil.rmtree(sys.argv[1], ignore_errors=True)
