"""Flower strategies: each one page, each a drop-in for FedAvg."""

from nmoe_flower.strategies.base import Exchange, StreamingFedAvg, cohort_size, wait_for_nodes
from nmoe_flower.strategies.fedce import FedCE
from nmoe_flower.strategies.fedgate import FedGate
from nmoe_flower.strategies.rollgate import RollGate

__all__ = [
    "Exchange",
    "FedCE",
    "FedGate",
    "RollGate",
    "StreamingFedAvg",
    "cohort_size",
    "wait_for_nodes",
]
