"""A process that imports the ClientApp once, and forks workers that share the pages of all imports.

It computes nothing and starts no thread, so a copy of it is as good as a process started anew, and
is there at once. Where a copy would not do, it says so, and workers are started one by one: once
a thread runs, since copies have only one; and beside a GPU, whose driver does not survive a fork.
"""

import atexit
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import sys
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from nmoe_flower.engine.answering import Nodes, load_client_app
from nmoe_flower.engine.client_process import Failed, Unforkable, dump, serve
from nmoe_flower.engine.spawn import Leader, cause_of_death, ignore_interrupts, lead_group, spawning
from nmoe_flower.errors import EngineError

__all__ = ["ForkServer", "ForkedProcess"]

_FORK, _REAP = b"fork", b"reap "
_LONGEST = 64
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class ForkServer:
    """The parent's side: it asks for workers and for the exit codes of those that ended.

    Args:
        reference: ClientApp of the workers, ``"package.module:attribute"``. Its import takes
            seconds, in which the parent may do something else.
    """

    def __init__(self, reference: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = multiprocessing.get_context("spawn").Process(
            target=_serve_forks, args=(theirs, reference), name="nmoe-forks", daemon=True
        )
        with theirs, spawning():
            process.start()
        self._leader = Leader(process)
        self._ended_by = ""

    @staticmethod
    def works_here() -> bool:
        """Whether this system can fork a process that has imported much, and watch the copies."""
        return sys.platform == "linux" and hasattr(os, "pidfd_open")

    def start(self, nodes: Nodes) -> "Connection[Any, Any]":
        """Ask for a worker; it is there once it says so on the connection.

        Args:
            nodes: Virtual nodes that the worker is.

        Raises:
            OSError: The process is dead.
        """
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        with theirs:
            socket.send_fds(self._control, [_FORK], [theirs.fileno()])
        ours.send_bytes(dump(nodes))
        return ours

    def reap(self, pid: int) -> int | None:
        """The exit code of a worker that has ended; None: nobody knows any more."""
        with suppress(OSError, ValueError):
            self._control.send(_REAP + str(pid).encode())
            return int(self._control.recv(_LONGEST))
        return None

    def close(self, timeout: float = 0.0) -> str:
        """End the process, by force after ``timeout`` seconds; returns what it died of.

        Safe to call twice.
        """
        if not self._ended_by:
            self._control.close()
            self._ended_by = cause_of_death(self._leader.end(timeout))
        return self._ended_by


class ForkedProcess:
    """A worker that a fork server started; in what it can do, like a process of multiprocessing.

    Args:
        pid: Process id.
        server: The fork server, which alone learns its exit code.
    """

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self.exitcode: int | None = None
        self._server = server

    @property
    def sentinel(self) -> int:
        """Nothing but the kernel's handle tells of its death."""
        raise EngineError(f"worker {self.pid} cannot be watched: too many files are open")

    def kill(self) -> None:
        """End it by force."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def join(self) -> None:
        """Wait until it has ended."""
        self.exitcode = self._server.reap(self.pid)

    def close(self) -> None:
        """There is nothing to free."""


def _serve_forks(control: socket.socket, reference: str) -> None:
    """Fork a worker for every connection that comes, until the parent closes the socket or dies."""
    lead_group()
    multiprocessing.current_process().daemon = False  # or it could start none
    ignore_interrupts()
    refused: Failed | Unforkable | None = None
    try:
        load_client_app(reference)
        _import_what_training_needs()
    except EngineError as error:
        refused = Failed(str(error))
    else:
        reason = _hindrance()
        refused = Unforkable(reason) if reason else None
    gc.collect()
    gc.freeze()  # what is here stays: a collection in a worker would copy the pages it looks at
    parent = parent_process()
    sentinel = None if parent is None else parent.sentinel
    workers: dict[int, BaseProcess] = {}
    while True:
        request, handles, _, _ = socket.recv_fds(control, _LONGEST, 1)
        if not request:
            return
        if request.startswith(_REAP):
            worker = workers.pop(int(request.removeprefix(_REAP)))
            worker.join()
            control.send(str(worker.exitcode).encode())
            continue
        connection: Connection[Any, Any] = Connection(handles[0])
        with connection:
            if refused is not None:
                with suppress(OSError):
                    connection.send_bytes(dump(refused))
                continue
            arguments = (control, connection, reference, sentinel)
            worker = multiprocessing.get_context("fork").Process(
                target=_work, args=arguments, name="nmoe-client"
            )
            worker.start()
            workers[worker.pid or 0] = worker


def _work(
    control: socket.socket,
    connection: "Connection[Any, Any]",
    reference: str,
    sentinel: int | None,
) -> None:
    """A worker from its fork to its end."""
    control.close()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # or all workers would draw the same
    try:
        serve(connection, reference, pickle.loads(connection.recv_bytes()), sentinel)
    finally:
        atexit._run_exitfuncs()  # a copy ends without them


def _import_what_training_needs() -> None:
    """Have torch import its compiler, as a first optimizer does: 150 MB that workers share."""
    if torch := sys.modules.get("torch"):
        torch.optim.SGD([torch.zeros(())])


def _hindrance() -> str:
    """Why this process must not be forked; empty: it may be."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"its import started {threads - 1} threads"
    return next((f"there is a GPU, {path}" for path in _GPUS if Path(path).exists()), "")
