"""Experts that answer each other over the network: the peer service and its router.

Rooms, each of which sees only those before it: ``protocol`` (what peers say to each other),
``bundle`` (what a device keeps), then ``ask`` and ``serve``, which do not see each other.
"""

from nmoe_flower.inference.ask import (
    Answer,
    CallRecord,
    Client,
    PeerStatus,
    RemoteExperts,
    RouterMetrics,
    Sent,
    Survey,
)
from nmoe_flower.inference.bundle import Bundle, Manifest, export_run, export_store
from nmoe_flower.inference.protocol import (
    PeerEntry,
    PeerList,
    decode_tensor,
    encode_tensor,
    parse,
    peer_handlers,
)
from nmoe_flower.inference.serve import ExpertServer, RefusedError, Sources, SourceWatch
from nmoe_flower.inference.telemetry import JsonFormatter

__all__ = [
    "Answer",
    "Bundle",
    "CallRecord",
    "Client",
    "ExpertServer",
    "JsonFormatter",
    "Manifest",
    "PeerEntry",
    "PeerList",
    "PeerStatus",
    "RefusedError",
    "RemoteExperts",
    "RouterMetrics",
    "Sent",
    "SourceWatch",
    "Sources",
    "Survey",
    "decode_tensor",
    "encode_tensor",
    "export_run",
    "export_store",
    "parse",
    "peer_handlers",
]
