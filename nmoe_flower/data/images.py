"""Labelled images in memory maps, and what is different about data that was counted before."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nmoe_flower.plurals import how_many

__all__ = ["Features", "ImageData", "Portion", "Split", "Tokenised", "counted", "what_changed"]


@dataclass(frozen=True)
class Features:
    """What the columns of a table are called, and how they were standardised.

    Attributes:
        names: Names of the F columns.
        means: What is subtracted from each column, F numbers.
        deviations: What each column is divided by, F numbers above 0.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]


@dataclass(frozen=True)
class Tokenised:
    """How labelled documents became tokens.

    Attributes:
        tokenizer: Hash of what made the tokens.
        vocab_size: Number of tokens that it knows.
        empty: How many documents without text were left out.
        shortened: How many were longer than a window and lost their end.
    """

    tokenizer: str
    vocab_size: int
    empty: int = 0
    shortened: int = 0


@dataclass(frozen=True, eq=False)
class Split:
    """One split, row by row.

    Attributes:
        images: uint8 [N, H, W, channels], a read-only memory map; of a table, its standardised
            features, float32 [N, 1, 1, F]; of text, its tokens, float32 [N, 1, 1, T], filled up
            with -1.
        labels: Class of each sample, int64 [N].
        clients: Who each row belongs to, int64 [N], places in ``ImageData.client_names``; None if
            nobody asked.
    """

    images: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    clients: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Portion:
    """Some rows of a split.

    Attributes:
        split: The split they are in.
        rows: Places of the rows in the split, int64 [n].
    """

    split: Split
    rows: npt.NDArray[np.int64]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each row, int64 [n]."""
        return np.asarray(self.split.labels[self.rows])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image data set.

    Attributes:
        name: The data set, as it was asked for.
        train: Rows to train on.
        test: Rows to test on.
        class_names: Names of the C classes, in the order of the labels.
        fingerprint: SHA-256 of labels and images.
        client_names: Whom the rows belong to, if that was asked for.
        features: Names and statistics of a table's columns; None for images.
        tokenised: How text became tokens; None for images.
        beside: Samples of the splits that nobody asked for, by name.
        unnamed: The fingerprint before clients gave classes names of their own; empty: they do not.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str
    client_names: tuple[str, ...] = ()
    features: Features | None = None
    beside: Mapping[str, int] = field(default_factory=dict)
    unnamed: str = ""
    tokenised: Tokenised | None = None

    @property
    def images_fingerprint(self) -> str:
        """Equal for data whose images are equal, also where labels were renamed."""
        return self.unnamed or self.fingerprint

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image, the order torch wants."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width


_NAMED = 5  # classes that are listed


def counted(data: ImageData) -> dict[str, dict[str, int]]:
    """Samples of every class in both splits, by the names of split and class."""
    return {
        name: {cls: int((split.labels == code).sum()) for code, cls in enumerate(data.class_names)}
        for name, split in (("train", data.train), ("test", data.test))
    }


def what_changed(
    then: Mapping[str, Mapping[str, int]], now: Mapping[str, Mapping[str, int]]
) -> str:
    """How two counts of the same data differ.

    >>> what_changed({"train": {"cat": 60, "dog": 9}}, {"train": {"cat": 56, "dog": 9}})
    "train had 69 samples and has 65 (class 'cat': 60 then, 56 now)"
    >>> what_changed({"train": {"cat": 60}}, {"train": {"cat": 60}})
    'as many samples of every class as before, but not the same ones'
    """
    found = []
    for split, before in then.items():
        after = now.get(split, {})
        classes = [
            f"class {cls!r}: {before.get(cls, 0)} then, {after.get(cls, 0)} now"
            for cls in sorted({*before, *after})
            if before.get(cls, 0) != after.get(cls, 0)
        ]
        if classes:
            more = len(classes) - _NAMED
            listed = "; ".join(classes[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
            found.append(
                f"{split} had {how_many(sum(before.values()), 'sample')} and has "
                f"{sum(after.values())} "
                f"({listed})"
            )
    return ", ".join(found) or "as many samples of every class as before, but not the same ones"
