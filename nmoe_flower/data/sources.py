"""Splits before decoding, and the data set that ships inside scikit-learn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["ColourFoundError", "RawSplit", "read_digits"]


@dataclass(frozen=True)
class RawSplit:
    """A split before decoding.

    Attributes:
        name: Of the split.
        labels: Class codes, int64 [N].
        read: ``read(mode)`` yields uint8 images [H, W, channels] in order.
        place: Names a row in errors: its number, the split, the file if there is one.
        clients: Who each row belongs to; None if nobody asked.
        beside: Of the train split: samples of the splits that nobody asked for, by name.
    """

    name: str
    labels: npt.NDArray[np.int64]
    read: Callable[[str], Iterator[npt.NDArray[np.uint8]]]
    place: Callable[[int], str]
    clients: Sequence[str] | None = None
    beside: Mapping[str, int] = field(default_factory=dict)


class ColourFoundError(Exception):
    """A colour image turned up among grey ones: decode all as RGB."""


def read_digits() -> tuple[list[RawSplit], list[str]]:
    """The digits of scikit-learn, their 0..16 greys scaled to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    raw = RawSplit("train", labels, lambda mode: iter(images), lambda row: f"digit {row}")
    return [raw], [str(name) for name in digits.target_names]
