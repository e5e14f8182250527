"""Nodes that were restarted while they had a message: nobody else would ever notice."""

from collections.abc import Collection

from flwr.serverapp import Grid

from nmoe_flower.engine import flower

__all__ = ["Restarts"]

_EVERY = 5.0


class Restarts:
    """Compares when nodes last became active with when they were sent a message.

    A SuperLink hands a message out once. It tells of a node that is gone, but only while it is: a
    node that is killed and back between two pulls looks as if it were still at work.

    Grids within this process (they have ``pull_blocks`` or ``pull_interval``) lose no nodes and
    are not asked.
    """

    def __init__(self, grid: Grid, now: float) -> None:
        self._grid = grid
        self._watches = not (hasattr(grid, "pull_blocks") or flower.is_simulated(grid))
        self._next = now + _EVERY
        self._active: dict[int, str] = {}
        self._sent: dict[str, tuple[int, str]] = {}

    def before_sending(self) -> None:
        """Note since when each node has been active."""
        self._active = self._look()

    def sent(self, message_id: str, node: int) -> None:
        """A message is with the SuperLink now."""
        if since := self._active.get(node, ""):
            self._sent[message_id] = node, since

    def lost(self, waiting: Collection[str], now: float) -> list[str]:
        """Which messages of ``waiting`` are lost: their node has started anew; looks every 5 s."""
        if not self._watches or now < self._next:
            return []
        self._next = now + _EVERY
        active = self._look()
        self._sent = {name: sent for name, sent in self._sent.items() if name in waiting}
        return [
            name for name, (node, since) in self._sent.items() if active.get(node, since) != since
        ]

    def _look(self) -> dict[int, str]:
        if not self._watches:
            return {}
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}
