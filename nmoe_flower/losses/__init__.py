"""Losses: load balance, and the objectives that train a gate on frozen experts."""

from nmoe_flower.losses.balance import load_balance, load_balance_global, load_fractions
from nmoe_flower.losses.gating import (
    OBJECTIVES,
    dense_mixture,
    oracle_distillation,
    pseudo_client_targets,
    straight_through,
    switch_top1,
)

__all__ = [
    "OBJECTIVES",
    "dense_mixture",
    "load_balance",
    "load_balance_global",
    "load_fractions",
    "oracle_distillation",
    "pseudo_client_targets",
    "straight_through",
    "switch_top1",
]
