"""Labelled images in memory maps: what every other module of this package works on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ImageData", "Split"]


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, H, W, channels], a read-only memory map, and labels int64 [N]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image data set; ``fingerprint`` is the SHA-256 of its labels and images."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image, the order torch wants."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width
