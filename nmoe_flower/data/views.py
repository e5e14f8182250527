"""Two random views for contrastive learning: of an image, or of a row of features.

All of a batch at once, from one generator: a view costs a few per cent of a training step.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nmoe_flower.data.augment import CENTRE, SPREAD
from nmoe_flower.errors import ConfigError

__all__ = ["FeatureViews", "Views"]

_LOG_ASPECTS = (math.log(3 / 4), math.log(4 / 3))
_LUMA = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class Views:
    """Random resized crop, horizontal flip, colour jitter and grey, drawn per image.

    The recipe of SimCLR (Chen et al. 2020) for small images, without blur; FedSC uses the same
    with jitter 0.4 and hue 0.1. Colours of images that do not have three channels change in
    brightness and contrast only.

    Attributes:
        size: Shorter side of a view in pixels; 0 keeps that of the images. Smaller views train
            faster, and a convolutional extractor takes larger images afterwards.
        smallest: Smallest share of the area that a crop may have, in (0, 1]; 1 for no crop.
        flip: Whether half of the views are mirrored left to right.
        jitter: Brightness, contrast and saturation change by up to this factor, in 80 % of the
            views; 0 for none.
        hue: Largest turn of the hue, as a share of the full circle, in the same views.
        grey: Share of the views without colour.

    Raises:
        ConfigError: A number is out of range.
    """

    size: int = 0
    smallest: float = 0.2
    flip: bool = True
    jitter: float = 0.4
    hue: float = 0.1
    grey: float = 0.2

    def __post_init__(self) -> None:
        allowed = {
            "size": (self.size, 0, math.inf),
            "smallest": (self.smallest, 1e-3, 1),
            "jitter": (self.jitter, 0, 1),
            "hue": (self.hue, 0, 0.5),
            "grey": (self.grey, 0, 1),
        }
        for key, (value, low, high) in allowed.items():
            if not low <= value <= high:
                raise ConfigError(f"view {key} is {value}; allowed: {low:g} to {high:g}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views of normalised images [B, C, H, W], float32; equal seeds, equal views.

        Drawn as one batch of 2 B, whose halves are the views.
        """
        both = self._colours(self._crops(torch.cat([images, images]), generator), generator)
        first, second = both.contiguous(memory_format=torch.channels_last).chunk(2)
        return first, second

    def _crops(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, channels, height, width = images.shape
        if self.size:
            shorter = min(height, width)
            height, width = (round(side * self.size / shorter) for side in (height, width))
        if self.smallest == 1:
            shares = torch.ones(batch, 2)
        else:
            area = self._uniform(batch, self.smallest, 1.0, generator)
            aspect = self._uniform(batch, *_LOG_ASPECTS, generator).exp()
            shares = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)
        centres = (2 * torch.rand(batch, 2, generator=generator) - 1) * (1 - shares)
        if self.flip:
            mirrored = torch.rand(batch, generator=generator) < 0.5
            shares[:, 0] = torch.where(mirrored, -shares[:, 0], shares[:, 0])
        theta = torch.zeros(batch, 2, 3)
        theta[:, [0, 1], [0, 1]] = shares
        theta[:, :, 2] = centres
        grid = F.affine_grid(theta, [batch, channels, height, width], align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def _colours(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One affine map of the colours per image, then a cut at black and white."""
        batch, channels = images.shape[:2]
        if not (self.jitter or self.hue or self.grey):
            return images
        jittered = torch.rand(batch, generator=generator) < 0.8
        bright, contrast, saturation = (
            torch.where(jittered, factor, 1.0)
            for factor in self._uniform(3 * batch, 1 - self.jitter, 1 + self.jitter, generator)
            .view(3, batch)
        )  # fmt: skip
        turn = torch.where(jittered, self._uniform(batch, -self.hue, self.hue, generator), 0.0)
        greyed = torch.rand(batch, generator=generator) < self.grey
        pixels = (images * SPREAD + CENTRE).flatten(2)
        if channels == 3:
            saturation = torch.where(greyed, 0.0, saturation)
            pixels = _saturation(saturation) @ _hue(turn) @ pixels
        mean = pixels.mean(dim=(1, 2), keepdim=True)
        pixels = bright[:, None, None] * (mean + contrast[:, None, None] * (pixels - mean))
        return ((pixels.clamp(0, 1) - CENTRE) / SPREAD).view_as(images)

    @staticmethod
    def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)


def _saturation(factor: Tensor) -> Tensor:
    """Mix each pixel with its luma: [B] -> colour matrices [B, 3, 3]."""
    luma = torch.tensor(_LUMA).expand(3, 3)
    return factor[:, None, None] * torch.eye(3) + (1 - factor[:, None, None]) * luma


def _hue(turn: Tensor) -> Tensor:
    """Rotate the two colour axes of YIQ by ``turn`` full circles: [B] -> [B, 3, 3]."""
    angle = 2 * math.pi * turn
    rotation = torch.eye(3).repeat(len(turn), 1, 1)
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    yiq = torch.tensor(_YIQ)
    turned: Tensor = torch.linalg.inv(yiq) @ rotation @ yiq
    return turned


@dataclass(frozen=True)
class FeatureViews:
    """Gaussian noise on every feature, and a share of the features at their mean, drawn per row.

    Features are standardised, so noise is in deviations and the mean is 0. No row touches another:
    gradients and matrices of single samples stay what they are.

    Attributes:
        noise: Standard deviation of the noise, in deviations of a feature; 0 or more.
        mask: Share of the features that a view does not see, from 0 to below 1.

    Raises:
        ConfigError: A number is out of range.
    """

    noise: float = 0.2
    mask: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ConfigError(f"view noise is {self.noise}; allowed: 0 or more")
        if not 0 <= self.mask < 1:
            raise ConfigError(f"view mask is {self.mask}; allowed: 0 to below 1")

    def __call__(self, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views of features [B, F, 1, 1], float32; equal seeds, equal views."""
        both = torch.cat([features, features])
        both = both + self.noise * torch.randn(both.shape, generator=generator)
        seen = torch.rand(both.shape, generator=generator) >= self.mask
        first, second = (both * seen).chunk(2)
        return first, second
