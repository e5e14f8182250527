"""What a query must be like before anything of it leaves this device."""

import math

import numpy as np
from torch import Tensor

from nmoe_flower.errors import ConfigError
from nmoe_flower.inference.ask.plan import Bools, Floats
from nmoe_flower.inference.protocol.wire import Encoding

__all__ = [
    "check_not_negative",
    "check_query",
    "check_scores",
    "check_seconds",
    "floats",
    "unfit",
]


def check_query(latents: Tensor, expert_ids: Tensor, *, width: int) -> None:
    """Refuse shapes and ids that cannot be.

    Args:
        latents: [B, D].
        expert_ids: [B, K].
        width: D.

    Raises:
        ConfigError: A shape is wrong, or an id is negative.
    """
    batch = len(latents)
    if latents.shape != (batch, width) or expert_ids.ndim != 2 or len(expert_ids) != batch:
        raise ConfigError(
            f"latents must be [B, {width}] and expert_ids [B, K], got shapes "
            f"{tuple(latents.shape)} and {tuple(expert_ids.shape)}"
        )
    if expert_ids.numel() and int(expert_ids.min()) < 0:
        raise ConfigError(f"expert ids must be 0 or more, got {int(expert_ids.min())}")


def check_scores(scores: Floats, expert_ids: Tensor) -> None:
    """Refuse a ranking that does not fit the query.

    Args:
        scores: [B, E].
        expert_ids: [B, K], of `check_query`.

    Raises:
        ConfigError: The shape is wrong, or an id is not below E.
    """
    if scores.ndim != 2 or len(scores) != len(expert_ids):
        raise ConfigError(f"ranking must give [{len(expert_ids)}, E], got shape {scores.shape}")
    if expert_ids.numel() and int(expert_ids.max()) >= scores.shape[1]:
        raise ConfigError(
            f"expert ids must be in 0..{scores.shape[1] - 1}, got {int(expert_ids.max())}"
        )


def check_seconds(**seconds: float | None) -> None:
    """Refuse times that are not positive and finite; None is fine.

    Raises:
        ConfigError: Names the first one.
    """
    for name, value in seconds.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; allowed: a positive number of seconds")


def check_not_negative(**numbers: float) -> None:
    """Refuse numbers below 0, and those that are none or infinite.

    Raises:
        ConfigError: Names the first one.
    """
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value}; allowed: 0 or more")


def unfit(latents: Floats, encoding: Encoding) -> Bools:
    """Rows [B] of latents [B, D] that no message can hold: NaN, infinite, too large for float16.

    >>> unfit(np.array([[1.0], [np.nan], [1e6]], np.float32), "float16").tolist()
    [False, True, True]
    """
    with np.errstate(over="ignore"):
        sent = latents.astype(np.float16) if encoding == "float16" else latents
    return np.asarray(~np.isfinite(sent).all(axis=1))


def floats(tensor: Tensor) -> Floats:
    """A tensor as a float32 array, wherever it lies."""
    return np.asarray(tensor.float().numpy(force=True))
