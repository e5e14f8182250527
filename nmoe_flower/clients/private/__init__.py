"""What makes a client private: the ledgers that never forget, and DP-SGD.

Opacus is loaded when a step is taken, never by an import.
"""

from nmoe_flower.clients.private.dp_sgd import (
    Losses,
    Sampler,
    StepPlan,
    plan_of,
    private_fit,
    private_train,
    report,
)
from nmoe_flower.clients.private.ledger import Ledger, StepLedger

__all__ = [
    "Ledger",
    "Losses",
    "Sampler",
    "StepLedger",
    "StepPlan",
    "plan_of",
    "private_fit",
    "private_train",
    "report",
]
