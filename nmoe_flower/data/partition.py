"""Who holds which samples: skewed, IID, Dirichlet, pathological and natural splits, as indices.

The indices are cached on disk, so a worker opens them without importing flwr-datasets (3 s).
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from nmoe_flower.catalogue import SCHEMES
from nmoe_flower.data.cache import cache_root
from nmoe_flower.data.dealing import Indices, check_clients, draw_balanced, largest_balanced
from nmoe_flower.data.images import ImageData
from nmoe_flower.data.indices import ClientIndices, open_indices, save_indices
from nmoe_flower.data.schemes import Deal, sharing
from nmoe_flower.data.validation import from_spare, from_training
from nmoe_flower.errors import ConfigError
from nmoe_flower.own_code import FORM, is_own
from nmoe_flower.seeds import numpy_stream

__all__ = ["partition_clients"]

_FORMAT = 3


def partition_clients(
    data: ImageData,
    *,
    scheme: str,
    num_clients: int,
    tau: float = 0.3,
    alpha: float = 0.5,
    classes_per_client: int = 2,
    train_per_client: int = 0,
    test_per_client: int = 0,
    validation_per_client: int = 0,
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

    ``test_iid`` has the size of ``test_local`` where the smallest class allows it. For ``natural``
    it holds those whom the samples belong to alike as well, each with every class alike, unless
    that would leave less than half of its samples.

    ``validation_per_client`` training samples per client, with the class shares of its training
    samples, are in nobody's training part. With a ``train_per_client`` they come from what that
    leaves over, and all other parts are what they are without them; with 0 every client gives up
    that many of its own. Under ``natural`` they are the client's own either way.

    Indices are cached on disk, by the data's fingerprint and all arguments.

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
    if validation_per_client < 0:
        raise ConfigError(f"validation_per_client is {validation_per_client}; allowed: 0 or more")
    clients = _shared_out(data, arguments, cache_dir)
    if not validation_per_client:
        return clients
    if train_per_client:
        owned = sharing(scheme).owned
        return from_spare(data, clients, size=validation_per_client, owned=owned, seed=seed)
    return from_training(
        np.asarray(data.train.labels),
        clients,
        size=validation_per_client,
        num_classes=data.num_classes,
        seed=seed,
    )


def _shared_out(
    data: ImageData, arguments: dict[str, Any], cache_dir: Path | str | None
) -> list[ClientIndices]:
    """Everybody's training and test samples, from the cache if it has them."""
    num_clients = arguments["num_clients"]
    if is_own(arguments["scheme"]):  # code changes, and nothing tells the cache
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
    if arguments["scheme"] not in SCHEMES and not is_own(arguments["scheme"]):
        allowed = ", ".join((*SCHEMES, FORM))
        raise ConfigError(f"unknown scheme {arguments['scheme']!r}; allowed: {allowed}")
    for key in ("train_per_client", "test_per_client"):
        if arguments[key] < 0:
            raise ConfigError(
                f"{key} is {arguments[key]}; allowed: 0 (as many as possible) or more"
            )
    check_clients(arguments["num_clients"], len(data.train), "the train split")
    check_clients(arguments["num_clients"], len(data.test), "the test split")
    if not (math.isfinite(arguments["alpha"]) and arguments["alpha"] > 0):
        raise ConfigError(f"alpha is {arguments['alpha']}; allowed: a finite number above 0")
    held = arguments["classes_per_client"]
    if held < 1:
        raise ConfigError(f"classes_per_client is {held}; allowed: 1 or more")
    sharing(arguments["scheme"]).refuse(data, arguments)


def _split(data: ImageData, arguments: dict[str, Any]) -> list[ClientIndices]:
    """Draw the three index arrays of every client."""
    seed, clients = arguments["seed"], arguments["num_clients"]
    classes = np.unique(data.train.labels)
    rows = np.flatnonzero(np.isin(data.test.labels, classes))  # nobody learns any other class
    test = np.asarray(data.test.labels)[rows]
    check_clients(clients, len(test), "the test split")
    train, local = sharing(arguments["scheme"]).share(Deal(data, rows, arguments))
    rng = numpy_stream(seed, "partition", "test-iid")
    size = round(sum(map(len, local)) / len(local))
    owners = data.test.clients if sharing(arguments["scheme"]).owned else None
    alike = test if owners is None else _with_owners(test, owners[rows], clients, size)
    balanced = draw_balanced(alike, clients, size, rng)
    return [
        ClientIndices(held, rows[own], rows[iid])
        for held, own, iid in zip(train, local, balanced, strict=True)
    ]


def _with_owners(labels: Indices, owners: Indices, clients: int, size: int) -> Indices:
    """What the IID test holds alike, as a code per test sample: owner and class, or the class.

    Args:
        labels: Class of each test sample, [T].
        owners: Whom it belongs to, [T].
        clients: How many clients get a test.
        size: Samples that each of them should get.
    """
    classes, codes = np.unique(labels, return_inverse=True)
    people, who = np.unique(owners, return_inverse=True)
    # In such an order that neighbours differ in both: few samples are spread over both, too.
    both = ((who - codes) % len(people) * len(classes) + codes).astype(np.int64)
    if len(np.unique(both)) < len(people) * len(classes):
        return labels
    most = largest_balanced(both, clients)
    return both if 2 * most >= min(size, largest_balanced(labels, clients)) else labels
