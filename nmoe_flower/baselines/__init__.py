"""Published systems on one server base, each in one file with both halves.

A system's row in `nmoe_flower.catalogue.BASELINES` names its `Baseline`. `PartialExperts` is the
server half of all of them.
"""

from nmoe_flower.baselines.footprint import SystemCost, memory_of_server, system_cost
from nmoe_flower.baselines.partial import (
    PartialExperts,
    expert_of,
    has_clients_parts,
    of_client,
)
from nmoe_flower.baselines.system import Answers, Baseline

__all__ = [
    "Answers",
    "Baseline",
    "PartialExperts",
    "SystemCost",
    "expert_of",
    "has_clients_parts",
    "memory_of_server",
    "of_client",
    "system_cost",
]
