"""A Grid that hands over replies one by one, in the order of the messages.

Flower's grids return all replies as one list, so a server holds as many models as there are
clients. Here at most ``window`` messages are under way, and a reply leaves as soon as it and all
before it have arrived: memory does not grow with the number of clients, and since the order never
changes, a running sum has the same bits in every run.
"""

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Self

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from nmoe_flower.engine.restarts import Restarts

__all__ = ["StreamingGrid"]

_IN_MEMORY_POLL = 0.005
_DEFAULT_POLL = 0.1


class StreamingGrid(Grid):
    """Wrap any Flower grid so that ``send_and_receive`` yields replies as they arrive.

    Everything but ``send_and_receive`` goes straight to the wrapped grid. A grid with the
    attribute ``pull_blocks = True`` waits for a reply inside ``pull_messages(ids, timeout=)``;
    any other grid is asked again every ``poll`` seconds. A SuperLink hands a message out once, so
    a node that is restarted while it has one never answers it; every few seconds such nodes are
    looked for, and their messages given up.

    Args:
        grid: The grid that carries the messages.
        window: Most messages under way at once. Waves of about 100 also keep Flower's
            simulation from scanning its whole message store for each node.
        poll: Seconds between two pulls; by default what suits the grid.

    Raises:
        ValueError: ``window`` is below 1.
    """

    def __init__(self, grid: Grid, *, window: int = 64, poll: float | None = None) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._grid = grid
        self._window = window
        self._poll = _poll_for(grid) if poll is None else poll

    @classmethod
    def around(cls, grid: Grid) -> Self:
        """Wrap ``grid`` unless it is wrapped already."""
        return grid if isinstance(grid, cls) else cls(grid)

    def __getattr__(self, name: str) -> Any:
        if name == "_grid":
            raise AttributeError(name)
        return getattr(self._grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send messages in waves and iterate over the replies.

        Args:
            messages: Read as the window moves on, so a generator keeps memory flat.
            timeout: Seconds for the whole exchange, from now; None waits for ever.

        Returns:
            Exactly one reply per message, in their order. A message that was refused, lost or not
            answered in time, or whose node was restarted, has an error reply whose ``src_node_id``
            is the node it was meant for.
        """
        exchange = _Exchange(self._grid, messages, self._window, self._poll, timeout)
        exchange.refill()
        return exchange.replies()

    def set_run(self, run: Run) -> None:
        """Set the run of the wrapped grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the wrapped grid."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message (deprecated in Flower: call ``Message``)."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes of the wrapped grid."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes of the wrapped grid, with what it knows about them."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push through the wrapped grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull from the wrapped grid."""
        return self._grid.pull_messages(message_ids)


def _poll_for(grid: Grid) -> float:
    if getattr(grid, "pull_blocks", False):
        return 0.0
    interval = getattr(grid, "pull_interval", None)
    return _DEFAULT_POLL if interval is None else min(float(interval), _IN_MEMORY_POLL)


class _Exchange:
    """One send_and_receive: a window over the messages and a reorder buffer of replies."""

    def __init__(
        self,
        grid: Grid,
        messages: Iterable[Message],
        window: int,
        poll: float,
        timeout: float | None,
    ) -> None:
        self._grid = grid
        self._source = iter(messages)
        self._window = window
        self._poll = poll
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._expired = False
        self._taken = 0
        self._consumed = 0
        self._restarts = Restarts(grid, time.monotonic())
        self._waiting: dict[str, tuple[int, Message]] = {}
        self._ready: dict[int, Message] = {}

    def replies(self) -> Iterator[Message]:
        """Yield replies in order; keeps no reference to one it has handed over."""
        try:
            while self._consumed < self._taken:
                while self._consumed in self._ready:
                    yield self._ready.pop(self._consumed)
                    self._consumed += 1
                self.refill()
                if self._waiting and self._consumed not in self._ready:
                    self._collect()
        finally:
            self._abandon(overdue=False)

    def refill(self) -> None:
        """Send what the window has room for, as one list."""
        room = self._consumed + self._window - self._taken
        batch = list(islice(self._source, room)) if room > 0 else []
        if not batch:
            return
        first = self._taken
        self._taken += len(batch)
        if self._expired:
            for index, message in enumerate(batch, first):
                self._fail(
                    index,
                    message,
                    ErrorCode.MESSAGE_UNAVAILABLE,
                    f"not sent: the exchange ended after {self._timeout:g} s",
                )
            return
        self._restarts.before_sending()
        ids = _paired_ids(batch, list(self._grid.push_messages(batch)))
        for index, (message, message_id) in enumerate(zip(batch, ids, strict=True), first):
            if message_id and message_id not in self._waiting:
                self._waiting[message_id] = (index, message)
                self._restarts.sent(message_id, message.metadata.dst_node_id)
            else:
                node = message.metadata.dst_node_id
                self._fail(
                    index, message, ErrorCode.NODE_UNAVAILABLE, f"refused: no such node {node}"
                )

    def _collect(self) -> None:
        """Pull once; then wait a little, or give up if the deadline has passed."""
        remaining = None if self._deadline is None else self._deadline - time.monotonic()
        self._pull(None if remaining is None else max(remaining, 0.0))
        self._give_up_lost()
        if self._consumed in self._ready:
            return
        if remaining is not None and remaining <= 0:
            self._expire()
        elif self._poll:
            time.sleep(self._poll if remaining is None else min(self._poll, remaining))

    def _pull(self, remaining: float | None) -> None:
        ids = list(self._waiting)
        if getattr(self._grid, "pull_blocks", False):
            pull: Any = self._grid.pull_messages
            replies = pull(ids, timeout=remaining)
        else:
            replies = self._grid.pull_messages(ids)
        for reply in replies:
            index, message = self._waiting.pop(reply.metadata.reply_to_message_id, (-1, reply))
            if index < 0:
                continue
            if reply.has_error() and reply.metadata.src_node_id != message.metadata.dst_node_id:
                self._fail(index, message, reply.error.code, _reason(reply.error))
            else:
                self._ready[index] = reply

    def _give_up_lost(self) -> None:
        """Answer for nodes that were restarted with a message in hand."""
        lost = self._restarts.lost(self._waiting.keys(), time.monotonic())
        if lost:
            self._pull(0.0)  # of a node that answered just before
        for message_id in lost:
            if message_id in self._waiting:
                reason = "the node was restarted; what it was asked before is lost"
                self._fail(*self._waiting.pop(message_id), ErrorCode.NODE_UNAVAILABLE, reason)

    def _expire(self) -> None:
        self._expired = True
        self._abandon(overdue=True)
        for index, message in self._waiting.values():
            self._fail(
                index,
                message,
                ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
                f"no reply within {self._timeout:g} s",
            )
        self._waiting.clear()

    def _abandon(self, *, overdue: bool) -> None:
        """Tell a grid that can use it that nobody waits for these messages any more."""
        abandon = getattr(self._grid, "abandon_messages", None)
        if abandon is not None and self._waiting:
            abandon(list(self._waiting), overdue=overdue)

    def _fail(self, index: int, message: Message, code: int, reason: str) -> None:
        self._ready[index] = Message(Error(code, reason), reply_to=message)


def _reason(error: Error) -> str:
    return error.reason or f"the SuperLink reported error code {error.code} without a reason"


def _paired_ids(batch: list[Message], ids: list[str]) -> list[str | None]:
    """The id of each message: some grids put None for a refused one, others leave it out."""
    if len(ids) == len(batch):
        return list(ids)
    accepted = set(ids)
    own = [message.metadata.message_id for message in batch]
    return [message_id if message_id in accepted else None for message_id in own]
