"""What peers say to each other: messages, tensors as bytes, signed lists of who is there.

``peer_pb2`` holds the messages, generated from ``peer.proto``.
"""

from nmoe_flower.inference.protocol import peer_pb2
from nmoe_flower.inference.protocol.peers import MAX_PEERS, PeerEntry, PeerList, is_version, target
from nmoe_flower.inference.protocol.signing import (
    DIRECTORY,
    SERIAL,
    newest_list,
    next_serial,
    sign_list,
    verify_list,
)
from nmoe_flower.inference.protocol.wire import (
    ENCODINGS,
    MAX_ID,
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    SERVICE,
    Encoding,
    check_encoding,
    decode_tensor,
    decode_tokens,
    encode_hidden,
    encode_tensor,
    encode_tokens,
    parse,
    peer_handlers,
    unfit,
)

__all__ = [
    "DIRECTORY",
    "ENCODINGS",
    "MAX_ID",
    "MAX_MESSAGE_BYTES",
    "MAX_PEERS",
    "PROTOCOL",
    "SERIAL",
    "SERVICE",
    "Encoding",
    "PeerEntry",
    "PeerList",
    "check_encoding",
    "decode_tensor",
    "decode_tokens",
    "encode_hidden",
    "encode_tensor",
    "encode_tokens",
    "is_version",
    "newest_list",
    "next_serial",
    "parse",
    "peer_handlers",
    "peer_pb2",
    "sign_list",
    "target",
    "unfit",
    "verify_list",
]
