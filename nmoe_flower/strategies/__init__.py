"""Flower strategies: each one page, each a drop-in for FedAvg."""

from nmoe_flower.strategies.aggregation import WeightedMean
from nmoe_flower.strategies.alignment import ExpertAlignment
from nmoe_flower.strategies.alignment_gate import (
    AveragedGate,
    GateSharing,
    StatisticsGate,
    TravellingGate,
    UnsharedGate,
)
from nmoe_flower.strategies.alignment_parcels import ExpertNames, parcel
from nmoe_flower.strategies.base import FedAvgOptions, StreamingFedAvg, StreamingOptions
from nmoe_flower.strategies.cohort import (
    Partitions,
    cohort_size,
    learn_partitions,
    meet_nodes,
    wait_for_nodes,
)
from nmoe_flower.strategies.fedce import FedCE
from nmoe_flower.strategies.fedgate import FedGate
from nmoe_flower.strategies.fedlora import FedLoRA, mean_product
from nmoe_flower.strategies.fedsc import FedSC
from nmoe_flower.strategies.limits import require_number, require_whole
from nmoe_flower.strategies.optimizers import AdamW
from nmoe_flower.strategies.replies import Exchange, Usable, read_reply, reason_of
from nmoe_flower.strategies.rollgate import RollGate
from nmoe_flower.strategies.stepped import SteppedFedAvg, SteppedOptions

__all__ = [
    "AdamW",
    "AveragedGate",
    "Exchange",
    "ExpertAlignment",
    "ExpertNames",
    "FedAvgOptions",
    "FedCE",
    "FedGate",
    "FedLoRA",
    "FedSC",
    "GateSharing",
    "Partitions",
    "RollGate",
    "StatisticsGate",
    "SteppedFedAvg",
    "SteppedOptions",
    "StreamingFedAvg",
    "StreamingOptions",
    "TravellingGate",
    "UnsharedGate",
    "Usable",
    "WeightedMean",
    "cohort_size",
    "learn_partitions",
    "mean_product",
    "meet_nodes",
    "parcel",
    "read_reply",
    "reason_of",
    "require_number",
    "require_whole",
    "wait_for_nodes",
]
