"""Labelled images in memory maps: what every other module of this package works on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ImageData", "Split"]


@dataclass(frozen=True, eq=False)
class Split:
    """One split, row by row.

    Attributes:
        images: uint8 [N, H, W, channels], a read-only memory map.
        labels: int64 [N].
        clients: Who each row belongs to, int64 [N], places in ``ImageData.client_names``; None if
            nobody asked.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    clients: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image data set.

    Attributes:
        name: As it was asked for.
        train: Rows to train on.
        test: Rows to test on.
        class_names: Of the C classes, in the order of the labels.
        fingerprint: SHA-256 of labels and images.
        client_names: Whom the rows belong to, if that was asked for.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str
    client_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image, the order torch wants."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width
