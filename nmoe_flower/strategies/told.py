"""The lines that FedAvg logs of every round, for strategies that stream their replies."""

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from flwr.app import Message

from nmoe_flower.engine import flower
from nmoe_flower.engine.streaming import StreamingGrid

if TYPE_CHECKING:
    from nmoe_flower.strategies.base import StreamingFedAvg

__all__ = ["ToldGrid"]


class ToldGrid(StreamingGrid):
    """A streaming grid that says how many nodes were asked, and how many replies were of use.

    The words are FedAvg's. It counts error replies as failures; here whatever was dropped counts.

    Args:
        grid: Carries the messages.
        strategy: Whose rounds these are; exchanges of other message types are not told.
    """

    def __init__(self, grid: StreamingGrid, strategy: "StreamingFedAvg") -> None:
        super().__init__(grid)
        self._strategy = strategy

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Exchange messages; what came of them is logged when the last reply was taken."""
        messages = list(messages)
        kind = self._kind(messages)
        if kind:
            total = len(list(self.get_node_ids()))
            _log("configure_%s: Sampled %s nodes (out of %s)", kind, len(messages), total)
        replies = iter(self._grid.send_and_receive(messages, timeout=timeout))
        return self._followed(kind, replies) if kind else replies

    def _kind(self, messages: list[Message]) -> str:
        """``train`` or ``evaluate`` for a round of the strategy, else empty."""
        kinds = {
            self._strategy.action or "train": "train",
            self._strategy.evaluate_action or "evaluate": "evaluate",
        }
        return kinds.get(messages[0].metadata.message_type, "") if messages else ""

    def _followed(self, kind: str, replies: Iterator[Message]) -> Iterator[Message]:
        yield from replies
        found = self._strategy.last_exchange
        results, failures = len(found.clients), len(found.failures)
        _log("aggregate_%s: Received %s results and %s failures", kind, results, failures)


def _log(text: str, *values: object) -> None:
    flower.log(logging.INFO, text, *values)
