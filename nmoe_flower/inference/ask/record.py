"""What a query cost and who answered it: the record of every answer, and what Prometheus is told.

A registry of Prometheus counts what the records say, of one router or of several together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from nmoe_flower.files import to_json
from nmoe_flower.inference.ask.query import SILENT, Ints, Why
from nmoe_flower.inference.telemetry import SECONDS

__all__ = ["ANSWERED", "UNFINISHED", "CallRecord", "RouterMetrics", "Sent"]

ANSWERED = "answered"
UNFINISHED = "unfinished"

_NOBODY = "nobody"  # an expert that the list of peers gives to nobody


@dataclass(frozen=True, slots=True)
class Sent:
    """One request to one peer.

    Attributes:
        peer: The peer's name; empty: the list has nobody for this expert.
        expert: The expert's id.
        why: Chosen by the gate, "next-best" after a failure, or "hedge" after a long silence.
        rows: How many latents were sent.
        outcome: "answered"; "unfinished" if the query was over before; else one word on what went
            wrong, such as "deadline", "busy", "unavailable", "garbage", or "open" and "unknown"
            where nothing was sent because the breaker is open or the peer is not known.
        ms: Milliseconds from the request until then.
        bytes_up: Size of the message that was sent, without the frames of HTTP/2 and TLS.
        bytes_down: Size of the message that came back, if it was of use.
    """

    peer: str
    expert: int
    why: Why
    rows: int
    outcome: str
    ms: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class CallRecord:
    """One query of a batch.

    Attributes:
        own: The id of the expert of the device that asks.
        expert_ids: Experts chosen by the gate, [B, K].
        answered_by: Ids of the experts whose logits are in the answer, [B, K]; -1: nobody's.
        ms: Milliseconds the whole query took.
        deadline_ms: Milliseconds it was allowed to take on the network.
        sent: The requests, in the order in which they ended.
        moved: Choices of the gate that were given to healthier experts before anybody was asked;
            ``expert_ids`` holds these then.
    """

    own: int
    expert_ids: Ints
    answered_by: Ints
    ms: float
    deadline_ms: float
    sent: Sequence[Sent] = field(default=())
    moved: int = 0

    @property
    def fell_back(self) -> Ints:
        """Rows [n] that no chosen expert answered."""
        wrong = (self.answered_by != self.expert_ids) & (self.answered_by != SILENT)
        return np.asarray(np.flatnonzero(wrong.any(axis=1)))

    @property
    def fallbacks(self) -> tuple[int, int]:
        """How many rows fell back to a next-best expert, and how many to the own one."""
        back = self.answered_by[self.fell_back].max(axis=1, initial=SILENT)
        return int((back != self.own).sum()), int((back == self.own).sum())

    @property
    def silent(self) -> int:
        """Choices of the gate that are missing from the answer, with others of their row in it."""
        unanswered = int((self.answered_by == SILENT).sum())
        return unanswered - len(self.fell_back) * (int(self.expert_ids.shape[1]) - 1)

    @property
    def bytes_up(self) -> int:
        """Bytes of all messages that were sent."""
        return sum(one.bytes_up for one in self.sent)

    @property
    def bytes_down(self) -> int:
        """Bytes of all messages that came back."""
        return sum(one.bytes_down for one in self.sent)

    def summary(self) -> dict[str, Any]:
        """Plain values, without the row by row part.

        >>> ids = np.array([[1], [2]])
        >>> record = CallRecord(0, ids, np.array([[1], [0]]), ms=2.0, deadline_ms=1000.0)
        >>> {k: v for k, v in record.summary().items() if v}  # doctest: +NORMALIZE_WHITESPACE
        {'rows': 2, 'ms': 2.0, 'deadline_ms': 1000.0, 'chosen': {1: 1, 2: 1},
         'answered': {0: 1, 1: 1}, 'local': 1}
        """
        next_best, local = self.fallbacks
        return {
            "own": self.own,
            "rows": len(self.expert_ids),
            "ms": round(self.ms, 3),
            "deadline_ms": self.deadline_ms,
            "chosen": _counts(self.expert_ids),
            "answered": _counts(self.answered_by),
            "next_best": next_best,
            "local": local,
            "silent": self.silent,
            "moved": self.moved,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "sent": [asdict(one) | {"ms": round(one.ms, 3)} for one in self.sent],
        }

    def line(self) -> str:
        """One line of JSON, for a file of records."""
        return to_json(self.summary())


def _counts(expert_ids: Ints) -> dict[int, int]:
    experts, counts = np.unique(expert_ids[expert_ids != SILENT], return_counts=True)
    return dict(zip(experts.tolist(), counts.tolist(), strict=True))


class RouterMetrics:
    """The counters of one router, or of several together. Safe in several threads.

    Attributes:
        registry: The registry that an exporter reads.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.rows = Counter("nmoe_router_rows", "Latents routed", registry=registry)
        self.query_seconds = Histogram(
            "nmoe_router_query_seconds",
            "Of whole batches, fallbacks included",
            buckets=SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            "nmoe_router_requests",
            "By peer, why it was asked (chosen, next-best, hedge) and what came of it",
            ["peer", "why", "outcome"],
            registry=registry,
        )
        self.failed_rows = Counter(
            "nmoe_router_failed_rows",
            "Latents whose request came to nothing, by reason",
            ["peer", "reason"],
            registry=registry,
        )
        self.fallbacks = Counter(
            "nmoe_router_fallback_rows",
            "Latents that no chosen expert answered, by who did: next-best or local",
            ["answered_by"],
            registry=registry,
        )
        self.silent = Counter(
            "nmoe_router_silent", "Chosen experts missing from an answer", registry=registry
        )
        self.moved = Counter(
            "nmoe_router_moved", "Choices given to healthier experts", registry=registry
        )
        self.sent = Counter("nmoe_router_sent_bytes", "Of requests", ["peer"], registry=registry)
        self.received = Counter(
            "nmoe_router_received_bytes", "Of answers", ["peer"], registry=registry
        )
        self.peer_seconds = Histogram(
            "nmoe_router_peer_seconds",
            "From a request to its answer",
            ["peer"],
            buckets=SECONDS,
            registry=registry,
        )

    def observe(self, record: CallRecord) -> None:
        """Count one query of a batch."""
        self.rows.inc(len(record.expert_ids))
        self.query_seconds.observe(record.ms / 1000)
        self.silent.inc(record.silent)
        self.moved.inc(record.moved)
        next_best, local = record.fallbacks
        self.fallbacks.labels("next-best").inc(next_best)
        self.fallbacks.labels("local").inc(local)
        for one in record.sent:
            peer = one.peer or _NOBODY
            self.requests.labels(peer, one.why, one.outcome).inc()
            self.sent.labels(peer).inc(one.bytes_up)
            self.received.labels(peer).inc(one.bytes_down)
            if one.outcome == "answered":
                self.peer_seconds.labels(peer).observe(one.ms / 1000)
            elif one.outcome != "unfinished":
                self.failed_rows.labels(peer, one.outcome).inc(one.rows)

    def watch(self, breakers: Callable[[], Mapping[str, str]]) -> None:
        """Show the breaker of every peer as it is when somebody looks, by name."""
        self.registry.register(_Breakers(breakers))


class _Breakers(Collector):
    def __init__(self, breakers: Callable[[], Mapping[str, str]]) -> None:
        self._breakers = breakers

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield self._family()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = self._family()
        for peer, state in sorted(self._breakers().items()):
            family.add_metric([peer, state], 1.0)
        yield family

    @staticmethod
    def _family() -> GaugeMetricFamily:
        text = "1 for the state of each peer's breaker: closed (asked), open, half-open (not)"
        return GaugeMetricFamily("nmoe_router_breaker", text, labels=["peer", "state"])
