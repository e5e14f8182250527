"""Feature extractors: images in, one latent vector per image out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.norm import NORMS, check_choice, make_conv, make_norm

POOLS: Final = ("last", "last-max", "last-mean", "multi")
MULTI_GRID: Final = 3


class Extractor(nn.Module):
    """Base of all extractors: images [B, C, H, W] -> latents [B, D] in float32.

    Attributes:
        latent_dim: D, the length of a latent.
    """

    latent_dim: int

    def forward(self, images: Tensor) -> Tensor:
        """Latents [B, D] of images [B, C, H, W]."""
        raise NotImplementedError


class FlattenExtractor(Extractor):
    """The pixels themselves, flattened: D = C * H * W. It has no parameters."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, images: Tensor) -> Tensor:
        """Pixels [B, C * H * W] in the order C, H, W."""
        return images.flatten(1).float()


class StagedExtractor(Extractor):
    """A stem, then stages of shrinking maps, then a cut: which maps are pooled to the latents.

    The cut ``multi`` joins the mean of the last stage with every earlier stage pooled to a 3x3
    grid; earlier maps serve self-supervised training, whose last layer is a poor feature.
    """

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Module], widths: Sequence[int], *, pool: str
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.pool = pool
        earlier = sum(widths[:-1]) * MULTI_GRID**2 if pool == "multi" else 0
        self.latent_dim = widths[-1] + earlier

    def forward(self, images: Tensor) -> Tensor:
        """Latents [B, D] of images [B, C, H, W]."""
        maps = self.stem(images)
        earlier = []
        for stage in self.stages:
            maps = stage(maps)
            earlier.append(maps)
        last: Tensor = earlier.pop()
        if self.pool == "last-max":
            return last.amax(dim=(2, 3)).float()
        mean = last.mean(dim=(2, 3)).float()
        if self.pool == "last-mean":
            return mean
        grids = [F.adaptive_avg_pool2d(m.float(), MULTI_GRID).flatten(1) for m in earlier]
        return torch.cat([mean, *grids], dim=1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2015); the branch starts at zero."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = make_conv(inputs, outputs, 3, norm=norm, stride=stride)
        self.norm1 = make_norm(outputs, norm=norm)
        self.conv2 = make_conv(outputs, outputs, 3, norm=norm)
        self.norm2 = make_norm(outputs, norm=norm)
        nn.init.zeros_(self.norm2.get_parameter("weight"))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = make_conv(inputs, outputs, 1, norm=norm, stride=stride)
            self.shortcut = nn.Sequential(conv, make_norm(outputs, norm=norm))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, in, H, W] -> [B, out, H / stride, W / stride]."""
        branch = F.relu(self.norm1(self.conv1(maps)))
        return F.relu(self.shortcut(maps) + self.norm2(self.conv2(branch)))


class NarrowStage(nn.Module):
    """Convolve, halve by max pooling, then one residual convolution on the small map; GELU."""

    def __init__(self, inputs: int, outputs: int, *, norm: str) -> None:
        super().__init__()
        self.conv1 = make_conv(inputs, outputs, 3, norm=norm)
        self.norm1 = make_norm(outputs, norm=norm)
        self.conv2 = make_conv(outputs, outputs, 3, norm=norm)
        self.norm2 = make_norm(outputs, norm=norm)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, in, H, W] -> [B, out, H / 2, W / 2]."""
        maps = F.gelu(self.norm1(F.max_pool2d(self.conv1(maps), 2)))
        return maps + F.gelu(self.norm2(self.conv2(maps)))


class PlainStage(nn.Module):
    """One convolution, halved by max pooling; GELU. For images too small for anything deeper."""

    def __init__(self, inputs: int, outputs: int, *, norm: str) -> None:
        super().__init__()
        self.conv = make_conv(inputs, outputs, 3, norm=norm)
        self.norm = make_norm(outputs, norm=norm)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, in, H, W] -> [B, out, H / 2, W / 2]."""
        return F.gelu(self.norm(F.max_pool2d(self.conv(maps), 2)))


class PatchCosines(nn.Module):
    """Fixed 2x2 opponent-colour cosine filters and their negatives, then GELU; nothing to train.

    The cosines of an opponent-colour image are close to the principal axes of natural patches;
    dividing each by a typical deviation whitens them without a look at any client's data.
    Images [B, C, H, W] -> maps [B, 8 C, H - 1, W - 1].
    """

    filters: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filters", patch_cosines(channels), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Whitened patches and their negatives, passed through GELU."""
        maps = F.conv2d(images, self.filters)
        return F.gelu(torch.cat([maps, -maps], dim=1))


def patch_cosines(channels: int) -> Tensor:
    """Whitening filters [4 C, C, 2, 2]: colour axes times 2x2 cosines, over a typical deviation.

    The deviations are constants of photographs in the units of ``data.normalise``. Three channels
    are turned to opponent colours first; any other number of channels is taken as it is.

    >>> patch_cosines(3).shape
    torch.Size([12, 3, 2, 2])
    """
    wave = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    cosines = torch.einsum("ij,kl->ikjl", wave, wave).reshape(4, 2, 2)
    axes = torch.eye(channels)
    deviations = torch.tensor([[3.2, 0.6, 0.6, 0.23]]).repeat(channels, 1)
    if channels == 3:
        axes = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]))
        deviations[1] = torch.tensor([0.93, 0.12, 0.13, 0.07])
        deviations[2] = torch.tensor([0.46, 0.10, 0.10, 0.06])
    filters = torch.einsum("oc,dij->odcij", axes, cosines) / deviations[:, :, None, None, None]
    return filters.reshape(4 * channels, channels, 2, 2)


def make_stem(
    stem: str, in_channels: int, width: int, *, norm: str, activation: type[nn.Module]
) -> tuple[nn.Module, int]:
    """The stem and how many channels it gives; a learned stem is never weight-standardised."""
    if stem == "cosine":
        return PatchCosines(in_channels), 8 * in_channels
    kernel, stride, padding = (2, 2, 0) if stem == "patch" else (3, 1, 1)
    conv = nn.Conv2d(in_channels, width, kernel, stride=stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    parts = [conv, make_norm(width, norm=norm), activation()]
    if stem == "pool":
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts), width


def _resnet_stages(inputs: int, widths: Sequence[int], norm: str) -> list[nn.Module]:
    stages: list[nn.Module] = []
    for index, width in enumerate(widths):
        first = BasicBlock(inputs, width, stride=1 if index == 0 else 2, norm=norm)
        stages.append(nn.Sequential(first, BasicBlock(width, width, stride=1, norm=norm)))
        inputs = width
    return stages


def _narrow_stages(inputs: int, widths: Sequence[int], norm: str) -> list[nn.Module]:
    return [NarrowStage(*pair, norm=norm) for pair in pairwise((inputs, *widths))]


def _plain_stages(inputs: int, widths: Sequence[int], norm: str) -> list[nn.Module]:
    return [PlainStage(*pair, norm=norm) for pair in pairwise((inputs, *widths))]


@dataclass(frozen=True)
class _Family:
    """What the extractors of one name share, and the options they allow."""

    stages: Callable[[int, Sequence[int], str], list[nn.Module]]
    activation: type[nn.Module]
    widths: tuple[int, ...]
    halvings: int
    stems: tuple[str, ...]
    pool: str

    def build(
        self, in_channels: int, *, norm: str, widths: Sequence[int], stem: str, pool: str
    ) -> StagedExtractor:
        """The extractor; all options are known to be valid, except the divisibility of widths."""
        root, inputs = make_stem(
            stem, in_channels, widths[0], norm=norm, activation=self.activation
        )
        cut = self.pool if pool == "last" else pool
        return StagedExtractor(root, self.stages(inputs, widths, norm), widths, pool=cut)


_STEMS: Final = ("cifar", "patch", "pool")
_FAMILIES: Final = {
    "digits": _Family(
        _plain_stages, nn.GELU, (32, 64), 2, ("patch", "cifar", "pool", "cosine"), "last-max"
    ),
    "narrow": _Family(_narrow_stages, nn.GELU, (32, 128, 256), 3, ("cosine", *_STEMS), "last-max"),
    "resnet18": _Family(_resnet_stages, nn.ReLU, (64, 128, 256, 512), 3, _STEMS, "last-mean"),
}
EXTRACTORS: Final = (*_FAMILIES, "linear")


def build_extractor(
    name: str,
    *,
    in_channels: int = 3,
    image_size: int = 32,
    norm: str = "group-ws",
    widths: Sequence[int] | None = None,
    stem: str | None = None,
    pool: str = "last",
) -> Extractor:
    """Build a feature extractor by name.

    Args:
        name: ``resnet18`` (He et al. 2015), ``narrow`` (a fast residual net for CPUs), ``digits``
            (tiny, for grey images of 8 to 28 pixels) or ``linear`` (the pixels themselves).
        in_channels: Channels of the images.
        image_size: Height and width of the images, in pixels.
        norm: ``group``, ``group-ws`` (weight-standardised convolutions), ``batch`` or ``frozen``.
        widths: Channels of the stages; None for the defaults of the name.
        stem: ``cifar`` (3x3), ``pool`` (3x3, then halved: cheaper), ``patch`` (2x2 with stride 2:
            cheapest) or, not for resnet18, ``cosine`` (fixed 2x2 cosines). None: the name's own.
        pool: The cut: ``last`` (what trains best for the name), ``last-max``, ``last-mean`` or
            ``multi`` (mean of the last stage and 3x3 grids of the earlier ones).

    Raises:
        ConfigError: An option is unknown, the images are too small, or a width has no 8 groups.

    >>> build_extractor("narrow").latent_dim
    256
    >>> build_extractor("linear", in_channels=1, image_size=28).latent_dim
    784
    """
    check_choice("extractor", name, EXTRACTORS)
    check_choice("norm", norm, NORMS)
    check_choice("pool", pool, POOLS)
    if name == "linear":
        return FlattenExtractor(in_channels * image_size**2)
    family = _FAMILIES[name]
    stem = family.stems[0] if stem is None else stem
    check_choice(f"stem of {name}", stem, family.stems)
    widths = family.widths if widths is None else tuple(widths)
    if len(widths) != len(family.widths) or min(widths) < 1:
        raise ConfigError(
            f"widths of {name} are {widths}; allowed: {len(family.widths)} positive numbers"
        )
    _check_size(name, image_size, stem=stem, halvings=family.halvings)
    return family.build(in_channels, norm=norm, widths=widths, stem=stem, pool=pool)


def _check_size(name: str, image_size: int, *, stem: str, halvings: int) -> None:
    smallest = 2 ** (halvings + (stem in ("patch", "pool"))) + (stem == "cosine")
    if image_size < smallest:
        raise ConfigError(
            f"image size is {image_size}; {name} with stem {stem!r} needs {smallest} or more"
        )
