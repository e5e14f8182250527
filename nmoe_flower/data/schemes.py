"""The ways to share a data set out that come along, one function and one `SharingScheme` each."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from nmoe_flower.catalogue import SCHEMES, found
from nmoe_flower.data.dealing import (
    Indices,
    check_share,
    deal_dominant,
    dominant_share_from_tau,
    draw_alike,
)
from nmoe_flower.data.hugging_face import import_extra
from nmoe_flower.data.images import ImageData, Split
from nmoe_flower.data.indices import label_counts
from nmoe_flower.data.own import own_indices
from nmoe_flower.errors import DataError
from nmoe_flower.plurals import how_many
from nmoe_flower.seeds import derive_seed, numpy_stream

__all__ = [
    "Deal",
    "SharingScheme",
    "classes_left",
    "largest_clients",
    "named_classes",
    "scarcest",
    "sharing",
    "sizes_in_words",
]

_NAMED = 6  # classes that a reason lists by name


Shares = tuple[list[Indices], list[Indices]]


@dataclass(frozen=True)
class Deal:
    """What is to be shared out, and how.

    Attributes:
        data: Samples to share out, train and test split.
        rows: Places in the test split whose class has training samples, [T].
        arguments: Arguments of `partition_clients`, ``num_clients`` and ``seed`` among them.
    """

    data: ImageData
    rows: Indices
    arguments: Mapping[str, Any]

    @property
    def labels(self) -> Indices:
        """Class of every training sample, [N]."""
        return np.asarray(self.data.train.labels)

    @property
    def test(self) -> Indices:
        """Class of every sample at ``rows``, [T]."""
        return np.asarray(self.data.test.labels)[self.rows]

    def alike(self, train: list[Indices]) -> list[Indices]:
        """Test samples, places in ``rows``, with the label shares of every client's train samples.

        Args:
            train: Places in the train split, by client.
        """
        return draw_alike(
            self.test,
            label_counts(self.data.train.labels, train, self.data.num_classes),
            size=self.arguments["test_per_client"],
            names=self.data.class_names,
            rng=numpy_stream(self.arguments["seed"], "partition", self.arguments["scheme"], "test"),
        )


def _equal(data: ImageData, held: Sequence[Indices], limited: bool) -> list[str]:
    return [] if limited else [f"every client holds equally many, {sizes_in_words(held)}"]


def _skewed_alike(data: ImageData, held: Sequence[Indices]) -> list[str]:
    return [
        f"every client holds equally many, {sizes_in_words(held)}, skewed like its training "
        f"samples; {scarcest(data, data.test, held)}"
    ]


@dataclass(frozen=True)
class SharingScheme:
    """One way to share samples out.

    Attributes:
        share: Returns places in the train split and in ``rows``, an array per client each.
        refuse: Raises on arguments that cannot be, given the data; before anything is cached.
        why_train: Why training samples are left out, from the data, each client's samples, and
            whether ``train_per_client`` is one reason already.
        why_local: Why test samples are left out, from the data and each client's test samples.
        owned: A sample is somebody's, and can be nobody else's.
    """

    share: Callable[[Deal], Shares]
    refuse: Callable[[ImageData, Mapping[str, Any]], None] = lambda data, arguments: None
    why_train: Callable[[ImageData, Sequence[Indices], bool], list[str]] = _equal
    why_local: Callable[[ImageData, Sequence[Indices]], list[str]] = _skewed_alike
    owned: bool = False


# --- one dominant class per client ---


def _dominant(deal: Deal) -> Shares:
    arguments = deal.arguments
    train, local = (
        deal_dominant(
            held,
            deal.data.class_names,
            classes=np.unique(deal.labels),
            num_clients=arguments["num_clients"],
            share=dominant_share_from_tau(arguments["tau"]),
            size=arguments[f"{split}_per_client"],
            split=f"the {split} split",
            rng=numpy_stream(arguments["seed"], "partition", "dominant", split),
        )
        for split, held in (("train", deal.labels), ("test", deal.test))
    )
    return train, local


def _refuse_share(data: ImageData, arguments: Mapping[str, Any]) -> None:
    check_share(dominant_share_from_tau(arguments["tau"]), len(np.unique(data.train.labels)))


def _scarce(data: ImageData, held: Sequence[Indices], limited: bool) -> list[str]:
    reasons = _equal(data, held, limited)
    return [*reasons, scarcest(data, data.train, held)] if reasons else []


DOMINANT = SharingScheme(_dominant, _refuse_share, _scarce)


# --- by lot, and those of flwr-datasets ---


def _iid(deal: Deal) -> Shares:
    return _even(deal.labels, deal.arguments, "train"), _even(deal.test, deal.arguments, "test")


def _even(labels: Indices, arguments: Mapping[str, Any], split: str) -> list[Indices]:
    """Pieces of a random order, as Flower's ``IidPartitioner`` cuts them, without its tables."""
    clients, size = arguments["num_clients"], arguments[f"{split}_per_client"]
    largest = len(labels) // clients
    if size > largest:
        raise DataError(
            f"{how_many(clients, 'client')} cannot have {size} of the {len(labels)} samples of the "
            f"{split} split each; allowed: at most {how_many(largest, 'sample')} per client"
        )
    rng = numpy_stream(arguments["seed"], "partition", "iid", split)
    order = rng.permutation(len(labels))
    return [part[: size or largest] for part in np.array_split(order, clients)]


def _skewed(deal: Deal) -> Shares:
    train = _flower_indices(deal.labels, deal.arguments, split="train")
    return train, deal.alike(train)


def _refuse_classes(data: ImageData, arguments: Mapping[str, Any]) -> None:
    known, held = len(np.unique(data.train.labels)), arguments["classes_per_client"]
    if held > known:
        raise DataError(f"classes_per_client is {held}; allowed: 1 to {known}")


def _unheld(data: ImageData, held: Sequence[Indices], limited: bool) -> list[str]:
    left = classes_left(data, data.train, held)
    return [f"no client holds {left}"] if left else []


IID = SharingScheme(_iid, why_local=lambda data, held: _equal(data, held, limited=False))
DIRICHLET = SharingScheme(_skewed)
PATHOLOGICAL = SharingScheme(_skewed, _refuse_classes, _unheld)


def _flower_indices(labels: Indices, arguments: Mapping[str, Any], *, split: str) -> list[Indices]:
    """Split with a partitioner of flwr-datasets, on a data set of labels and positions only."""
    clients, scheme = arguments["num_clients"], arguments["scheme"]
    import_extra("flwr_datasets", f"scheme {scheme!r}")
    from datasets import Dataset
    from flwr_datasets import partitioner as flower

    size = arguments[f"{split}_per_client"]
    seed = derive_seed(arguments["seed"], "partition", scheme, split)
    order = numpy_stream(arguments["seed"], "partition", scheme, split).permutation(len(labels))
    partitioner: flower.Partitioner
    if scheme == "dirichlet":
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
                f"scheme {scheme!r} cannot share {how_many(len(labels), 'sample')} among "
                f"{how_many(clients, 'client')} "
                f"(alpha {arguments['alpha']}, classes_per_client "
                f"{arguments['classes_per_client']}): {error}"
            ) from error
    return [np.array(part["position"], dtype=np.int64)[: size or None] for part in parts]


# --- whoever is in the data ---


def _natural(deal: Deal) -> Shares:
    """What the largest clients of the data hold."""
    data, arguments = deal.data, deal.arguments
    chosen = largest_clients(data, arguments["num_clients"])
    assert data.train.clients is not None  # or nobody would have been chosen
    rng = numpy_stream(arguments["seed"], "partition", "natural")
    limit = arguments["train_per_client"] or None
    train = [held[:limit] for held in _rows_of(data.train.clients, chosen, rng)]
    if data.test.clients is None:
        return train, deal.alike(train)
    own = _rows_of(data.test.clients[deal.rows], chosen, rng)
    if not all(map(len, own)):
        return train, deal.alike(train)
    return train, [held[: arguments["test_per_client"] or None] for held in own]


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


def _absent(data: ImageData, held: Sequence[Indices], limited: bool = False) -> list[str]:
    if len(held) == len(data.client_names):
        return []
    return [
        f"{len(held)} of the {len(data.client_names)} in the data are clients "
        "(data.num-clients), those with most training samples"
    ]


def _absent_or_alike(data: ImageData, held: Sequence[Indices]) -> list[str]:
    uneven = len({len(indices) for indices in held}) > 1
    return _absent(data, held) if uneven else _skewed_alike(data, held)


NATURAL = SharingScheme(_natural, why_train=_absent, why_local=_absent_or_alike, owned=True)


# --- somebody's own code ---


def _own(deal: Deal) -> Shares:
    arguments, shares = deal.arguments, []
    for split, labels in (("train", deal.labels), ("test", deal.test)):
        rng = numpy_stream(arguments["seed"], "partition", arguments["scheme"], split)
        clients, limit = arguments["num_clients"], arguments[f"{split}_per_client"]
        held = own_indices(arguments["scheme"], labels, clients, rng, split=split)
        shares.append([share[: limit or None] for share in held])
    return shares[0], shares[1]


OWN = SharingScheme(_own)


def sharing(scheme: str) -> SharingScheme:
    """How a scheme shares samples out: one that comes along, or ``package.module:Name``."""
    return cast(SharingScheme, found(SCHEMES[scheme].sharing)) if scheme in SCHEMES else OWN


# --- why samples are left out, in words ---


def sizes_in_words(held: Sequence[Indices]) -> str:
    """How many samples each client holds: a number, or the least and the most."""
    low, high = min(map(len, held)), max(map(len, held))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _counts(data: ImageData, split: Split, held: Sequence[Indices]) -> tuple[Indices, Indices]:
    """Samples per class: there are, and are used; int64 [C] each."""
    rows = np.unique(np.concatenate([*held, np.empty(0, np.int64)]))
    labels = np.asarray(split.labels)
    return (
        np.bincount(labels, minlength=data.num_classes),
        np.bincount(labels[rows], minlength=data.num_classes),
    )


def scarcest(data: ImageData, split: Split, held: Sequence[Indices]) -> str:
    """The class that has least left, which bounds the size of all clients."""
    there, used = _counts(data, split, held)
    known = np.bincount(data.train.labels, minlength=data.num_classes) > 0
    left = np.where(known, there - used, there.max() + 1)
    cls = int(left.argmin())
    rest, name = int(there[cls] - used[cls]), data.class_names[cls]
    if not rest:
        return f"all {there[cls]:,} of class {name!r} are used"
    return f"{rest:,} of the {there[cls]:,} of class {name!r} {'is' if rest == 1 else 'are'} left"


def classes_left(data: ImageData, split: Split, held: Sequence[Indices]) -> str:
    """The classes of which no client holds a sample; empty if there are none."""
    there, used = _counts(data, split, held)
    return named_classes(data, np.flatnonzero((there > 0) & (used == 0)))


def named_classes(data: ImageData, classes: Indices) -> str:
    """Names of classes, the first few of many; empty for none."""
    if not len(classes):
        return ""
    names = [repr(data.class_names[int(cls)]) for cls in classes[:_NAMED]]
    more = len(classes) - len(names)
    return f"class {', '.join(names)}" + (f" and {more} more" if more else "")
