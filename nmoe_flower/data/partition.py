"""Who holds which samples: skewed, IID, Dirichlet and pathological splits as index arrays.

Every split is a matrix of quotas (clients x classes) and one rounding rule. The indices
are cached on disk, so a worker opens them without importing flwr-datasets (3 s).
"""

import functools
import hashlib
import json
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.cache import cache_root
from nmoe_flower.data.images import ImageData
from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.seeds import derive_seed, numpy_stream

Scheme = Literal["dominant", "iid", "dirichlet", "pathological"]
Indices = npt.NDArray[np.int64]
Quotas = npt.NDArray[np.float64]

_FORMAT = 1
_PARTS = ("train", "test_local", "test_iid")


@dataclass(frozen=True, eq=False)
class ClientIndices:
    """One client's samples, as positions in the train and the test split (int64, shuffled).

    ``test_local`` is skewed like ``train``; ``test_iid`` holds every class alike. Both come from
    the test split, so a sample may be in both; no two clients share a sample of ``test_iid``.
    """

    train: Indices
    test_local: Indices
    test_iid: Indices


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


def _round_quotas(quotas: Quotas) -> npt.NDArray[np.int64]:
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


def _largest_size(quotas: Callable[[int], Quotas], available: npt.NDArray[np.int64]) -> int:
    """Largest size per client for which no class is asked for more than it has; 0 if none."""
    total = int(available.sum())
    whole = quotas(total)
    used = whole.sum(axis=0) > 0
    # Rounding moves a class total by less than two samples per client.
    spare = (available[used] + 2 * len(whole)) * total
    bound = np.floor(spare / whole.sum(axis=0)[used]).min()
    for size in range(min(int(bound), total // len(whole)), 0, -1):
        if (_round_quotas(quotas(size)).sum(axis=0) <= available).all():
            return size
    return 0


def _draw(
    labels: Indices, counts: npt.NDArray[np.int64], rng: np.random.Generator
) -> list[Indices]:
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


def _check_share(share: float, num_classes: int) -> None:
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
    _check_share(share, num_classes)

    def quotas(size: int) -> Quotas:
        dominant = round(size * share)
        found = np.full((num_clients, num_classes), (size - dominant) / (num_classes - 1))
        found[np.arange(num_clients), np.arange(num_clients) % num_classes] = dominant
        return found

    return quotas


def _check_clients(num_clients: int, num_samples: int, split: str) -> None:
    if num_clients < 1:
        raise ConfigError(f"the number of clients is {num_clients}; allowed: 1 or more")
    if num_clients > num_samples:
        raise DataError(f"{num_clients} clients cannot share {num_samples} samples of {split}")


def _deal_dominant(
    labels: Indices,
    names: Sequence[str],
    *,
    num_clients: int,
    share: float,
    size: int,
    split: str,
    rng: np.random.Generator,
) -> list[Indices]:
    """Disjoint samples for every client; size 0 takes the largest size that all can have."""
    quotas = _dominant_quotas(num_clients, len(names), share)
    _check_clients(num_clients, len(labels), split)
    available = np.bincount(labels, minlength=len(names))
    chosen = size or _largest_size(quotas, available) or 1
    counts = _round_quotas(quotas(chosen))
    lacking = counts.sum(axis=0) - available
    if lacking.max() > 0:
        cls = int(lacking.argmax())
        raise DataError(
            f"class {names[cls]!r} of {split} has {available[cls]} samples, but {num_clients} "
            f"clients with {chosen} samples each need {counts[:, cls].sum()}; "
            f"allowed: at most {_largest_size(quotas, available)} samples per client"
        )
    return _draw(labels, counts, rng)


@functools.cache
def _dominant_class_partitioner() -> type[Any]:
    """Define the public class on first use: its base costs 3 s to import."""
    from flwr_datasets.partitioner import Partitioner

    class DominantClassPartitioner(Partitioner):  # type: ignore[misc, unused-ignore]
        """Give every partition one dominant class and an even share of the others.

        The dominant class of partition i is class i mod C. Partitions are disjoint, have exactly
        ``partition_size`` samples and keep the class totals level (arXiv 2511.01743, Section V).

        Args:
            num_partitions: Number of partitions.
            dominant_share: Share of the dominant class, from 1 / C to 1; see
                ``dominant_share_from_tau``.
            partition_by: Label column: whole numbers, text or ``ClassLabel``. Classes are its
                sorted values, or the names of a ``ClassLabel``.
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
            _check_clients(num_partitions, num_partitions, "the data")
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
                raise DataError(
                    f"partition {partition_id}; allowed: 0 to {self._num_partitions - 1}"
                )
            if self._indices is None:
                codes, names = _encode_column(self.dataset, self._partition_by)
                self._indices = _deal_dominant(
                    codes,
                    names,
                    num_clients=self._num_partitions,
                    share=self._share,
                    size=self._size or 0,
                    split="the data",
                    rng=numpy_stream(self._seed, "partition", "dominant"),
                )
            return self.dataset.select(self._indices[partition_id])

    DominantClassPartitioner.__qualname__ = "DominantClassPartitioner"
    return DominantClassPartitioner


def __getattr__(name: str) -> Any:
    if name == "DominantClassPartitioner":
        return _dominant_class_partitioner()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
        return codes, list(names)
    classes, found = np.unique(np.asarray(values), return_inverse=True)
    return found.astype(np.int64), [str(value) for value in classes]


def partition_clients(
    data: ImageData,
    *,
    scheme: Scheme,
    num_clients: int,
    tau: float = 0.3,
    alpha: float = 0.5,
    classes_per_client: int = 2,
    train_per_client: int = 0,
    test_per_client: int = 0,
    seed: int = 0,
    cache_dir: Path | str | None = None,
) -> list[ClientIndices]:
    """Share a data set's train and test split among clients, both skewed alike.

    Schemes: ``dominant`` (see ``DominantClassPartitioner``; share from ``tau``), ``iid``,
    ``dirichlet`` (``alpha``) and ``pathological`` (client i holds the ``classes_per_client``
    classes from class i mod C on; few clients may leave classes out). The last three are those of
    flwr-datasets.

    Sizes: 0 takes as many samples as there are. ``dominant`` and ``iid`` give all clients exactly
    the same number; for ``dirichlet`` and ``pathological``, whose clients differ in size,
    ``train_per_client`` is an upper limit. ``test_local`` is of equal size for all clients.

    Test split of ``dirichlet`` and ``pathological``: every client's label shares are those of its
    train samples (largest remainders). With ``test_per_client`` 0 the size is the largest for which
    clients are disjoint. A larger size than that, or data so skewed that it is 0, makes clients
    share test samples of the scarce classes; no client holds a sample twice.

    ``test_iid`` has the size of ``test_local`` where the smallest class allows it. Indices are
    cached on disk, by the data's fingerprint and all arguments.

    Raises:
        ConfigError: An argument is out of range whatever the data.
        DataError: The data cannot be split as asked, or the cache cannot be written.
    """
    arguments: dict[str, Any] = {
        "scheme": scheme,
        "num_clients": num_clients,
        "tau": float(tau),
        "alpha": float(alpha),
        "classes_per_client": classes_per_client,
        "train_per_client": train_per_client,
        "test_per_client": test_per_client,
        "seed": seed,
    }
    _check_arguments(data, arguments)
    identity = json.dumps([_FORMAT, data.fingerprint, data.num_classes, arguments], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    path = cache_root(cache_dir) / "partitions" / f"{key}.npz"
    clients = _open_indices(path, num_clients)
    if clients is None:
        clients = _split(data, arguments)
        _save_indices(path, clients)
    return clients


def _check_arguments(data: ImageData, arguments: dict[str, Any]) -> None:
    if arguments["scheme"] not in get_args(Scheme):
        allowed = ", ".join(get_args(Scheme))
        raise ConfigError(f"unknown scheme {arguments['scheme']!r}; allowed: {allowed}")
    for key in ("train_per_client", "test_per_client"):
        if arguments[key] < 0:
            raise ConfigError(
                f"{key} is {arguments[key]}; allowed: 0 (as many as possible) or more"
            )
    _check_clients(arguments["num_clients"], len(data.train), "the train split")
    _check_clients(arguments["num_clients"], len(data.test), "the test split")
    if arguments["scheme"] == "dominant":
        _check_share(dominant_share_from_tau(arguments["tau"]), data.num_classes)
    if not (math.isfinite(arguments["alpha"]) and arguments["alpha"] > 0):
        raise ConfigError(f"alpha is {arguments['alpha']}; allowed: a finite number above 0")
    held = arguments["classes_per_client"]
    if held < 1:
        raise ConfigError(f"classes_per_client is {held}; allowed: 1 or more")
    if arguments["scheme"] == "pathological" and held > data.num_classes:
        raise DataError(f"classes_per_client is {held}; allowed: 1 to {data.num_classes}")


def _split(data: ImageData, arguments: dict[str, Any]) -> list[ClientIndices]:
    """Draw the three index arrays of every client."""
    scheme, seed, clients = arguments["scheme"], arguments["seed"], arguments["num_clients"]
    test = np.asarray(data.test.labels)
    if scheme in ("dirichlet", "pathological"):
        train = _flower_indices(np.asarray(data.train.labels), arguments, split="train")
        local = _draw_alike(
            test,
            label_counts(data.train.labels, train, data.num_classes),
            size=arguments["test_per_client"],
            names=data.class_names,
            rng=numpy_stream(seed, "partition", scheme, "test"),
        )
    elif scheme == "iid":
        train = _flower_indices(np.asarray(data.train.labels), arguments, split="train")
        local = _flower_indices(test, arguments, split="test")
    else:
        train, local = (
            _deal_dominant(
                np.asarray(labels),
                data.class_names,
                num_clients=clients,
                share=dominant_share_from_tau(arguments["tau"]),
                size=arguments[f"{split}_per_client"],
                split=f"the {split} split",
                rng=numpy_stream(seed, "partition", "dominant", split),
            )
            for split, labels in (("train", data.train.labels), ("test", data.test.labels))
        )
    rng = numpy_stream(seed, "partition", "test-iid")
    balanced = _draw_balanced(test, clients, len(local[0]), rng)
    return [ClientIndices(*parts) for parts in zip(train, local, balanced, strict=True)]


def _flower_indices(labels: Indices, arguments: dict[str, Any], *, split: str) -> list[Indices]:
    """Split with a partitioner of flwr-datasets, on a data set of labels and positions only."""
    from datasets import Dataset
    from flwr_datasets import partitioner as flower

    clients, scheme = arguments["num_clients"], arguments["scheme"]
    size = arguments[f"{split}_per_client"]
    seed = derive_seed(arguments["seed"], "partition", scheme, split)
    order = numpy_stream(arguments["seed"], "partition", scheme, split).permutation(len(labels))
    if scheme == "iid":
        partitioner = flower.IidPartitioner(clients)
        largest = len(labels) // clients
        if size > largest:
            raise DataError(
                f"{clients} clients cannot have {size} of the {len(labels)} samples of the "
                f"{split} split each; allowed: at most {largest} samples per client"
            )
        size = size or largest
    elif scheme == "dirichlet":
        partitioner = flower.DirichletPartitioner(
            clients,
            partition_by="label",
            alpha=arguments["alpha"],
            min_partition_size=max(1, min(10, len(labels) // (2 * clients))),
            seed=seed,
        )
    else:
        partitioner = flower.PathologicalPartitioner(
            clients,
            partition_by="label",
            num_classes_per_partition=arguments["classes_per_client"],
            class_assignment_mode="deterministic",
            seed=seed,
        )
    partitioner.dataset = Dataset.from_dict({"label": labels[order], "position": order})
    with warnings.catch_warnings():
        # Each retry warns; when all fail, the error below says so once.
        warnings.filterwarnings("ignore", message="The specified min_partition_size")
        # Fewer clients than classes leave some out: documented, and the hint is for another name.
        warnings.filterwarnings("ignore", message=r"Classes: \[.*will NOT be used")
        try:
            parts = [partitioner.load_partition(client) for client in range(clients)]
        except ValueError as error:
            raise DataError(
                f"scheme {scheme!r} cannot share {len(labels)} samples among {clients} clients "
                f"(alpha {arguments['alpha']}, classes_per_client "
                f"{arguments['classes_per_client']}): {error}"
            ) from error
    return [np.array(part["position"], dtype=np.int64)[: size or None] for part in parts]


def _draw_alike(
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
    largest = _largest_size(lambda count: shares * count, available)
    chosen = size or largest or len(labels) // len(held)
    counts = _round_quotas(shares * chosen)
    most = counts.max(axis=0)
    if (most > available).any():
        cls = int(np.argmax(most - available))
        raise DataError(
            f"class {names[cls]!r} of the test split has {available[cls]} samples, but client "
            f"{int(counts[:, cls].argmax())} needs {most[cls]} of its {chosen} test samples from it"
        )
    return _draw(labels, counts, rng)


def _draw_balanced(
    labels: Indices, num_clients: int, size: int, rng: np.random.Generator
) -> list[Indices]:
    """Equal, disjoint shards with every class that occurs alike; ``size`` each if possible."""
    classes, codes = np.unique(labels, return_inverse=True)
    shares = np.full((num_clients, len(classes)), 1 / len(classes))
    possible = min(size, _largest_size(lambda count: shares * count, np.bincount(codes)))
    return _draw(codes.astype(np.int64), _round_quotas(shares * possible), rng)


def _open_indices(path: Path, num_clients: int) -> list[ClientIndices] | None:
    """Read a cached split; None if it is absent or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            columns = []
            for part in _PARTS:
                sizes, values = stored[f"{part}_sizes"], stored[part]
                if len(sizes) != num_clients or sizes.sum() != len(values):
                    return None
                columns.append(np.split(values, np.cumsum(sizes)[:-1]))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return [ClientIndices(*parts) for parts in zip(*columns, strict=True)]


def _save_indices(path: Path, clients: list[ClientIndices]) -> None:
    """Write a split atomically; of several processes the last one wins, with the same bytes."""
    arrays = {}
    for part in _PARTS:
        held = [getattr(client, part) for client in clients]
        arrays[part] = np.concatenate(held)
        arrays[f"{part}_sizes"] = np.array([len(indices) for indices in held])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as folder:
            building = Path(folder) / path.name
            with building.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type, unused-ignore]
                file.flush()
                os.fsync(file.fileno())
            building.replace(path)
    except OSError as error:
        raise DataError(f"cannot write the data cache {path.parent}: {error}") from error
