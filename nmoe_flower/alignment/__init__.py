"""Client-expert alignment: fitness, usage, capacity, and who trains which expert (2507.05685)."""

from nmoe_flower.alignment.assigner import Assigner, Decision, Feedback
from nmoe_flower.alignment.capacity import Capacity, ExpertCost
from nmoe_flower.alignment.closed_form import ClosedFormGate
from nmoe_flower.alignment.desirability import desirability
from nmoe_flower.alignment.devices import (
    PROFILES,
    Clock,
    DeviceProfile,
    Event,
    World,
    draw_devices,
    read_trace,
    seconds_of,
)
from nmoe_flower.alignment.fitness import Fitness, reward
from nmoe_flower.alignment.policies import align
from nmoe_flower.alignment.solver import InfeasibleBoundsError, Standing, price_bound
from nmoe_flower.alignment.usage import DeficitQueue, Usage, load_variation

__all__ = [
    "PROFILES",
    "Assigner",
    "Capacity",
    "Clock",
    "ClosedFormGate",
    "Decision",
    "DeficitQueue",
    "DeviceProfile",
    "Event",
    "ExpertCost",
    "Feedback",
    "Fitness",
    "InfeasibleBoundsError",
    "Standing",
    "Usage",
    "World",
    "align",
    "desirability",
    "draw_devices",
    "load_variation",
    "price_bound",
    "read_trace",
    "reward",
    "seconds_of",
]
