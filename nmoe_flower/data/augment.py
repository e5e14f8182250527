"""Images to tensors, and random crops, flips and cutouts of whole batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nmoe_flower.errors import ConfigError, DataError

CENTRE = 0.5
SPREAD = 0.25


def normalise(images: npt.NDArray[np.uint8] | npt.NDArray[np.float32] | Tensor) -> Tensor:
    """Bytes [B, H, W, C] -> float32 [B, C, H, W] as (x / 255 - 0.5) / 0.25, channels last.

    The constants are fixed, so no statistics of a client's data leave it. Features are standardised
    already: float32 [B, 1, 1, F] -> [B, F, 1, 1].

    Raises:
        DataError: The images are neither, or do not have four dimensions.

    >>> normalise(np.array([[[[0], [255]]]], dtype=np.uint8)).flatten().tolist()
    [-2.0, 2.0]
    """
    pixels = (
        torch.from_numpy(np.require(images, requirements=["C", "W"]))
        if isinstance(images, np.ndarray)
        else images
    )
    if pixels.dtype == torch.float32 and pixels.ndim == 4 and pixels.shape[1:3] == (1, 1):
        return pixels.permute(0, 3, 1, 2)
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise DataError(
            f"images are {pixels.dtype} of shape {tuple(pixels.shape)}; "
            "allowed: uint8 of shape [B, H, W, C], or float32 of shape [B, 1, 1, F] for features"
        )
    scaled = pixels.to(torch.float32).mul_(1 / (255 * SPREAD)).sub_(CENTRE / SPREAD)
    return scaled.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Augment:
    """Random crop of the reflected border, horizontal flip, and cutout, drawn per image.

    Attributes:
        crop_padding: Pixels of reflected border on each side before the crop; 0 for no crop.
        flip: Whether half of the images are mirrored left to right.
        cutout: Side in pixels of the zeroed square; 0 for none. Its centre is any pixel, so the
            square is clipped at the border (DeVries and Taylor 2017).

    Raises:
        ConfigError: A size is negative, or (at the call) the padding is not below the image size.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for key, size in (("crop-padding", self.crop_padding), ("cutout", self.cutout)):
            if size < 0:
                raise ConfigError(f"{key} is {size}; allowed: 0 or more")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed images [B, C, H, W] in the memory format of the input; the input stays.

        Equal generator states give equal results.
        """
        if self.crop_padding or self.flip:
            images = self._shift_and_flip(images, generator)
        if self.cutout:
            images = images * ~self._squares(images, generator)
        return images

    def _shift_and_flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        rows = self._window(batch, height, generator)
        columns = self._window(batch, width, generator)
        if self.flip:
            mirrored = torch.rand(batch, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        sample = torch.arange(batch)[:, None, None]
        pixels = images.permute(0, 2, 3, 1)
        return pixels[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _window(self, batch: int, size: int, generator: torch.Generator) -> Tensor:
        """Source index [B, size] of each pixel along one axis: a shift, reflected at the ends."""
        padding = self.crop_padding
        if padding == 0:
            return torch.arange(size).expand(batch, size)
        if padding >= size:
            raise ConfigError(
                f"crop-padding is {padding}, the images have {size} pixels; "
                f"allowed: 0 to {size - 1}"
            )
        shift = torch.randint(-padding, padding + 1, (batch, 1), generator=generator)
        index = (torch.arange(size) + shift).abs()
        return torch.where(index >= size, 2 * (size - 1) - index, index)

    def _squares(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Which pixels [B, 1, H, W] lie in the square of their image."""
        batch, _, height, width = images.shape
        rows = self._span(batch, height, generator)
        columns = self._span(batch, width, generator)
        return (rows[:, :, None] & columns[:, None, :])[:, None]

    def _span(self, batch: int, size: int, generator: torch.Generator) -> Tensor:
        """Which positions [B, size] along one axis lie within the square's side."""
        start = torch.randint(0, size, (batch, 1), generator=generator) - self.cutout // 2
        position = torch.arange(size)
        return (position >= start) & (position < start + self.cutout)
