"""All of an optimizer's arrays updated in one pass, where torch does that safely on the CPU.

For small networks torch's loop over arrays takes about twice as long as its fused kernel, which
does the same arithmetic (to the last bits). The kernel walks through the memory of weight,
gradient and moments side by side and never looks at strides: arrays that lie differently would be
mixed up without a word. Hence the checks.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["fused"]

_KINDS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
_CHOICES = ("fused", "foreach")  # None in a group whose owner left the choice to torch


@contextmanager
def fused(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within: steps are fused, if that is safe for the gradients that are there now.

    Args:
        optimizer: Left as it was at the end. One of another kind, one that was told how to step,
            and one whose arrays are not float32 or float64 on the CPU, step as ever.
    """
    groups = optimizer.param_groups
    safe = type(optimizer) in _KINDS and all(
        all(group[choice] is None for choice in _CHOICES)
        and not group["differentiable"]
        and all(_lie_alike(weight, optimizer.state.get(weight, {})) for weight in group["params"])
        for group in groups
    )
    if not safe:
        yield
        return
    try:
        for group in groups:
            group["fused"] = True
        yield
    finally:
        for group in groups:
            group["fused"] = None


def _lie_alike(weight: Tensor, state: dict[str, object]) -> bool:
    """Whether a weight is a block of CPU memory, and its gradient and moments lie as it does.

    Without a gradient yet: autograd lays it out as the weight, if the weight is a block.
    """
    block = weight.is_contiguous() or (
        weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    )
    return (
        block
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and all(
            other.layout is torch.strided
            and other.stride() == weight.stride()
            and other.dtype == weight.dtype
            for other in (weight.grad, *state.values())
            if isinstance(other, Tensor) and other.ndim > 0  # not the count of steps
        )
    )
