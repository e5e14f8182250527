"""The methods of the service ``nmoe.v1.Peer``: a stub for callers, handlers for a server.

Requests of ``Predict`` reach the server as bytes: what cannot be read is then an error of ours,
with a status and a counter, and not one of gRPC's.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from nmoe_flower.inference.protocol.peer_pb2 import (
    DescribeRequest,
    Description,
    PeerList,
    PeersRequest,
    PredictReply,
    PredictRequest,
)

__all__ = ["SERVICE", "PeerStub", "RefusedError", "peer_handlers"]

SERVICE = "nmoe.v1.Peer"
Handler = Callable[[bytes, Any], Awaitable[Any]]


class RefusedError(Exception):
    """A request that gets no answer, inside the server: becomes a status on the wire.

    Attributes:
        code: The gRPC status.
        reason: One word for the counters and the log.
    """

    def __init__(self, code: grpc.StatusCode, reason: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason


class PeerStub:
    """Calls the methods of a peer over a channel, of ``grpc`` or of ``grpc.aio``."""

    def __init__(self, channel: Any) -> None:
        def method(name: str, request: type, reply: Any) -> Any:
            return channel.unary_unary(
                f"/{SERVICE}/{name}",
                request_serializer=request.SerializeToString,  # type: ignore[attr-defined]
                response_deserializer=reply.FromString,
            )

        self.Describe = method("Describe", DescribeRequest, Description)
        self.Predict = method("Predict", PredictRequest, PredictReply)
        self.Peers = method("Peers", PeersRequest, PeerList)


def peer_handlers(*, describe: Handler, predict: Handler, peers: Handler) -> Any:
    """The service for ``server.add_generic_rpc_handlers``; requests come as bytes."""
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            handler, response_serializer=reply.SerializeToString
        )
        for name, handler, reply in (
            ("Describe", describe, Description),
            ("Predict", predict, PredictReply),
            ("Peers", peers, PeerList),
        )
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)
