"""Which replies can be aggregated, which cannot, and why."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.errors import ReplyError

__all__ = ["Exchange", "Usable", "agreeing", "read_reply"]

log = logging.getLogger(__name__)


@dataclass
class Exchange:
    """What one round trip cost and who failed in it; clients by partition id where known."""

    clients: list[int] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0

    def fail(self, partition: int, reason: str) -> None:
        """Name a client whose reply was dropped, and why."""
        log.warning("dropped the reply of client %d: %s", partition, reason)
        self.failures.append({"partition": partition, "reason": reason})

    def absorb(self, other: "Exchange") -> None:
        """Add another round trip of the same round: its failures and its bytes."""
        self.failures += other.failures
        self.bytes_down += other.bytes_down
        self.bytes_up += other.bytes_up


@dataclass(frozen=True, slots=True)
class Usable:
    """One reply that passed every check.

    Attributes:
        metrics: Its MetricRecord.
        weight: At least 0.
        arrays: Read-only views; empty where none were asked for.
        bytes: Of all its arrays.
    """

    metrics: MetricRecord
    weight: float
    arrays: dict[str, np.ndarray]
    bytes: int


def read_reply(
    reply: Message,
    *,
    weighted_by_key: str,
    arrayrecord_key: str | None,
    like: Mapping[str, np.ndarray],
) -> Usable:
    """Check one reply.

    Args:
        reply: As it came.
        weighted_by_key: The metric that weighs it.
        arrayrecord_key: Its ArrayRecord; None if only metrics are wanted.
        like: Arrays whose names and shapes it must have; empty accepts any.

    Raises:
        ReplyError: It is an error, not finite, not of the right names or shapes, or has no weight.
    """
    if reply.has_error():
        raise ReplyError(reply.error.reason)
    values = list(reply.content.values())
    metric_records = [value for value in values if isinstance(value, MetricRecord)]
    if len(metric_records) != 1:
        raise ReplyError(f"one MetricRecord is wanted, got {len(metric_records)}")
    (metrics,) = metric_records
    for name, value in metrics.items():
        if not np.all(np.isfinite(value)):
            raise ReplyError(f"metric {name!r} is {value}")
    weight = metrics.get(weighted_by_key)
    if not isinstance(weight, int | float):
        raise ReplyError(f"the weight {weighted_by_key!r} is missing or not a number")
    if weight < 0:
        raise ReplyError(f"the weight {weighted_by_key!r} is negative: {weight}")
    arrays: dict[str, np.ndarray] = {}
    if arrayrecord_key is not None:
        arrays = records.to_numpy(_array_record(reply.content, arrayrecord_key))
        if like:
            records.compare(arrays, like)
    return Usable(metrics, float(weight), arrays, records.array_bytes(reply.content))


def _array_record(content: RecordDict, key: str) -> ArrayRecord:
    """The ArrayRecord of that name, or the only one there is."""
    named = content.get(key)
    if isinstance(named, ArrayRecord):
        return named
    found = [value for value in content.values() if isinstance(value, ArrayRecord)]
    if len(found) != 1:
        raise ReplyError(f"the ArrayRecord {key!r} is missing")
    return found[0]


def agreeing(metrics: Sequence[MetricRecord]) -> list[RecordDict]:
    """The records whose metric names most clients share, as Flower's aggregation wants them.

    Weights can be averaged whatever a client measures beside them; metrics cannot. The odd ones
    are left out of the averaged metrics, not out of the model.
    """
    names = Counter(frozenset(record) for record in metrics)
    common = names.most_common(1)[0][0] if names else frozenset()
    kept = [RecordDict({records.METRICS: record}) for record in metrics if record.keys() == common]
    if len(kept) < len(metrics):
        log.warning(
            "the metrics of %d of %d clients have other names than %s and are left out",
            len(metrics) - len(kept),
            len(metrics),
            sorted(common),
        )
    return kept
