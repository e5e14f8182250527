"""Losses: of labels, spectral contrast, load balance, objectives of a gate on frozen experts."""

from nmoe_flower.losses.balance import load_balance, load_balance_global, load_fractions
from nmoe_flower.losses.gating import (
    Objective,
    check_objective,
    dense_mixture,
    objective_of,
    oracle_distillation,
    pseudo_client_targets,
    shortlisted_targets,
    straight_through,
    switch_top1,
)
from nmoe_flower.losses.of_labels import labelled_loss
from nmoe_flower.losses.spectral import (
    RunningCorrelation,
    correlation,
    local_spectral,
    others_mean,
    sample_spectral,
    spectral_contrastive,
    unit_ball,
)

__all__ = [
    "Objective",
    "RunningCorrelation",
    "check_objective",
    "correlation",
    "dense_mixture",
    "labelled_loss",
    "load_balance",
    "load_balance_global",
    "load_fractions",
    "local_spectral",
    "objective_of",
    "oracle_distillation",
    "others_mean",
    "pseudo_client_targets",
    "sample_spectral",
    "shortlisted_targets",
    "spectral_contrastive",
    "straight_through",
    "switch_top1",
    "unit_ball",
]
