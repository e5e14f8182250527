"""What makes a client private: the release of matrices, DP-SGD, and ledgers that never forget.

Opacus is loaded when a step is taken, never by an import.
"""

from nmoe_flower.clients.private.dp_sgd import (
    Draw,
    Losses,
    Sampler,
    StepPlan,
    plan_of,
    private_fit,
    private_train,
    report,
)
from nmoe_flower.clients.private.ledger import OF_SUMS, Ledger, StepLedger
from nmoe_flower.clients.private.release import MatrixRelease
from nmoe_flower.clients.private.token_histogram import told_frequencies

__all__ = [
    "OF_SUMS",
    "Draw",
    "Ledger",
    "Losses",
    "MatrixRelease",
    "Sampler",
    "StepLedger",
    "StepPlan",
    "plan_of",
    "private_fit",
    "private_train",
    "report",
    "told_frequencies",
]
