"""The skewed split as a partitioner for flwr-datasets, whose import takes 3 s."""

from typing import Any

import numpy as np
from flwr_datasets.partitioner import Partitioner

from nmoe_flower.data.dealing import Indices, check_clients, deal_dominant
from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.seeds import numpy_stream

__all__ = ["DominantClassPartitioner"]


class DominantClassPartitioner(Partitioner):  # type: ignore[misc, unused-ignore]
    """Give every partition one dominant class and an even share of the others.

    The dominant class of partition i is class i mod C. Partitions are disjoint, have exactly
    ``partition_size`` samples and keep the class totals level (arXiv 2511.01743, Section V).

    Args:
        num_partitions: Number of partitions.
        dominant_share: Share of the dominant class, from 1 / C to 1; see
            ``dominant_share_from_tau``.
        partition_by: Label column: whole numbers, text or ``ClassLabel``. Classes are the sorted
            values that occur in it; of a ``ClassLabel``, in the order of its names.
        partition_size: Samples per partition; None takes the largest that all can have.
        seed: Seed of the draw.

    Raises:
        ConfigError: An argument is out of range whatever the data.
        DataError: On the first load, when the data cannot be split as asked.
    """

    def __init__(
        self,
        num_partitions: int,
        dominant_share: float,
        partition_by: str = "label",
        partition_size: int | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        check_clients(num_partitions, num_partitions, "the data")
        if not 0 < dominant_share <= 1:
            raise ConfigError(f"dominant share is {dominant_share}; allowed: 1/C to 1")
        if partition_size is not None and partition_size < 1:
            raise ConfigError(f"partition size is {partition_size}; allowed: 1 or more, None")
        self._num_partitions = num_partitions
        self._share = dominant_share
        self._partition_by = partition_by
        self._size = partition_size
        self._seed = seed
        self._indices: list[Indices] | None = None

    @property
    def num_partitions(self) -> int:
        """Number of partitions."""
        return self._num_partitions

    def load_partition(self, partition_id: int) -> Any:
        """Return one partition, a ``datasets.Dataset``."""
        if not 0 <= partition_id < self._num_partitions:
            raise DataError(f"partition {partition_id}; allowed: 0 to {self._num_partitions - 1}")
        if self._indices is None:
            codes, names = _encode_column(self.dataset, self._partition_by)
            self._indices = deal_dominant(
                codes,
                names,
                classes=np.unique(codes),
                num_clients=self._num_partitions,
                share=self._share,
                size=self._size or 0,
                split="the data",
                rng=numpy_stream(self._seed, "partition", "dominant"),
            )
        return self.dataset.select(self._indices[partition_id])


def _encode_column(dataset: Any, column: str) -> tuple[Indices, list[str]]:
    """Class codes [N] of a column of a ``datasets.Dataset``, and the class names."""
    if column not in dataset.column_names:
        raise DataError(f"no column {column!r}; the columns are {', '.join(dataset.column_names)}")
    values = list(dataset.with_format(None)[column])
    if None in values:
        raise DataError(f"row {values.index(None)} of column {column!r} has no label")
    names = getattr(dataset.features[column], "names", None)
    if names is not None:
        codes = np.asarray(values, dtype=np.int64)
        if codes.size and codes.min() < 0:
            raise DataError(f"row {int(codes.argmin())} of column {column!r} has no label")
        if codes.size and codes.max() >= len(names):
            raise DataError(
                f"row {int(codes.argmax())} of column {column!r} has the label {codes.max()}, but "
                f"there are {len(names)} class names: {', '.join(names)}"
            )
        return codes, list(names)
    classes, found = np.unique(np.asarray(values), return_inverse=True)
    return found.astype(np.int64), [str(value) for value in classes]
