"""What an exchange brought: which replies can be aggregated, which cannot, and why."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.engine import StreamingGrid, flower
from nmoe_flower.errors import ReplyError
from nmoe_flower.plurals import listed

__all__ = ["Exchange", "LoggedGrid", "Usable", "read_reply", "reason_of"]

log = logging.getLogger(__name__)

_LONGEST_REASON = 1000
_MOST_REASONS = 5  # that an error tells; all are in rounds.jsonl


@dataclass
class Exchange:
    """What one round trip cost and who failed in it; clients by partition id where known."""

    clients: list[int] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0

    def fail(self, partition: int, reason: str) -> None:
        """Name a client whose reply was dropped, and why; a long reason is cut."""
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]} [... {len(reason)} characters]"
        log.warning("dropped the reply of client %d: %s", partition, reason)
        self.failures.append({"partition": partition, "reason": reason})

    def reasons(self, last: int = 0) -> list[str]:
        """Why replies were dropped, in words: the clients of one reason together.

        Args:
            last: So many of the failures, the latest; 0: all.

        >>> exchange = Exchange(failures=[{"partition": p, "reason": "late"} for p in (1, 2)])
        >>> exchange.reasons(), exchange.reasons(last=1)
        (['clients 1, 2: late'], ['client 2: late'])
        """
        clients: dict[str, list[int]] = {}
        for one in self.failures[-last:]:
            clients.setdefault(one["reason"], []).append(one["partition"])
        found = list(clients.items())
        told = [f"{listed(failed)}: {reason}" for reason, failed in found[:_MOST_REASONS]]
        others = sum(len(failed) for _, failed in found[_MOST_REASONS:])
        return [*told, f"{others} more"] if others else told

    def absorb(self, other: "Exchange") -> None:
        """Add another round trip of the same round: its failures and its bytes."""
        self.failures += other.failures
        self.bytes_down += other.bytes_down
        self.bytes_up += other.bytes_up


class LoggedGrid(StreamingGrid):
    """A streaming grid that logs how many nodes were asked, and how many replies were of use.

    The words are FedAvg's. It counts error replies as failures; here whatever was dropped counts.

    Args:
        grid: Carries the messages.
        kinds: What a message type is called in the log; exchanges of others are not told.
        found: Gives what came of the exchange, once its last reply was taken.
    """

    def __init__(
        self, grid: StreamingGrid, kinds: Mapping[str, str], found: Callable[[], Exchange]
    ) -> None:
        super().__init__(grid)
        self._kinds, self._found = kinds, found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Exchange messages; what came of them is logged when the last reply was taken."""
        messages = list(messages)
        kind = self._kinds.get(messages[0].metadata.message_type) if messages else None
        if kind is not None:
            total = len(list(self.get_node_ids()))
            _log("configure_%s: Sampled %s nodes (out of %s)", kind, len(messages), total)
        replies = iter(self._grid.send_and_receive(messages, timeout=timeout))
        return replies if kind is None else self._followed(kind, replies)

    def _followed(self, kind: str, replies: Iterator[Message]) -> Iterator[Message]:
        yield from replies
        found = self._found()
        results, failures = len(found.clients), len(found.failures)
        _log("aggregate_%s: Received %s results and %s failures", kind, results, failures)


def _log(text: str, *values: object) -> None:
    flower.log(logging.INFO, text, *values)


@dataclass(frozen=True, slots=True)
class Usable:
    """One reply that passed every check.

    Attributes:
        metrics: The MetricRecord as it came: entries may be missing, NaN or infinite.
        weight: Finite, at least 0.
        arrays: Finite, in the order and the dtypes of those sent; empty where none were asked for.
        bytes: Size of all arrays of the reply.
        squares: Sum of the squares of every float array.
    """

    metrics: MetricRecord
    weight: float
    arrays: dict[str, np.ndarray]
    bytes: int
    squares: dict[str, float] = field(default_factory=dict)


def read_reply(
    reply: Message,
    *,
    weighted_by_key: str,
    arrayrecord_key: str | None,
    like: Mapping[str, np.ndarray] | None,
    partly: bool = False,
) -> Usable:
    """Check one reply.

    Args:
        reply: The reply as it came.
        weighted_by_key: The metric that weighs it.
        arrayrecord_key: Name of the ArrayRecord; None if only metrics are wanted.
        like: What was sent: names, shapes and dtypes are restored from it, see
            ``records.restored``; None: not known, any will do.
        partly: Some of the arrays that were sent may be missing.

    Raises:
        ReplyError: It is an error, its arrays are not those that were sent or not finite, or it has
            no weight. What else it measured never costs a client its weights.
    """
    if reply.has_error():
        raise ReplyError(reason_of(reply))
    found = list(records.of_kind(reply.content, MetricRecord).values())
    if len(found) != 1:
        raise ReplyError(f"one MetricRecord is wanted, got {len(found)}")
    (metrics,) = found
    weight = _weight(metrics, weighted_by_key)
    arrays: dict[str, np.ndarray] = {}
    squares: dict[str, float] = {}
    if arrayrecord_key is not None:
        arrays = records.to_numpy(_array_record(reply.content, arrayrecord_key))
        squares = records.require_finite(arrays)
        if partly and like is not None:
            if unknown := sorted(arrays.keys() - like.keys()):
                raise ReplyError(f"array {unknown[0]!r} was not assigned to this client")
            like = {name: value for name, value in like.items() if name in arrays}
        arrays = records.restored(arrays, arrays if like is None else like)
    return Usable(metrics, weight, arrays, records.array_bytes(reply.content), squares)


def reason_of(reply: Message) -> str:
    """Why a reply is an error."""
    return reply.error.reason or f"error code {reply.error.code} without a reason"


def _weight(metrics: MetricRecord, key: str) -> float:
    if key not in metrics:
        told = f"the weight {key!r} is missing among {sorted(metrics)}"
        raise ReplyError(f"{told} (weighted_by_key names it)")
    weight = metrics[key]
    if not isinstance(weight, int | float):
        raise ReplyError(f"the weight {key!r} is a {type(weight).__name__}, not a number")
    try:
        weight = float(weight)
    except OverflowError:
        raise ReplyError(f"the weight {key!r} is an integer that no float holds") from None
    if not math.isfinite(weight):
        raise ReplyError(f"the weight {key!r} is {weight}")
    if weight < 0:
        raise ReplyError(f"the weight {key!r} is negative: {weight:g}")
    return weight


def _array_record(content: RecordDict, key: str) -> ArrayRecord:
    """The ArrayRecord of that name, or the only one there is."""
    named = content.get(key)
    if isinstance(named, ArrayRecord):
        return named
    found = [value for value in content.values() if isinstance(value, ArrayRecord)]
    if len(found) != 1:
        raise ReplyError(f"the ArrayRecord {key!r} is missing")
    return found[0]
