"""A feature extractor that needs no data: random filters with the spectrum of natural images."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.extractor import Extractor, sides, size_in_words

__all__ = ["FilterBank"]

SPREAD = 0.25  # of normalised images
_VARIANCE = 0.002  # of flat patches, where pixels span a range of 1
_FEW = 16  # images whose maps stay in the cache
_OPPONENTS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))  # brightness and two colours
_COLOUR_GAIN = (1.0, 4.0, 6.0)  # natural images have little colour: bring it up


class FilterBank(Extractor):
    """Random filters, contrast normalisation, two-sided soft threshold, pooling to a grid.

    Random single-layer features come close to learned ones (Coates and Ng 2011, "The importance of
    encoding versus training"), if patches are whitened. Natural images have amplitudes that fall
    with 1/frequency, so a filter whose cosine coefficients grow with the frequency whitens them
    without having seen one. Everything follows from ``generator``: nothing need be sent.

    Args:
        filters: Number of filters K; D = 2 K grid^2.
        in_channels: 3, or 1 for grey images.
        image_size: Side of square images, or (height, width), in pixels.
        size: Height and width of a filter.
        stride: Pixels from one place of a filter to the next.
        grid: The maps are averaged to grid x grid.
        threshold: Responses below it, relative to the patch's contrast, are 0.
        generator: Where the filters come from.

    Raises:
        ConfigError: There are not 1 or 3 channels, or the images are smaller than a filter.

    >>> bank = FilterBank(8, image_size=8, in_channels=1, size=3, generator=torch.Generator())
    >>> bank.latent_dim, bank(torch.zeros(2, 1, 8, 8)).shape
    (64, torch.Size([2, 64]))
    """

    def __init__(
        self,
        filters: int,
        *,
        generator: Generator,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        size: int = 6,
        stride: int = 1,
        grid: int = 2,
        threshold: float = 0.08,
    ) -> None:
        super().__init__()
        if in_channels not in (1, 3) or min(sides(image_size)) < size + grid - 1:
            raise ConfigError(
                f"images have {in_channels} channels and {size_in_words(image_size)} pixels; "
                f"allowed: 1 or 3 channels, {size + grid - 1} pixels or more"
            )
        self.latent_dim = 2 * filters * grid * grid
        self.size, self.stride, self.grid, self.threshold = size, stride, grid, threshold
        self.register_buffer("bank", _bank(filters, in_channels, size, generator))
        self.bank: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Latents [B, D] of normalised images [B, C, H, W]."""
        return torch.cat([self._pooled(few) for few in torch.split(images, _FEW)])

    def _pooled(self, images: Tensor) -> Tensor:
        images = images * SPREAD  # back to a range of 1; the filters do not see the mean
        brightness = images.mean(dim=1, keepdim=True).float()
        mean = F.avg_pool2d(brightness, self.size, self.stride)
        square = F.avg_pool2d(
            images.float().square().mean(dim=1, keepdim=True), self.size, self.stride
        )
        contrast = ((square - mean.square()).clamp_min(0) + _VARIANCE).sqrt()
        response = F.conv2d(images, self.bank, stride=self.stride).float() / contrast
        over, under = F.relu(response - self.threshold), F.relu(-response - self.threshold)
        pooled = [F.adaptive_avg_pool2d(maps, self.grid) for maps in (over, under)]
        return torch.cat(pooled, dim=1).flatten(1).sqrt()


def _bank(filters: int, channels: int, size: int, generator: Generator) -> Tensor:
    """Filters [K, channels, size, size] of norm 1."""
    places = torch.arange(size, dtype=torch.float64)
    cosines = torch.cos(math.pi * (2 * places[:, None] + 1) * places / (2 * size))
    cosines *= math.sqrt(2 / size)
    cosines[:, 0] /= math.sqrt(2)
    amplitude = (places[:, None].square() + places.square()).sqrt()
    drawn = torch.randn(filters, channels, size, size, generator=generator).double()
    drawn = drawn * amplitude
    if channels == 3:
        gains = torch.tensor(_COLOUR_GAIN, dtype=torch.float64)
        flat = torch.randn(filters, 3, generator=generator).double()
        flat = flat * torch.tensor([0.0, 0.375, 1 / 3], dtype=torch.float64)
        drawn[:, :, 0, 0] = flat
        drawn = drawn * gains[:, None, None]
    bank = torch.einsum("xu,kcuv,yv->kcxy", cosines, drawn, cosines)
    if channels == 3:
        mixing = F.normalize(torch.tensor(_OPPONENTS, dtype=torch.float64), dim=1)
        bank = torch.einsum("kcxy,cr->krxy", bank, mixing)
    norm = bank.flatten(1).norm(dim=1)[:, None, None, None]
    return torch.div(bank, norm).float()
