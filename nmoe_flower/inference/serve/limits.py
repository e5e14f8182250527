"""How much one caller may ask of a peer: sizes, connections, time for a handshake."""

from nmoe_flower.errors import ConfigError
from nmoe_flower.inference.bundle.bundle import Bundle
from nmoe_flower.inference.protocol.wire import MAX_MESSAGE_BYTES

__all__ = ["check_size", "server_options"]

_OVERHEAD_BYTES = 4096  # of a request beside its latents


def check_size(bundle: Bundle, max_batch: int) -> None:
    """Refuse a batch that no message could carry.

    Raises:
        ConfigError: ``max_batch`` float32 latents are larger than a message may be.
    """
    size = max_batch * bundle.latent_dim * 4 + _OVERHEAD_BYTES
    if size > MAX_MESSAGE_BYTES:
        raise ConfigError(
            f"a request of max_batch = {max_batch} latents of {bundle.latent_dim} numbers has "
            f"{size} bytes; a message may have {MAX_MESSAGE_BYTES}"
        )


def server_options() -> list[tuple[str, int]]:
    """GRPC's options of a server."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", 1024),  # per connection; more are cut off by gRPC
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error
    ]
