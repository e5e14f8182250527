"""What a router counts, for Prometheus: whom it asked, who answered, what fell back and why."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from nmoe_flower.inference.ask.record import CallRecord
from nmoe_flower.inference.serve.metrics import SECONDS

__all__ = ["RouterMetrics"]

_NOBODY = "nobody"  # an expert that the list of peers gives to nobody


class RouterMetrics:
    """The counters of one router, or of several together. Safe in several threads.

    Attributes:
        registry: What an exporter reads.
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
