"""Experts that answer each other over the network: the peer service and its router."""

from nmoe_flower.inference.bundle import Bundle
from nmoe_flower.inference.client import Answer, Client
from nmoe_flower.inference.export import export_run, export_store
from nmoe_flower.inference.manifest import Manifest
from nmoe_flower.inference.peers import PeerEntry, PeerList
from nmoe_flower.inference.record import CallRecord, Sent
from nmoe_flower.inference.router import RemoteExperts
from nmoe_flower.inference.router_metrics import RouterMetrics
from nmoe_flower.inference.rpc import PeerStub, RefusedError, peer_handlers
from nmoe_flower.inference.service import ExpertServer
from nmoe_flower.inference.sources import Sources, SourceWatch
from nmoe_flower.inference.survey import PeerStatus, Survey
from nmoe_flower.inference.wire import decode_tensor, encode_tensor, parse

__all__ = [
    "Answer",
    "Bundle",
    "CallRecord",
    "Client",
    "ExpertServer",
    "Manifest",
    "PeerEntry",
    "PeerList",
    "PeerStatus",
    "PeerStub",
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
