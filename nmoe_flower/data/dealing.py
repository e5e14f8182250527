"""Deal samples by quotas, a matrix (clients x classes), with one rounding rule for every split.

The skew of the NMoE paper is one of them: every client has one dominant class and an even share of
the others (arXiv 2511.01743, Section V).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.plurals import how_many

__all__ = [
    "Indices",
    "Quotas",
    "check_clients",
    "check_share",
    "deal",
    "deal_dominant",
    "dominant_share_from_tau",
    "draw_alike",
    "draw_balanced",
    "largest_balanced",
    "largest_size",
    "round_quotas",
]

Indices = npt.NDArray[np.int64]
Quotas = npt.NDArray[np.float64]


def check_clients(num_clients: int, num_samples: int, split: str) -> None:
    """Refuse a number of clients below 1, or above the number of samples of ``split``."""
    if num_clients < 1:
        raise ConfigError(f"the number of clients is {num_clients}; allowed: 1 or more")
    if num_clients > num_samples:
        raise DataError(
            f"{how_many(num_clients, 'client')} cannot share {how_many(num_samples, 'sample')} of "
            f"{split}"
        )


def round_quotas(quotas: Quotas) -> npt.NDArray[np.int64]:
    """Whole counts near the quotas [clients, C]; every row keeps its (whole) sum exactly.

    Largest remainders first. Equal remainders go to the class that earlier clients left furthest
    below its quota, then to the next class after the client's own, so class totals stay level.
    """
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    remainders = np.round(quotas - counts, 9)
    left = np.rint(quotas.sum(axis=1)).astype(np.int64) - counts.sum(axis=1)
    num_classes = quotas.shape[1]
    excess = np.zeros(num_classes)
    for client in range(len(quotas)):
        offset = (np.arange(num_classes) - client - 1) % num_classes
        order = np.lexsort((offset, np.round(excess, 6), -remainders[client]))
        counts[client, order[: left[client]]] += 1
        excess += counts[client] - quotas[client]
    return counts


def largest_size(quotas: Callable[[int], Quotas], available: npt.NDArray[np.int64]) -> int:
    """Largest size per client for which no class is asked for more than it has; 0 if none."""
    total = int(available.sum())
    if not total:
        return 0
    whole = quotas(total)
    used = whole.sum(axis=0) > 0
    # Rounding moves a class total by less than two samples per client.
    spare = (available[used] + 2 * len(whole)) * total
    bound = np.floor(spare / whole.sum(axis=0)[used]).min()
    for size in range(min(int(bound), total // len(whole)), 0, -1):
        if (round_quotas(quotas(size)).sum(axis=0) <= available).all():
            return size
    return 0


def deal(labels: Indices, counts: npt.NDArray[np.int64], rng: np.random.Generator) -> list[Indices]:
    """Samples for the given counts [clients, C], every client's in random order.

    Each class is dealt from one shuffled list. Where clients ask for more than the class has, the
    list is gone through again: clients then share samples, but none holds one twice.
    """
    held: list[list[Indices]] = [[] for _ in counts]
    for cls in range(counts.shape[1]):
        members = rng.permutation(np.flatnonzero(labels == cls))
        start = 0
        for client in np.flatnonzero(counts[:, cls]):
            stop = start + int(counts[client, cls])
            held[client].append(members[np.arange(start, stop) % len(members)])
            start = stop
    empty = np.empty(0, dtype=np.int64)
    return [rng.permutation(np.concatenate([empty, *parts])).astype(np.int64) for parts in held]


def draw_alike(
    labels: Indices,
    held: npt.NDArray[np.int64],
    *,
    size: int,
    names: Sequence[str],
    rng: np.random.Generator,
) -> list[Indices]:
    """Test samples with the label shares of the train counts ``held`` [clients, C]."""
    shares = held / held.sum(axis=1, keepdims=True)
    available = np.bincount(labels, minlength=held.shape[1])
    largest = largest_size(lambda count: shares * count, available)
    chosen = size or largest or len(labels) // len(held)
    counts = round_quotas(shares * chosen)
    most = counts.max(axis=0)
    if (most > available).any():
        cls = int(np.argmax(most - available))
        raise DataError(
            f"class {names[cls]!r} of the test split has "
            f"{how_many(int(available[cls]), 'sample')}, but client "
            f"{int(counts[:, cls].argmax())} needs {most[cls]} of its {chosen} test samples from it"
        )
    return deal(labels, counts, rng)


def draw_balanced(
    labels: Indices, num_clients: int, size: int, rng: np.random.Generator
) -> list[Indices]:
    """Equal, disjoint shards with every class that occurs alike; ``size`` each if possible."""
    classes, codes = np.unique(labels, return_inverse=True)
    shares = np.full((num_clients, len(classes)), 1 / len(classes))
    possible = min(size, largest_balanced(labels, num_clients))
    return deal(codes.astype(np.int64), round_quotas(shares * possible), rng)


def largest_balanced(labels: Indices, num_clients: int) -> int:
    """Most samples that each client can have of what occurs alike, nobody the same ones."""
    counts = np.unique(labels, return_counts=True)[1]
    shares = np.full((num_clients, len(counts)), 1 / len(counts))
    return largest_size(lambda count: shares * count, counts)


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
            f"dominant share {share:.4g} is not possible with "
            f"{how_many(num_classes, 'class', 'classes')}; allowed: "
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
        names: Names of all classes, in the order of the codes.
        classes: Codes of those that are dealt, in order: client i mostly holds the (i mod n)-th.
        num_clients: How many share them.
        share: Share of a client's samples in its dominant class, from 1 / C to 1.
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
            f"class {names[classes[cls]]!r} of {split} has "
            f"{how_many(int(available[cls]), 'sample')}, but "
            f"{num_clients} clients with {how_many(chosen, 'sample')} each need "
            f"{counts[:, cls].sum()}; "
            f"allowed: at most {how_many(largest_size(quotas, available), 'sample')} per client"
        )
    codes = np.full(len(names), -1, dtype=np.int64)
    codes[classes] = np.arange(len(classes))
    return deal(codes[labels], counts, rng)
