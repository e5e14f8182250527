"""The option ``--metrics-port``: counters for Prometheus while a command runs."""

import argparse
import contextlib
from collections.abc import Iterator

from nmoe_flower.arguments import PORT
from nmoe_flower.errors import ConfigError

__all__ = ["add_metrics_port", "serve_metrics"]


def add_metrics_port(parser: argparse.ArgumentParser) -> None:
    """The option."""
    parser.add_argument("--metrics-port", type=PORT, metavar="PORT", help="Prometheus, on loopback")


@contextlib.contextmanager
def serve_metrics(registry: object, port: int | None) -> Iterator[None]:
    """Let Prometheus read ``http://127.0.0.1:port/metrics`` meanwhile; no port, nothing.

    Args:
        registry: A ``prometheus_client.CollectorRegistry``.
        port: 1 to 65535, or None.

    Raises:
        ConfigError: The port cannot be used.
    """
    if port is None:
        yield
        return
    from prometheus_client import CollectorRegistry, start_http_server

    assert isinstance(registry, CollectorRegistry)
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on metrics port {port}: {reason}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
