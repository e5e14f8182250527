"""The assignment as a problem of its own: bounds, prices, flow, ties; numbers in, a choice out."""

from nmoe_flower.alignment.solver.bounds import Bound, InfeasibleBoundsError
from nmoe_flower.alignment.solver.joint import Standing, price_bound, solve_joint
from nmoe_flower.alignment.solver.ties import Keys, client_keys, noise, top

__all__ = [
    "Bound",
    "InfeasibleBoundsError",
    "Keys",
    "Standing",
    "client_keys",
    "noise",
    "price_bound",
    "solve_joint",
    "top",
]
