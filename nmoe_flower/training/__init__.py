"""How everything is trained: one local loop, and many clients of one shape at once."""

from nmoe_flower.training.fitting import (
    batch_indices,
    fit,
    fit_along_cosine,
    generator,
    log_prior,
    seeded,
    sgd,
)
from nmoe_flower.training.precision import autocast, use_bf16
from nmoe_flower.training.task import DrawnBatches, FitResult, RowBatches, SharedLoss

__all__ = [
    "DrawnBatches",
    "FitResult",
    "RowBatches",
    "SharedLoss",
    "autocast",
    "batch_indices",
    "fit",
    "fit_along_cosine",
    "generator",
    "log_prior",
    "seeded",
    "sgd",
    "use_bf16",
]
