"""The worker's side: one long-lived process that answers messages with a ClientApp.

A frame to a worker is a pickled :class:`Task`, or (segment, length) if the task is long and waits
in shared memory: the parent's writes never fill the pipe, so neither side can block the other. A
frame from a worker is :class:`Ready`, :class:`Failed`, :class:`Unforkable` or :class:`TaskResult`.
"""

import multiprocessing
import os
import pickle
import sys
import threading
from collections import OrderedDict
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, NamedTuple

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from nmoe_flower.engine import flower
from nmoe_flower.engine.answering import Nodes, answer_message, load_client_app, refusal
from nmoe_flower.engine.described import describe
from nmoe_flower.engine.shared import Attachments, Item, Packed, own, plain, rebuild, unpack
from nmoe_flower.engine.spawn import end_group, ignore_interrupts, lead_group
from nmoe_flower.errors import EngineError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Failed", "PackedAt", "Ready", "Task", "TaskResult", "Unforkable", "dump", "serve"]

_KEEP_RECORDS = 3


class PackedAt(NamedTuple):
    """Where a packed record is: a segment, which writing of it, and the layout's length."""

    segment: str
    writing: int
    layout_size: int


class Task(NamedTuple):
    """One message for a worker: the arguments of Metadata, its content, the node's state."""

    metadata: tuple[Any, ...]
    items: list[Item]
    arrays: list[PackedAt]
    state: bytes
    reply_segment: str


class TaskResult(NamedTuple):
    """One reply; ``arrays`` holds (offset in the reply segment or own bytes, layout's length)."""

    items: list[Item]
    arrays: list[tuple[int | bytes, int]]
    error: tuple[int, str | None] | None
    state: bytes


class Ready(NamedTuple):
    """The ClientApp is loaded, by this process."""

    pid: int


class Failed(NamedTuple):
    """The ClientApp could not be loaded."""

    reason: str


class Unforkable(NamedTuple):
    """The ClientApp is loaded, but no worker can be forked from the process that did it."""

    reason: str


def serve(
    connection: "Connection[Any, Any]", reference: str, nodes: Nodes, parent: int | None = None
) -> None:
    """Answer tasks until the parent closes the pipe or dies.

    The client may start processes of its own, such as a DataLoader's: they end with this one.

    Args:
        connection: Tasks come from here, and results go there.
        reference: ClientApp, ``"package.module:attribute"``.
        nodes: Virtual nodes that this is.
        parent: What is ready to be read once the parent is dead; None: this process's own parent.
    """
    lead_group()
    multiprocessing.current_process().daemon = False  # or it could start none
    ignore_interrupts()
    threading.Thread(target=_die_with_parent, args=(parent,), daemon=True).start()
    try:
        app = load_client_app(reference)
    except EngineError as error:
        connection.send_bytes(dump(Failed(str(error))))
        return
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    handler = _TaskHandler(app, nodes)
    try:
        connection.send_bytes(dump(Ready(os.getpid())))
        while True:
            connection.send_bytes(handler.handle(connection.recv_bytes()))
    except (EOFError, OSError):
        return


def _die_with_parent(sentinel: int | None) -> None:
    """A worker deep in a computation would not notice that its pipe was closed."""
    parent = parent_process()
    if sentinel is None and parent is not None:
        sentinel = parent.sentinel
    if sentinel is not None:
        wait([sentinel])
        end_group(os.getpid())
        os._exit(1)


def dump(value: object) -> bytes:
    """A frame."""
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


class _TaskHandler:
    """Tasks to results; keeps the records of the last broadcasts."""

    def __init__(self, app: ClientApp, nodes: Nodes) -> None:
        self._app = app
        self._nodes = nodes
        self._attachments = Attachments()
        self._records: OrderedDict[PackedAt, ArrayRecord] = OrderedDict()

    def handle(self, frame: bytes) -> bytes:
        """Answer one task."""
        parts = pickle.loads(frame)
        if len(parts) == 2:
            segment, size = parts
            parts = pickle.loads(self._attachments.buffer(segment)[:size])
        task = Task(*parts)
        message = self._message(task)
        node_id = message.metadata.dst_node_id
        flower.identify(run_id=self._nodes.run_id, node_id=node_id)
        state = pickle.loads(task.state) if task.state else RecordDict()
        context = self._nodes.context(node_id, state)
        reply = answer_message(self._app, message, context, stops=())
        try:
            saved = dump(context.state) if context.state else b""
            return self._pack(reply, saved, task.reply_segment)
        except Exception as error:
            reason = f"its reply or its state cannot be sent: {describe(error)}"
            failed = refusal(message, flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
            return self._pack(failed, task.state, "")

    def _message(self, task: Task) -> Message:
        # Records are copied (not their bytes), so that a client that edits its message does not
        # edit the next client's.
        records = [own(self._record(at)) for at in task.arrays]
        return flower.message_with(rebuild(task.items, records), task.metadata)

    def _record(self, at: PackedAt) -> ArrayRecord:
        record = self._records.pop(at, None)
        if record is None:
            while len(self._records) >= _KEEP_RECORDS:
                self._records.popitem(last=False)
            record = unpack(self._attachments.buffer(at.segment), 0, at.layout_size)
        self._records[at] = record
        return record

    def _pack(self, reply: Message, state: bytes, segment: str) -> bytes:
        if reply.has_error():
            error = (reply.error.code, reply.error.reason)
            return dump(tuple(TaskResult([], [], error, state)))
        items, records = plain(reply.content)
        arrays: list[tuple[int | bytes, int]] = []
        offset = 0
        for record in records:
            packed = Packed.of(record)
            room = self._attachments.buffer(segment) if segment else memoryview(b"")
            if offset + packed.size <= len(room):
                arrays.append((offset, len(packed.layout)))
                offset = packed.write(room, offset)
            else:
                arrays.append((packed.joined(), len(packed.layout)))
        return dump(tuple(TaskResult(items, arrays, None, state)))
