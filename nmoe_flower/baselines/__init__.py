"""Published systems on one server base, each in one file with both halves.

A system's row in `nmoe_flower.catalogue.BASELINES` names its `Baseline`. `PartialExperts` is the
server half of all of them: `ChosenExperts` that of FedJETs, `FlexExperts` of FLEX-MoE,
`MixedExperts` of FedMoE-DA, `PooledHeads` of pFedMoAP, `UsedExperts` of FedMoE.
"""

from nmoe_flower.baselines.fedjets import ChosenExperts
from nmoe_flower.baselines.fedmoe import UsedExperts
from nmoe_flower.baselines.fedmoe_da import MixedExperts
from nmoe_flower.baselines.flex_moe import FlexExperts
from nmoe_flower.baselines.footprint import (
    SystemCost,
    empty_network,
    memory_of_server,
    system_cost,
)
from nmoe_flower.baselines.partial import (
    PartialExperts,
    expert_of,
    has_clients_parts,
    of_client,
)
from nmoe_flower.baselines.pfedmoap import PooledHeads
from nmoe_flower.baselines.system import Answers, Baseline

__all__ = [
    "Answers",
    "Baseline",
    "ChosenExperts",
    "FlexExperts",
    "MixedExperts",
    "PartialExperts",
    "PooledHeads",
    "SystemCost",
    "UsedExperts",
    "empty_network",
    "expert_of",
    "has_clients_parts",
    "memory_of_server",
    "of_client",
    "system_cost",
]
