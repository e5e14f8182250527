"""A Grid that hands over replies one by one, in the order of the messages.

Flower's grids return all replies as one list, so a server holds as many models as there are
clients. Here at most ``window`` messages are under way, and a reply leaves as soon as it and all
before it have arrived: memory does not grow with the number of clients, and since the order never
changes, a running sum has the same bits in every run.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Self

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from nmoe_flower.engine import flower
from nmoe_flower.engine.exchange import StreamingExchange
from nmoe_flower.engine.flower import NodeInfo, Run

__all__ = ["LEAST_WINDOW", "StreamingGrid"]

LEAST_WINDOW = 64
_IN_MEMORY_POLL = 0.005
_DEFAULT_POLL = 0.1


class StreamingGrid(Grid):
    """Wrap any Flower grid so that ``send_and_receive`` yields replies as they arrive.

    Everything but ``send_and_receive`` goes straight to the wrapped grid. A grid with the
    attribute ``pull_blocks = True`` waits for a reply inside ``pull_messages(ids, timeout=)``; any
    other grid is asked again and again. One with ``keeps_busy`` has so many messages under way at
    most: its clients are as busy, and replies that wait for one before them are fewer. A SuperLink
    hands a message out once, so a node that is restarted while it has one never answers it; every
    few seconds such nodes are looked for, and their messages given up.

    Args:
        grid: The grid that carries the messages.
        window: Most messages under way at once; by default 64, or what the grid has as ``window``.
            Waves of about 100 also keep Flower's simulation from scanning its whole message store
            for each node.
        poll: Seconds between two pulls at first, by default what suits the grid; between later ones
            a tenth of the time since the last reply, at most ten times ``poll``.

    Raises:
        ValueError: ``window`` is below 1.
    """

    def __init__(self, grid: Grid, *, window: int | None = None, poll: float | None = None) -> None:
        if window is None:
            window = int(getattr(grid, "window", LEAST_WINDOW))
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
        exchange = StreamingExchange(self._grid, messages, self._window, self._poll, timeout)
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
    interval = flower.pull_interval(grid)
    return _DEFAULT_POLL if interval is None else min(interval, _IN_MEMORY_POLL)
