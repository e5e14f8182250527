"""What a query must be like before anything of it leaves this device."""

import math
from typing import overload

import numpy as np
from torch import Tensor

from nmoe_flower.errors import ConfigError
from nmoe_flower.inference.plan import Bools, Floats
from nmoe_flower.inference.wire import Encoding

__all__ = ["check_query", "check_seconds", "floats", "unfit"]


def check_query(latents: Tensor, expert_ids: Tensor, scores: Tensor | None, *, width: int) -> None:
    """Refuse shapes and ids that do not fit together.

    Args:
        latents: [B, D].
        expert_ids: [B, K].
        scores: [B, E], of the gate; None: not known.
        width: D.

    Raises:
        ConfigError: A shape is wrong, or an id is not in 0..E-1.
    """
    batch = len(latents)
    if latents.shape != (batch, width) or expert_ids.ndim != 2 or len(expert_ids) != batch:
        raise ConfigError(
            f"latents must be [B, {width}] and expert_ids [B, K], got shapes "
            f"{tuple(latents.shape)} and {tuple(expert_ids.shape)}"
        )
    if scores is not None and (scores.ndim != 2 or len(scores) != batch):
        raise ConfigError(f"ranking must give [{batch}, E], got shape {tuple(scores.shape)}")
    if expert_ids.numel():
        low, high = (int(end) for end in expert_ids.aminmax())
        end = math.inf if scores is None else scores.shape[1]
        if low < 0 or high >= end:
            raise ConfigError(f"expert ids must be in 0..{end - 1}, got {low} to {high}")


def check_seconds(**seconds: float | None) -> None:
    """Refuse times that are not positive and finite; None is fine.

    Raises:
        ConfigError: Names the first one.
    """
    for name, value in seconds.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; allowed: a positive number of seconds")


def unfit(latents: Floats, encoding: Encoding) -> Bools:
    """Rows [B] of latents [B, D] that no message can hold: NaN, infinite, too large for float16.

    >>> unfit(np.array([[1.0], [np.nan], [1e6]], np.float32), "float16").tolist()
    [False, True, True]
    """
    with np.errstate(over="ignore"):
        sent = latents.astype(np.float16) if encoding == "float16" else latents
    return np.asarray(~np.isfinite(sent).all(axis=1))


@overload
def floats(tensor: Tensor) -> Floats: ...
@overload
def floats(tensor: Tensor | None) -> Floats | None: ...
def floats(tensor: Tensor | None) -> Floats | None:
    """A tensor as a float32 array, wherever it lies."""
    return None if tensor is None else np.asarray(tensor.float().numpy(force=True))
