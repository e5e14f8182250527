"""The parent's side of the worker processes: who gets which message, and what came back.

An idle worker takes the next message. Each holds at most two, so it goes on computing while the
parent aggregates; the two reply segments of a worker therefore never clash, because message k + 2
is handed out only after reply k was copied.
"""

import logging
import multiprocessing
import os
import pickle
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from flwr.app import Message

from nmoe_flower.engine import flower
from nmoe_flower.engine.answering import Nodes, refusal
from nmoe_flower.engine.broadcasts import Broadcast, Broadcasts
from nmoe_flower.engine.client_process import (
    Failed,
    Ready,
    Task,
    TaskResult,
    Unforkable,
    serve,
)
from nmoe_flower.engine.fork_server import ForkedProcess, ForkServer
from nmoe_flower.engine.shared import Arena, buffer_of, plain, rebuild, unpack
from nmoe_flower.engine.spawn import Leader, cause_of_death, spawning
from nmoe_flower.errors import EngineError

__all__ = ["WorkerPool", "busy_with"]

_log = logging.getLogger(__name__)

_DEPTH = 2
_LONG_FRAME = 4096
_MOST_RESERVED = 1 << 28  # bytes kept for replies that are larger than what they answer
_CLOSE_SECONDS = 2.0


@dataclass(eq=False)
class _Job:
    """A message a worker holds, and the shared memory it reads."""

    message: Message
    broadcasts: list[Broadcast] = field(default_factory=list)
    long_frame: SharedMemory | None = None
    slot: int = 0
    abandoned: bool = False


@dataclass(eq=False)
class _Worker:
    """``leader``: known at once of a worker started here, and of one that was forked once ready."""

    connection: "Connection[Any, Any]"
    leader: Leader | None = None
    ready: bool = False
    sent: int = 0
    jobs: deque[_Job] = field(default_factory=deque)
    replies: list[SharedMemory | None] = field(default_factory=lambda: [None] * _DEPTH)


def busy_with(workers: int) -> int:
    """Messages under way with which so many workers hold two each, and the next are here.

    >>> busy_with(2)
    7
    """
    return (_DEPTH + 1) * workers + 1


class WorkerPool:
    """Processes that answer messages with the ClientApp ``reference``; see InProcessGrid."""

    def __init__(
        self, reference: str, nodes: Nodes, size: int, forks: ForkServer | None = None
    ) -> None:
        self._reference = reference
        self._nodes = nodes
        self._owner = os.getpid()
        self._arena = Arena()
        self._broadcasts = Broadcasts(self._arena)
        self._states: dict[int, bytes] = {}
        self._busy: set[int] = set()
        self._pending: deque[Message] = deque()
        self._done: dict[str, Message] = {}
        self._largest_reply = 0
        # One worker has nobody to share the pages of its imports with.
        self._forks = ForkServer.works_here() and size > 1
        self._fork_server = forks
        self._dead_servers: list[ForkServer] = []
        self._workers = [self._start() for _ in range(size)]

    def submit(self, message: Message) -> None:
        """Queue a message."""
        self._pending.append(message)

    def collect(self, wanted: Collection[str], timeout: float | None) -> list[Message]:
        """Replies that are there; waits for the first one up to ``timeout`` seconds.

        Raises:
            EngineError: A worker cannot start.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._assign()
        while True:
            replies = [self._done.pop(name) for name in wanted if name in self._done]
            if replies or not (self._pending or any(worker.jobs for worker in self._workers)):
                return replies
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not self._turn(left) and left == 0.0:
                return []

    def abandon(self, wanted: Collection[str], *, overdue: bool) -> None:
        """Forget these messages; when ``overdue``, restart the workers that are stuck in them."""
        gone = set(wanted)
        self._pending = deque(m for m in self._pending if m.metadata.message_id not in gone)
        for worker in self._workers:
            for job in worker.jobs:
                job.abandoned = job.abandoned or job.message.metadata.message_id in gone
            if overdue and worker.ready and worker.jobs and worker.jobs[0].abandoned:
                _log.warning("restarting a worker: %s is overdue", self._partition(worker.jobs[0]))
                self._bury(worker)

    def close(self) -> None:
        """End all workers and what they started, by force after 2 seconds; free shared memory."""
        if os.getpid() != self._owner:
            return
        for worker in self._workers:
            worker.connection.close()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for worker in self._workers:
            if worker.leader is not None:
                worker.leader.end(max(deadline - time.monotonic(), 0.0))
        for server in filter(None, [*self._dead_servers, self._fork_server]):
            server.close(max(deadline - time.monotonic(), 0.0))
        self._workers.clear()
        self._pending.clear()
        self._done.clear()
        self._arena.close()

    def _start(self) -> _Worker:
        return _Worker(self._forked()) if self._forks else self._spawned()

    def _forked(self) -> "Connection[Any, Any]":
        """Have a worker forked; if the fork server was killed meanwhile, by another one.

        The dead one is closed last: closed, it would take the workers that it forked with it.
        """
        if self._fork_server is not None:
            try:
                return self._fork_server.start(self._nodes)
            except OSError:
                self._dead_servers.append(self._fork_server)
        self._fork_server = ForkServer(self._reference)
        return self._fork_server.start(self._nodes)

    def _spawned(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self._reference, self._nodes)
        process = context.Process(target=serve, args=arguments, name="nmoe-client", daemon=True)
        with spawning():
            process.start()
        theirs.close()
        return _Worker(ours, Leader(process))

    def _turn(self, timeout: float | None) -> bool:
        """Wait for workers and take at most one frame of each; was there any?"""
        by_handle: dict[Any, _Worker] = {}
        for worker in self._workers:
            by_handle[worker.connection] = worker
            if worker.leader is not None:
                by_handle[worker.leader.death] = worker
        handles = wait(by_handle, timeout)
        for worker in dict.fromkeys(by_handle[handle] for handle in handles):
            if not self._read(worker):
                self._bury(worker)
        return bool(handles)

    def _read(self, worker: _Worker) -> bool:
        """Take one frame; False if the worker is dead and has nothing more to say."""
        try:
            if not worker.connection.poll():
                return worker.leader is None or not worker.leader.has_ended()
            frame = worker.connection.recv_bytes()
        except (EOFError, OSError):
            return False
        parts = pickle.loads(frame)
        if isinstance(parts, Ready):
            return self._welcome(worker, parts.pid)
        if isinstance(parts, Unforkable):
            self._spawn_instead(worker, parts.reason)
            return True
        if isinstance(parts, Failed):
            raise EngineError(f"a worker failed to start: {parts.reason}")
        self._finish(worker, TaskResult(*parts))
        return True

    def _welcome(self, worker: _Worker, pid: int) -> bool:
        """Take a worker that is ready; False if it has died since."""
        if worker.leader is None:
            assert self._fork_server is not None  # it was forked
            try:
                worker.leader = Leader(ForkedProcess(pid, self._fork_server))
            except ProcessLookupError:
                return False
        worker.ready = True
        self._assign()
        return True

    def _spawn_instead(self, worker: _Worker, reason: str) -> None:
        _log.debug("workers are started one by one: %s", reason)
        self._forks = False
        worker.connection.close()
        self._workers[self._workers.index(worker)] = self._spawned()

    def _assign(self) -> None:
        """Give every worker one message, then a second one unless the queue is nearly empty.

        The last messages stay here for whoever is idle first: none waits behind a slow one. A
        worker alone takes all.
        """
        reserved = len(self._workers) if len(self._workers) > 1 else 0
        for depth in range(_DEPTH):
            for worker in self._workers:
                if depth and len(self._pending) <= reserved:
                    return
                if worker.ready and len(worker.jobs) == depth:
                    self._hand_out(worker)

    def _hand_out(self, worker: _Worker) -> None:
        """Send the first message whose node is free: a node's state is in one place at a time."""
        for position, message in enumerate(self._pending):
            if message.metadata.dst_node_id not in self._busy:
                del self._pending[position]
                self._send(worker, message)
                return

    def _send(self, worker: _Worker, message: Message) -> None:
        job = _Job(message, slot=worker.sent % _DEPTH)
        items, records = plain(message.content)
        job.broadcasts = [self._broadcasts.use(record) for record in records]
        node_id = message.metadata.dst_node_id
        task = Task(
            flower.metadata_of(message),
            items,
            [broadcast.at for broadcast in job.broadcasts],
            self._states.get(node_id, b""),
            self._reply_segment(worker, job),
        )
        frame = pickle.dumps(tuple(task), pickle.HIGHEST_PROTOCOL)
        if len(frame) > _LONG_FRAME:
            job.long_frame = self._arena.take(len(frame))
            buffer_of(job.long_frame)[: len(frame)] = frame
            frame = pickle.dumps((job.long_frame.name, len(frame)))
        self._busy.add(node_id)
        worker.jobs.append(job)
        worker.sent += 1
        try:
            worker.connection.send_bytes(frame)
        except OSError:
            _log.debug("a worker died before it could take a message")

    def _reply_segment(self, worker: _Worker, job: _Job) -> str:
        """Room for a reply as large as the message or the largest reply so far.

        What does not fit there comes through the pipe; so does all if there is no memory left.
        """
        usual = min(self._largest_reply, _MOST_RESERVED)
        size = max(usual, sum(broadcast.size for broadcast in job.broadcasts))
        segment = worker.replies[job.slot]
        if segment is None or segment.size < size:
            if segment is not None:
                self._arena.give(segment)
            worker.replies[job.slot] = None
            try:
                segment = worker.replies[job.slot] = self._arena.take(size)
            except EngineError as error:
                _log.debug("replies come through the pipe: %s", error)
                return ""
        return segment.name

    def _finish(self, worker: _Worker, result: TaskResult) -> None:
        job = worker.jobs.popleft()
        segment = worker.replies[job.slot]
        records = []
        size = 0
        for place, layout_size in result.arrays:
            if isinstance(place, bytes):
                records.append(unpack(memoryview(place), 0, layout_size))
            elif segment is None:
                raise EngineError("a worker answered into a segment it was never given")
            else:
                records.append(unpack(buffer_of(segment), place, layout_size))
            size += sum(len(array.data) for array in records[-1].values()) + layout_size
        self._largest_reply = max(self._largest_reply, size)
        self._states[job.message.metadata.dst_node_id] = result.state
        self._release(job)
        self._assign()
        if job.abandoned:
            return
        if result.error is not None:
            reply = refusal(job.message, *result.error)
        else:
            reply = Message(rebuild(result.items, records), reply_to=job.message)
        self._done[job.message.metadata.message_id] = reply

    def _release(self, job: _Job) -> None:
        self._busy.discard(job.message.metadata.dst_node_id)
        if job.long_frame is not None:
            self._arena.give(job.long_frame)
        for broadcast in job.broadcasts:
            self._broadcasts.release(broadcast)

    def _bury(self, worker: _Worker) -> None:
        """Replace a worker, killed unless it is dead; what it started ends with it.

        The message it was at fails, the one it had not begun waits.
        """
        cause = cause_of_death(None)
        if worker.leader is not None:
            cause = cause_of_death(worker.leader.end())
        elif self._fork_server is not None:
            cause = self._fork_server.close(_CLOSE_SECONDS)
            self._fork_server = None
        worker.connection.close()
        position = self._workers.index(worker)
        if not worker.ready:
            self._workers.pop(position)
            raise EngineError(f"a worker died while it loaded {self._reference!r}: {cause}")
        jobs = list(worker.jobs)
        for job in jobs:
            self._release(job)
        for segment in worker.replies:
            if segment is not None:
                self._arena.give(segment)
        if jobs and not jobs[0].abandoned:
            message = jobs[0].message
            reason = f"the worker died on {self._partition(jobs[0])}: {cause}"
            _log.error("%s; it is restarted", reason)
            reply = refusal(message, flower.ErrorCode.CLIENT_APP_CRASHED, reason)
            self._done[message.metadata.message_id] = reply
        self._pending.extendleft(job.message for job in jobs[1:] if not job.abandoned)
        self._workers[position] = self._start()
        self._assign()

    def _partition(self, job: _Job) -> str:
        return f"partition {job.message.metadata.dst_node_id - 1}"
