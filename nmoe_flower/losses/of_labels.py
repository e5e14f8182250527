"""The loss of whatever is trained to name the class of a sample."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

__all__ = ["labelled_loss"]


def labelled_loss(
    network: Callable[[Tensor], Tensor],
    batch: tuple[Tensor, ...],
    adjustment: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of a network's logits, as `nmoe_flower.training.SharedLoss` takes it.

    Args:
        network: Inputs [b, ...] to logits [b, C].
        batch: Inputs, and labels [b].
        adjustment: Added to the logits, [C]; None: nothing.
        label_smoothing: Share of the target that is spread over all classes, 0 to 1.
        reduction: ``mean``, or ``none`` for the loss of each row, [b].

    >>> import torch
    >>> zeros = torch.zeros(2, 4), torch.tensor([0, 3])
    >>> labelled_loss(torch.nn.Identity(), zeros, reduction="none")  # log 4
    tensor([1.3863, 1.3863])
    """
    logits = network(batch[0]).float()
    if adjustment is not None:
        logits = logits + adjustment
    return F.cross_entropy(logits, batch[1], label_smoothing=label_smoothing, reduction=reduction)
