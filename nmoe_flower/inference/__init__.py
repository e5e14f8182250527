"""Experts that answer each other over the network: the peer service and its router."""

from nmoe_flower.inference.ask.client import Answer, Client
from nmoe_flower.inference.ask.record import CallRecord, Sent
from nmoe_flower.inference.ask.router import RemoteExperts
from nmoe_flower.inference.ask.router_metrics import RouterMetrics
from nmoe_flower.inference.ask.survey import PeerStatus, Survey
from nmoe_flower.inference.bundle.bundle import Bundle
from nmoe_flower.inference.bundle.export import export_run, export_store
from nmoe_flower.inference.bundle.manifest import Manifest
from nmoe_flower.inference.protocol.peers import PeerEntry, PeerList
from nmoe_flower.inference.protocol.rpc import PeerStub, RefusedError, peer_handlers
from nmoe_flower.inference.protocol.wire import decode_tensor, encode_tensor, parse
from nmoe_flower.inference.serve.service import ExpertServer
from nmoe_flower.inference.serve.sources import Sources, SourceWatch

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
