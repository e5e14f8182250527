"""Differential privacy: of shared correlation matrices, and what DP-SGD of the weights costs.

Nothing here loads torch until a mechanism is used, so servers may import all of it.
"""

from nmoe_flower.privacy.accountant import (
    Accountant,
    Budget,
    Released,
    epsilon_spent,
    noise_multiplier_for,
    refresh_interval,
)
from nmoe_flower.privacy.audit import Audit, AuditFinding, audit_releases, membership_auc
from nmoe_flower.privacy.dp_sgd import (
    WeightsCost,
    noise_multiplier_for_steps,
    steps_epsilon,
)
from nmoe_flower.privacy.gdp import check_delta, check_epsilon, delta_of, epsilon_of, mu_of
from nmoe_flower.privacy.histogram import HistogramMechanism
from nmoe_flower.privacy.mechanism import (
    Adjacency,
    ClippedCorrelation,
    GaussianMechanism,
    check_noise,
    secure_normal,
    sensitivity,
)
from nmoe_flower.privacy.packing import MAX_DIM, packed_dim, packed_size, smat, svec
from nmoe_flower.privacy.spectrum import (
    check_release,
    mean_noise_std,
    noise_edge,
    shrink_spectrum,
    symmetrise,
)
from nmoe_flower.privacy.sums import labelled_latents, noise_in_scatter, sums_of_release

__all__ = [
    "MAX_DIM",
    "Accountant",
    "Adjacency",
    "Audit",
    "AuditFinding",
    "Budget",
    "ClippedCorrelation",
    "GaussianMechanism",
    "HistogramMechanism",
    "Released",
    "WeightsCost",
    "audit_releases",
    "check_delta",
    "check_epsilon",
    "check_noise",
    "check_release",
    "delta_of",
    "epsilon_of",
    "epsilon_spent",
    "labelled_latents",
    "mean_noise_std",
    "membership_auc",
    "mu_of",
    "noise_edge",
    "noise_in_scatter",
    "noise_multiplier_for",
    "noise_multiplier_for_steps",
    "packed_dim",
    "packed_size",
    "refresh_interval",
    "secure_normal",
    "sensitivity",
    "shrink_spectrum",
    "smat",
    "steps_epsilon",
    "sums_of_release",
    "svec",
    "symmetrise",
]
