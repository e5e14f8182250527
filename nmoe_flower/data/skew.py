"""The skew of the NMoE paper: every client has one dominant class and an even share of the others.

Source: arXiv 2511.01743, Section V.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from nmoe_flower.data.quotas import (
    Indices,
    Quotas,
    check_clients,
    draw,
    largest_size,
    round_quotas,
)
from nmoe_flower.errors import ConfigError, DataError

__all__ = ["check_share", "deal_dominant", "dominant_share_from_tau"]


def dominant_share_from_tau(tau: float) -> float:
    """Share of a client's samples in its dominant class: 1 / (1 + tau).

    ``tau`` is the ratio of all minority samples to the majority samples (arXiv 2511.01743,
    Section V; the paper's own tables fix this reading).

    Raises:
        ConfigError: ``tau`` is not a positive finite number.

    >>> round(dominant_share_from_tau(0.3), 4)
    0.7692
    """
    if not (math.isfinite(tau) and tau > 0):
        raise ConfigError(f"tau is {tau}; allowed: a finite number above 0 (0.2, 0.3, 0.5, ...)")
    return 1.0 / (1.0 + tau)


def check_share(share: float, num_classes: int) -> None:
    """Refuse a dominant share that is below even or above all, and fewer than 2 classes."""
    if num_classes < 2:
        raise DataError(f"the labels hold {num_classes} class(es); at least 2 are needed")
    if not 1 / num_classes - 1e-12 <= share <= 1:
        raise DataError(
            f"dominant share {share:.4g} is not possible with {num_classes} classes; allowed: "
            f"{1 / num_classes:.4g} to 1 (tau is {1 / share - 1:.4g}; allowed: above 0 and at most "
            f"{num_classes - 1})"
        )


def _dominant_quotas(num_clients: int, num_classes: int, share: float) -> Callable[[int], Quotas]:
    """Quotas by size: ``share``, rounded, for class i mod C of client i; the rest is even."""
    check_share(share, num_classes)

    def quotas(size: int) -> Quotas:
        dominant = round(size * share)
        found = np.full((num_clients, num_classes), (size - dominant) / (num_classes - 1))
        found[np.arange(num_clients), np.arange(num_clients) % num_classes] = dominant
        return found

    return quotas


def deal_dominant(
    labels: Indices,
    names: Sequence[str],
    *,
    classes: Indices,
    num_clients: int,
    share: float,
    size: int,
    split: str,
    rng: np.random.Generator,
) -> list[Indices]:
    """Disjoint samples for every client; size 0 takes the largest size that all can have.

    Args:
        labels: Class codes [N].
        names: Of all classes.
        classes: Codes of those that are dealt, in order: client i mostly holds the (i mod n)-th.
        num_clients: How many share them.
        share: Of the dominant class.
        size: Samples per client.
        split: Names the labels in errors.
        rng: Draws the samples.
    """
    quotas = _dominant_quotas(num_clients, len(classes), share)
    check_clients(num_clients, len(labels), split)
    available = np.bincount(labels, minlength=len(names))[classes]
    if not available.all():
        cls = int(classes[np.argmin(available)])
        raise DataError(
            f"class {names[cls]!r} has samples to train on and none in {split}: clients could not "
            "be tested on what they hold; add some, or set data.test-split = '' to take the test "
            "from the train split"
        )
    chosen = size or largest_size(quotas, available) or 1
    counts = round_quotas(quotas(chosen))
    lacking = counts.sum(axis=0) - available
    if lacking.max() > 0:
        cls = int(lacking.argmax())
        raise DataError(
            f"class {names[classes[cls]]!r} of {split} has {available[cls]} samples, but "
            f"{num_clients} clients with {chosen} samples each need {counts[:, cls].sum()}; "
            f"allowed: at most {largest_size(quotas, available)} samples per client"
        )
    codes = np.full(len(names), -1, dtype=np.int64)
    codes[classes] = np.arange(len(classes))
    return draw(codes[labels], counts, rng)
