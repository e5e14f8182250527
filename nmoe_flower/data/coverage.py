"""How many samples of how many a partition uses, and why the rest goes to nobody."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nmoe_flower.data.dealing import Indices
from nmoe_flower.data.images import ImageData, Split
from nmoe_flower.data.indices import ClientIndices

if TYPE_CHECKING:
    from nmoe_flower.config import Config

__all__ = ["Coverage", "coverage"]

_NAMED = 6  # classes that a reason lists by name


@dataclass(frozen=True)
class Coverage:
    """How one part of the data is used.

    Attributes:
        part: ``train``, ``local test``, ``IID test``, or ``split NAME`` that nobody asked for.
        used: Samples that at least one client holds.
        shared: Samples that several clients hold; they are counted in ``used``, too.
        total: Samples there are.
        reasons: Why the others are left out; empty if there are none.
    """

    part: str
    used: int
    shared: int
    total: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """In words, one line."""
        text = f"{self.part}: {self.used:,} of {self.total:,} samples are used"
        if self.shared:
            text += f", {self.shared:,} of them by several clients"
        if self.used == self.total:
            return text
        return f"{text}; {self.total - self.used:,} are not: {'; '.join(self.reasons)}"


def coverage(config: "Config", data: ImageData, clients: Sequence[ClientIndices]) -> list[Coverage]:
    """How the train split, and the test split in both tests, are used; and what other splits are.

    Args:
        config: Configuration of the partition.
        data: What was shared out.
        clients: What each client got.
    """
    train, local, iid = (
        [getattr(client, part) for client in clients]
        for part in ("train", "test_local", "test_iid")
    )
    section = config.data
    return [
        _coverage("train", data.train, train, _why_train(config, data, train)),
        _coverage(
            "local test",
            data.test,
            local,
            [
                *_unknown_classes(data),
                *_limit("test-per-client", section.test_per_client),
                *_why_local(config, data, local),
            ],
        ),
        _coverage(
            "IID test",
            data.test,
            iid,
            [*_unknown_classes(data), f"every class alike, {_sizes(iid)} per client"],
        ),
        *(
            Coverage(
                f"split {name}",
                0,
                0,
                count,
                (
                    f"data.train-split is {section.train_split}, and data.test-split is "
                    f"{section.test_split or 'empty'}",
                ),
            )
            for name, count in data.beside.items()
        ),
    ]


def _coverage(part: str, split: Split, held: Sequence[Indices], reasons: Sequence[str]) -> Coverage:
    times = np.bincount(np.concatenate([*held, np.empty(0, np.int64)]), minlength=len(split))
    used, shared = int((times > 0).sum()), int((times > 1).sum())
    return Coverage(part, used, shared, len(split), tuple(reasons) if used < len(split) else ())


def _why_train(config: "Config", data: ImageData, held: Sequence[Indices]) -> list[str]:
    section = config.data
    reasons = _limit("train-per-client", section.train_per_client)
    if section.scheme == "natural":
        reasons += _why_natural(data, held)
    elif section.scheme == "pathological":
        left = _classes_left(data, data.train, held)
        reasons += [f"no client holds {left}"] if left else []
    elif not reasons:
        reasons.append(f"every client holds equally many, {_sizes(held)}")
        if section.scheme == "dominant":
            reasons.append(_scarcest(data, data.train, held))
    return reasons


def _why_local(config: "Config", data: ImageData, held: Sequence[Indices]) -> list[str]:
    scheme = config.data.scheme
    if scheme == "iid":
        return [f"every client holds equally many, {_sizes(held)}"]
    if scheme == "natural" and len({len(indices) for indices in held}) > 1:
        return _why_natural(data, held)
    return [
        f"every client holds equally many, {_sizes(held)}, skewed like its training samples; "
        f"{_scarcest(data, data.test, held)}"
    ]


def _why_natural(data: ImageData, held: Sequence[Indices]) -> list[str]:
    if len(held) == len(data.client_names):
        return []
    return [
        f"{len(held)} of the {len(data.client_names)} in the data are clients "
        "(data.num-clients), those with most training samples"
    ]


def _limit(key: str, size: int) -> list[str]:
    return [f"data.{key} is {size}"] if size else []


def _sizes(held: Sequence[Indices]) -> str:
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


def _scarcest(data: ImageData, split: Split, held: Sequence[Indices]) -> str:
    """The class that has least left, which bounds the size of all clients."""
    there, used = _counts(data, split, held)
    known = np.bincount(data.train.labels, minlength=data.num_classes) > 0
    left = np.where(known, there - used, there.max() + 1)
    cls = int(left.argmin())
    rest, name = int(there[cls] - used[cls]), data.class_names[cls]
    return (
        f"of class {name!r} {rest or 'none'} of {there[cls]:,} {'is' if rest == 1 else 'are'} left"
    )


def _classes_left(data: ImageData, split: Split, held: Sequence[Indices]) -> str:
    there, used = _counts(data, split, held)
    return _listed(data, np.flatnonzero((there > 0) & (used == 0)))


def _unknown_classes(data: ImageData) -> list[str]:
    """Classes with test samples and no training samples."""
    train, test = (
        np.bincount(split.labels, minlength=data.num_classes) for split in (data.train, data.test)
    )
    classes = np.flatnonzero((train == 0) & (test > 0))
    if not len(classes):
        return []
    return [f"{int(test[classes].sum())} are of {_listed(data, classes)}, with none to train on"]


def _listed(data: ImageData, classes: Indices) -> str:
    if not len(classes):
        return ""
    names = [repr(data.class_names[int(cls)]) for cls in classes[:_NAMED]]
    more = len(classes) - len(names)
    return f"class {', '.join(names)}" + (f" and {more} more" if more else "")
