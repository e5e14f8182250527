"""Who holds which samples: skewed, IID, Dirichlet, pathological and natural splits, as indices.

The indices are cached on disk, so a worker opens them without importing flwr-datasets (3 s).
"""

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.cache import cache_root
from nmoe_flower.data.dealing import (
    Indices,
    check_clients,
    check_share,
    deal_dominant,
    dominant_share_from_tau,
    draw_alike,
    draw_balanced,
)
from nmoe_flower.data.hugging_face import import_extra
from nmoe_flower.data.images import ImageData
from nmoe_flower.data.indices import ClientIndices, label_counts, open_indices, save_indices
from nmoe_flower.data.own import own_indices
from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.own_code import FORM, is_own
from nmoe_flower.seeds import derive_seed, numpy_stream

__all__ = ["Scheme", "largest_clients", "partition_clients"]

Scheme = Literal["dominant", "iid", "dirichlet", "pathological", "natural"]

_FORMAT = 2


def partition_clients(
    data: ImageData,
    *,
    scheme: Scheme | str,
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
    ``dirichlet`` (``alpha``), ``pathological`` (client i holds the ``classes_per_client``
    classes from class i mod C on; few clients may leave classes out) and ``natural`` (a client is
    somebody who is in the data; those with most training samples are taken). ``iid``,
    ``dirichlet`` and ``pathological`` are those of flwr-datasets.

    ``package.module:Name`` is somebody's own function or partitioner of flwr-datasets, see
    `Partition`; ``train_per_client`` and ``test_per_client`` are upper limits.

    C counts the classes with training samples. Test samples of any other class are left out.

    Sizes: 0 takes as many samples as there are. ``dominant`` and ``iid`` give all clients exactly
    the same number; for the others, whose clients differ in size, ``train_per_client`` is an upper
    limit. ``test_local`` is of equal size for all clients; for ``natural`` it is what the client
    has, at most ``test_per_client``. If a client has no test samples of its own, all are tested as
    those of ``dirichlet``. ``coverage`` tells what is left out and why.

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
    if is_own(scheme):  # code changes, and nothing tells the cache
        return _split(data, arguments)
    identity = json.dumps([_FORMAT, data.fingerprint, data.num_classes, arguments], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    path = cache_root(cache_dir) / "partitions" / f"{key}.npz"
    clients = open_indices(path, num_clients, train=len(data.train), test=len(data.test))
    if clients is None:
        clients = _split(data, arguments)
        save_indices(path, clients)
    return clients


def _check_arguments(data: ImageData, arguments: dict[str, Any]) -> None:
    if arguments["scheme"] not in get_args(Scheme) and not is_own(arguments["scheme"]):
        allowed = ", ".join((*get_args(Scheme), FORM))
        raise ConfigError(f"unknown scheme {arguments['scheme']!r}; allowed: {allowed}")
    for key in ("train_per_client", "test_per_client"):
        if arguments[key] < 0:
            raise ConfigError(
                f"{key} is {arguments[key]}; allowed: 0 (as many as possible) or more"
            )
    check_clients(arguments["num_clients"], len(data.train), "the train split")
    check_clients(arguments["num_clients"], len(data.test), "the test split")
    known = len(np.unique(data.train.labels))
    if arguments["scheme"] == "dominant":
        check_share(dominant_share_from_tau(arguments["tau"]), known)
    if not (math.isfinite(arguments["alpha"]) and arguments["alpha"] > 0):
        raise ConfigError(f"alpha is {arguments['alpha']}; allowed: a finite number above 0")
    held = arguments["classes_per_client"]
    if held < 1:
        raise ConfigError(f"classes_per_client is {held}; allowed: 1 or more")
    if arguments["scheme"] == "pathological" and held > known:
        raise DataError(f"classes_per_client is {held}; allowed: 1 to {known}")


def _split(data: ImageData, arguments: dict[str, Any]) -> list[ClientIndices]:
    """Draw the three index arrays of every client."""
    scheme, seed, clients = arguments["scheme"], arguments["seed"], arguments["num_clients"]
    labels = np.asarray(data.train.labels)
    classes = np.unique(labels)
    rows = np.flatnonzero(np.isin(data.test.labels, classes))  # nobody learns any other class
    test = np.asarray(data.test.labels)[rows]
    check_clients(clients, len(test), "the test split")
    if scheme == "natural":
        train, local = _natural_indices(data, rows, arguments)
    elif scheme in ("dirichlet", "pathological"):
        train = _flower_indices(labels, arguments, split="train")
        local = _alike(data, train, test, arguments)
    elif is_own(scheme):
        train, local = (
            own_indices(
                scheme, held, clients, numpy_stream(seed, "partition", scheme, split), split=split
            )
            for split, held in (("train", labels), ("test", test))
        )
        for split, shares in (("train", train), ("test", local)):
            if size := arguments[f"{split}_per_client"]:
                shares[:] = [share[:size] for share in shares]
    elif scheme == "iid":
        train = _flower_indices(labels, arguments, split="train")
        local = _flower_indices(test, arguments, split="test")
    else:
        train, local = (
            deal_dominant(
                held,
                data.class_names,
                classes=classes,
                num_clients=clients,
                share=dominant_share_from_tau(arguments["tau"]),
                size=arguments[f"{split}_per_client"],
                split=f"the {split} split",
                rng=numpy_stream(seed, "partition", "dominant", split),
            )
            for split, held in (("train", labels), ("test", test))
        )
    rng = numpy_stream(seed, "partition", "test-iid")
    size = round(sum(map(len, local)) / len(local))
    balanced = draw_balanced(test, clients, size, rng)
    return [
        ClientIndices(held, rows[own], rows[iid])
        for held, own, iid in zip(train, local, balanced, strict=True)
    ]


def _alike(
    data: ImageData, train: list[Indices], test: Indices, arguments: dict[str, Any]
) -> list[Indices]:
    """Test samples, places in ``test``, with the label shares of every client's train samples."""
    return draw_alike(
        test,
        label_counts(data.train.labels, train, data.num_classes),
        size=arguments["test_per_client"],
        names=data.class_names,
        rng=numpy_stream(arguments["seed"], "partition", arguments["scheme"], "test"),
    )


def _natural_indices(
    data: ImageData, test_rows: Indices, arguments: dict[str, Any]
) -> tuple[list[Indices], list[Indices]]:
    """What the largest clients of the data hold, in the train split and among ``test_rows``."""
    chosen = largest_clients(data, arguments["num_clients"])
    assert data.train.clients is not None  # or nobody would have been chosen
    rng = numpy_stream(arguments["seed"], "partition", "natural")
    limit = arguments["train_per_client"] or None
    train = [held[:limit] for held in _rows_of(data.train.clients, chosen, rng)]
    test = np.asarray(data.test.labels)[test_rows]
    if data.test.clients is None:
        return train, _alike(data, train, test, arguments)
    own = _rows_of(data.test.clients[test_rows], chosen, rng)
    if not all(map(len, own)):
        return train, _alike(data, train, test, arguments)
    return train, [held[: arguments["test_per_client"] or None] for held in own]


def _flower_indices(labels: Indices, arguments: dict[str, Any], *, split: str) -> list[Indices]:
    """Split with a partitioner of flwr-datasets, on a data set of labels and positions only."""
    clients, scheme = arguments["num_clients"], arguments["scheme"]
    import_extra("flwr_datasets", f"scheme {scheme!r}")
    from datasets import Dataset
    from flwr_datasets import partitioner as flower

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


def _rows_of(owners: Indices, clients: Indices, rng: np.random.Generator) -> list[Indices]:
    """The rows of each client, in random order."""
    return [rng.permutation(np.flatnonzero(owners == client)) for client in clients]
