"""A natural split: every client is somebody who is in the data, a user or a device."""

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.images import ImageData
from nmoe_flower.data.quotas import Indices
from nmoe_flower.errors import DataError

__all__ = ["largest_clients", "rows_of"]


def largest_clients(data: ImageData, num_clients: int) -> npt.NDArray[np.int64]:
    """The clients of the data with most training samples, in the order of their names, int64 [n].

    Raises:
        DataError: The data does not say whose samples are whose, or there are fewer clients.
    """
    if data.train.clients is None:
        raise DataError(
            f"data set {data.name!r} does not say whose its samples are, which the scheme "
            "'natural' needs: set data.partition-column"
        )
    counts = np.bincount(data.train.clients, minlength=len(data.client_names))
    present = int((counts > 0).sum())
    if num_clients > present:
        raise DataError(
            f"{num_clients} clients are wanted, but the training samples of {data.name!r} belong "
            f"to {present}; "
            + (f"allowed: data.num-clients = 2 to {present}" if present > 1 else "2 are needed")
        )
    return np.sort(np.argsort(-counts, kind="stable")[:num_clients])


def rows_of(owners: Indices, clients: Indices, rng: np.random.Generator) -> list[Indices]:
    """The rows of each client, in random order."""
    return [rng.permutation(np.flatnonzero(owners == client)) for client in clients]
