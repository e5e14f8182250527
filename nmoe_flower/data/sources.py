"""Splits before decoding, and the data set that ships inside scikit-learn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ColourFoundError", "RawSplit", "read_digits"]


@dataclass(frozen=True)
class RawSplit:
    """A split before decoding: ``read(mode)`` yields uint8 images [H, W, channels] in order."""

    name: str
    labels: npt.NDArray[np.int64]
    read: Callable[[str], Iterator[npt.NDArray[np.uint8]]]


class ColourFoundError(Exception):
    """A colour image turned up among grey ones: decode all as RGB."""


def read_digits() -> tuple[list[RawSplit], list[str]]:
    """The digits of scikit-learn, their 0..16 greys scaled to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    raw = RawSplit("train", digits.target.astype(np.int64), lambda mode: iter(images))
    return [raw], [str(name) for name in digits.target_names]
