"""Client-expert alignment: fitness, usage, capacity, and who trains which expert (2507.05685)."""

from nmoe_flower.alignment.bounds import InfeasibleBoundsError
from nmoe_flower.alignment.capacity import Capacity, ExpertCost
from nmoe_flower.alignment.desirability import desirability
from nmoe_flower.alignment.fitness import Fitness, reward
from nmoe_flower.alignment.policies import POLICIES, align
from nmoe_flower.alignment.usage import DeficitQueue, Usage, load_variation

__all__ = [
    "POLICIES",
    "Capacity",
    "DeficitQueue",
    "ExpertCost",
    "Fitness",
    "InfeasibleBoundsError",
    "Usage",
    "align",
    "desirability",
    "load_variation",
    "reward",
]
