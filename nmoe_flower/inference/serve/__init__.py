"""The device that answers: its service, what a request goes through, its queue, its files."""

from nmoe_flower.inference.serve.batching import load_expert
from nmoe_flower.inference.serve.requests import RefusedError, ServiceMetrics
from nmoe_flower.inference.serve.service import ExpertServer
from nmoe_flower.inference.serve.watch import Sources, SourceWatch

__all__ = [
    "ExpertServer",
    "RefusedError",
    "ServiceMetrics",
    "SourceWatch",
    "Sources",
    "load_expert",
]
