"""Somebody's own way to share samples out: a function, or a partitioner of flwr-datasets."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.dealing import Indices
from nmoe_flower.data.hugging_face import import_extra
from nmoe_flower.errors import ConfigError
from nmoe_flower.own_code import call_own, load_own

__all__ = ["Partition", "own_indices"]

_KEY = "data.scheme"


class Partition(Protocol):
    """What ``data.scheme = "package.module:Name"`` may name, beside a flwr-datasets partitioner.

    Called once for the training labels and once for the test labels, so that both can be skewed
    alike; clients keep their order.
    """

    def __call__(
        self, labels: npt.NDArray[np.int64], num_clients: int, rng: np.random.Generator
    ) -> Sequence[npt.ArrayLike]:
        """Share samples out.

        Args:
            labels: Class of every sample, [N].
            num_clients: How many shares there are.
            rng: The only randomness: the same for a seed, on every machine.

        Returns:
            Places in ``labels`` per client: at least one each, no place twice.
        """


def own_indices(
    name: str, labels: Indices, num_clients: int, rng: np.random.Generator, *, split: str
) -> list[Indices]:
    """The shares that somebody's own code gives, checked.

    Args:
        name: Where the scheme is, ``package.module:Name``.
        labels: Class of every sample, [N].
        num_clients: How many shares are wanted.
        rng: The only randomness, this split's own stream.
        split: Name of the split, for errors.

    Raises:
        ConfigError: It cannot be imported or called, or its shares are not disjoint and whole.
    """
    found = load_own(_KEY, name)
    if isinstance(found, type):
        shares = call_own(_KEY, name, _of_partitioner, name, found, labels, num_clients, rng)
    else:
        shares = call_own(_KEY, name, found, labels, num_clients, rng)
    return _checked(f"{_KEY} = {name}: the {split} split", shares, len(labels), num_clients)


def _of_partitioner(
    name: str, kind: Any, labels: Indices, num_clients: int, rng: np.random.Generator
) -> list[Any]:
    import_extra("flwr_datasets", f"{_KEY} = {name}")
    from datasets import Dataset
    from flwr_datasets.partitioner import Partitioner

    if not issubclass(kind, Partitioner):
        raise ConfigError(
            f"{_KEY} = {name}: this class is no flwr_datasets.partitioner.Partitioner; "
            "allowed: one, or a function (labels, num_clients, rng)"
        )
    order = rng.permutation(len(labels))
    partitioner = kind(num_partitions=num_clients)
    partitioner.dataset = Dataset.from_dict({"label": labels[order], "position": order})
    return [partitioner.load_partition(client)["position"] for client in range(num_clients)]


def _checked(what: str, shares: Any, size: int, num_clients: int) -> list[Indices]:
    try:
        arrays = [np.asarray(share) for share in shares]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: shares must be arrays of places: {error}") from None
    if len(arrays) != num_clients:
        raise ConfigError(f"{what}: {len(arrays)} shares; allowed: {num_clients}, one per client")
    for client, share in enumerate(arrays):
        whole = share.ndim == 1 and share.dtype.kind in "iu" and len(share) > 0
        if not whole or share.min() < 0 or share.max() >= size:
            raise ConfigError(
                f"{what}: the share of client {client} is not a list of one or more places "
                f"from 0 to {size - 1}"
            )
    together = np.concatenate(arrays)
    if len(np.unique(together)) < len(together):
        raise ConfigError(f"{what}: a sample is in two shares, or twice in one")
    return [share.astype(np.int64) for share in arrays]
