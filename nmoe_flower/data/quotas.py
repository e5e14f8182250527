"""Deal samples by quotas: a matrix (clients x classes) and one rounding rule for every split."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import ConfigError, DataError

__all__ = [
    "Indices",
    "Quotas",
    "check_clients",
    "draw",
    "draw_alike",
    "draw_balanced",
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
        raise DataError(f"{num_clients} clients cannot share {num_samples} samples of {split}")


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
    whole = quotas(total)
    used = whole.sum(axis=0) > 0
    # Rounding moves a class total by less than two samples per client.
    spare = (available[used] + 2 * len(whole)) * total
    bound = np.floor(spare / whole.sum(axis=0)[used]).min()
    for size in range(min(int(bound), total // len(whole)), 0, -1):
        if (round_quotas(quotas(size)).sum(axis=0) <= available).all():
            return size
    return 0


def draw(labels: Indices, counts: npt.NDArray[np.int64], rng: np.random.Generator) -> list[Indices]:
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
            f"class {names[cls]!r} of the test split has {available[cls]} samples, but client "
            f"{int(counts[:, cls].argmax())} needs {most[cls]} of its {chosen} test samples from it"
        )
    return draw(labels, counts, rng)


def draw_balanced(
    labels: Indices, num_clients: int, size: int, rng: np.random.Generator
) -> list[Indices]:
    """Equal, disjoint shards with every class that occurs alike; ``size`` each if possible."""
    classes, codes = np.unique(labels, return_inverse=True)
    shares = np.full((num_clients, len(classes)), 1 / len(classes))
    possible = min(size, largest_size(lambda count: shares * count, np.bincount(codes)))
    return draw(codes.astype(np.int64), round_quotas(shares * possible), rng)
