"""The samples of every client, as index arrays that are kept in the data cache."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.cache import unwritable
from nmoe_flower.data.dealing import Indices
from nmoe_flower.errors import NMoEError
from nmoe_flower.files import write_bytes

__all__ = ["ClientIndices", "label_counts", "open_indices", "save_indices"]

_PARTS = ("train", "test_local", "test_iid")


@dataclass(frozen=True, eq=False)
class ClientIndices:
    """One client's samples, as positions in the train and the test split (int64, shuffled).

    ``test_local`` is skewed like ``train``; ``test_iid`` holds every class alike. Both come from
    the test split, so a sample may be in both; no two clients share a sample of ``test_iid``.
    ``validation`` comes from the train split, skewed like ``train``; nobody trains on it.
    """

    train: Indices
    test_local: Indices
    test_iid: Indices
    validation: Indices = field(default_factory=lambda: np.empty(0, np.int64))


def label_counts(
    labels: npt.ArrayLike, indices_per_client: Sequence[npt.ArrayLike], num_classes: int
) -> npt.NDArray[np.int64]:
    """Samples of every class at every client, int64 [clients, C].

    >>> label_counts([0, 1, 1, 2], [[0, 1], [2, 3]], 3).tolist()
    [[1, 1, 0], [0, 1, 1]]
    """
    values = np.asarray(labels, dtype=np.int64)
    rows = [
        np.bincount(values[np.asarray(indices, dtype=np.int64)], minlength=num_classes)
        for indices in indices_per_client
    ]
    return np.array(rows, dtype=np.int64).reshape(len(rows), num_classes)


def open_indices(
    path: Path, num_clients: int, *, train: int, test: int
) -> list[ClientIndices] | None:
    """Read a cached split; None if it is absent or damaged.

    Args:
        path: File to read.
        num_clients: Clients it must be for.
        train: Samples of the train split.
        test: Samples of the test split.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            columns = []
            for part in _PARTS:
                sizes, values = stored[f"{part}_sizes"], stored[part]
                if len(sizes) != num_clients or sizes.sum() != len(values):
                    return None
                held = train if part == "train" else test
                if values.size and not (values.min() >= 0 and values.max() < held):
                    return None
                columns.append(np.split(values, np.cumsum(sizes)[:-1]))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return [ClientIndices(*parts) for parts in zip(*columns, strict=True)]


def save_indices(path: Path, clients: list[ClientIndices]) -> None:
    """Write a split atomically; of several processes the last one wins, with the same bytes."""
    arrays = {}
    for part in _PARTS:
        held = [getattr(client, part) for client in clients]
        arrays[part] = np.concatenate(held)
        arrays[f"{part}_sizes"] = np.array([len(indices) for indices in held])
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type, unused-ignore]
    try:
        write_bytes(path, content.getvalue())
    except NMoEError as error:
        raise unwritable(path.parent, str(error)) from error
