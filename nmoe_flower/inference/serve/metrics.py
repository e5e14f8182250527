"""What a peer counts, for Prometheus. Every server has a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nmoe_flower.inference.bundle.bundle import Bundle

__all__ = ["SECONDS", "ServiceMetrics"]

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServiceMetrics:
    """The counters of one peer service.

    Attributes:
        registry: What an exporter reads.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "nmoe_requests", "Predict requests by caller", ["peer"], registry=registry
        )
        self.refusals = Counter(
            "nmoe_refusals", "Requests refused, by reason", ["reason"], registry=registry
        )
        self.cancelled = Counter("nmoe_cancelled", "Requests the caller gave up", registry=registry)
        self.handshakes = Counter(
            "nmoe_handshakes", "TLS handshakes begun, refused ones too", registry=registry
        )
        self.rows = Counter("nmoe_rows", "Latents answered", registry=registry)
        self.received = Counter("nmoe_received_bytes", "Of requests", registry=registry)
        self.sent = Counter("nmoe_sent_bytes", "Of logits", registry=registry)
        self.swaps = Counter("nmoe_swaps", "New bundles taken", registry=registry)
        self.seconds = Histogram(
            "nmoe_request_seconds",
            "From the request's arrival to its answer",
            buckets=SECONDS,
            registry=registry,
        )
        self.compute = Histogram(
            "nmoe_batch_seconds", "Of one pass", buckets=SECONDS, registry=registry
        )
        self.batch_rows = Histogram(
            "nmoe_batch_rows", "Latents in one pass", buckets=_ROWS, registry=registry
        )
        self.queue = Gauge("nmoe_queue_rows", "Latents that wait", registry=registry)
        self._bundle = Gauge(
            "nmoe_bundle",
            "1 for what is served",
            ["partition", "expert", "gate", "extractor"],
            registry=registry,
        )

    def answered(self, caller: str, *, rows: int, size: int, seconds: float) -> None:
        """Count one answer of ``rows`` logits in ``size`` bytes."""
        self.requests.labels(caller).inc()
        self.rows.inc(rows)
        self.sent.inc(size)
        self.seconds.observe(seconds)

    def batch(self, rows: int, seconds: float) -> None:
        """Count one pass of the network."""
        self.batch_rows.observe(rows)
        self.compute.observe(seconds)

    def serves(self, bundle: Bundle) -> None:
        """Show the versions of ``bundle`` and no others."""
        self._bundle.clear()
        self._bundle.labels(
            str(bundle.partition),
            bundle.expert_version,
            bundle.gate_version,
            bundle.extractor_version,
        ).set(1)
