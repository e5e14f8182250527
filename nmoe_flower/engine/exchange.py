"""One ``send_and_receive`` of a StreamingGrid, from the first message to the last reply."""

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from flwr.app import Error, Message
from flwr.serverapp import Grid

from nmoe_flower.engine.flower import ErrorCode
from nmoe_flower.engine.restarts import Restarts
from nmoe_flower.records import array_bytes

__all__ = ["StreamingExchange"]

_PATIENCE = 10
_MOST_EARLY_BYTES = 1 << 26  # of replies that wait for one before them, before no more is sent


class StreamingExchange:
    """A window over the messages, and a reorder buffer of replies.

    While the replies that came early hold 64 MiB, nothing more is sent: one slow client of a large
    model does not make the server hold those of all others. A grid with ``pull_blocks`` says by
    ``keeps_busy`` how many messages keep it busy, and gets no more at once: what it was given, it
    answers.

    Args:
        grid: The grid that carries the messages.
        messages: Read as the window moves on.
        window: Most messages under way at once.
        poll: Seconds between two pulls at first. The longer no reply comes, the longer the pause: a
            tenth of that time, at most ten times ``poll``. 0 for a grid that waits by itself.
        timeout: Seconds for all of it, from now; None waits for ever.
    """

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
        self._news = time.monotonic()
        self._restarts = Restarts(grid, self._news)
        self._waiting: dict[str, tuple[int, Message]] = {}
        self._ready: dict[int, Message] = {}
        self._most_waiting = int(getattr(grid, "keeps_busy", window))

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
        room = min(
            self._consumed + self._window - self._taken,
            self._most_waiting - len(self._waiting),
        )
        if room <= 0 or (self._waiting and self._early_bytes() >= _MOST_EARLY_BYTES):
            return
        batch = list(islice(self._source, room))
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
        self._news = time.monotonic()
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

    def _early_bytes(self) -> int:
        return sum(
            array_bytes(reply.content) for reply in self._ready.values() if reply.has_content()
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
            pause = self._pause()
            time.sleep(pause if remaining is None else min(pause, remaining))

    def _pause(self) -> float:
        """Seconds until the next pull: each costs a SuperLink milliseconds, whatever it finds."""
        waited = time.monotonic() - self._news
        return min(max(self._poll, waited / _PATIENCE), self._poll * _PATIENCE)

    def _pull(self, remaining: float | None) -> None:
        ids = list(self._waiting)
        if getattr(self._grid, "pull_blocks", False):
            pull: Any = self._grid.pull_messages
            replies = pull(ids, timeout=remaining)
        else:
            replies = self._grid.pull_messages(ids)
        for reply in replies:
            self._news = time.monotonic()
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
