"""How many samples of how many a partition uses, and why the rest goes to nobody."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nmoe_flower.data.dealing import Indices
from nmoe_flower.data.images import ImageData, Split
from nmoe_flower.data.indices import ClientIndices
from nmoe_flower.data.schemes import named_classes, sharing, sizes_in_words
from nmoe_flower.plurals import how_many

if TYPE_CHECKING:
    from nmoe_flower.config import Config

__all__ = ["Coverage", "coverage"]


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
        text = (
            f"{self.part}: {self.used:,} of {how_many(self.total, 'sample is', 'samples are')} used"
        )
        if self.shared:
            text += f", {self.shared:,} of them by several clients"
        if self.used == self.total:
            return text
        return (
            f"{text}; {how_many(self.total - self.used, 'is', 'are')} not: "
            f"{'; '.join(self.reasons)}"
        )


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
    section, scheme = config.data, sharing(config.data.scheme)
    return [
        _coverage("train", data.train, train, _why_not_trained(config, data, clients)),
        _coverage(
            "local test",
            data.test,
            local,
            [
                *_unknown_classes(data),
                *_limit("test-per-client", section.test_per_client),
                *scheme.why_local(data, local),
            ],
        ),
        _coverage(
            "IID test",
            data.test,
            iid,
            [*_unknown_classes(data), f"every class alike, {sizes_in_words(iid)} per client"],
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


def _limit(key: str, size: int) -> list[str]:
    return [f"data.{key} is {size}"] if size else []


def _why_not_trained(
    config: "Config", data: ImageData, clients: Sequence[ClientIndices]
) -> list[str]:
    """Why training samples are left out: for validation, or as the scheme has it."""
    aside = sum(len(client.validation) for client in clients)
    found = (
        [f"{how_many(aside, 'is', 'are')} for validation (data.validation-per-client)"]
        if aside
        else []
    )
    taken = [np.concatenate([client.train, client.validation]) for client in clients]
    if sum(map(len, taken)) == len(data.train):
        return found
    limit = _limit("train-per-client", config.data.train_per_client)
    why = sharing(config.data.scheme).why_train(data, taken, bool(limit))
    return [*limit, *found, *why]


def _unknown_classes(data: ImageData) -> list[str]:
    """Classes with test samples and no training samples."""
    train, test = (
        np.bincount(split.labels, minlength=data.num_classes) for split in (data.train, data.test)
    )
    classes = np.flatnonzero((train == 0) & (test > 0))
    if not len(classes):
        return []
    return [
        f"{how_many(int(test[classes].sum()), 'is', 'are')} of {named_classes(data, classes)}, "
        "with none to train on"
    ]
