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

from nmoe_flower.catalogue import BACKBONES, found
from nmoe_flower.errors import ConfigError
from nmoe_flower.models.blocks import (
    NORMS,
    BasicBlock,
    NarrowBlock,
    NarrowStage,
    PlainStage,
    check_choice,
    make_stem,
)

POOLS: Final = ("last", "last-max", "last-mean", "multi")
MULTI_GRID: Final = 3
LATENT_SCALE: Final = 0.25


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


class MLPExtractor(Extractor):
    """Linear layers, each with GELU: rows of features, or flattened pixels, to latents.

    Latents are centred and scaled as those of the staged extractors are: one rate suits all.
    """

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((inputs, *widths)):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.latent_dim = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Latents [B, D] of features [B, F, 1, 1] or images [B, C, H, W]."""
        found = self.layers(images.flatten(1)).float()
        return F.layer_norm(found, found.shape[1:]) * LATENT_SCALE


class StagedExtractor(Extractor):
    """A stem, then stages of shrinking maps, then a cut: which maps are pooled to the latents.

    The cut ``multi`` joins the mean of the last stage with every earlier stage pooled to a 3x3
    grid; earlier maps serve self-supervised training, whose last layer is a poor feature.

    Each latent is then centred and scaled to the root mean square ``LATENT_SCALE``, so one
    learning rate suits the convolutions and a head at any width: raw maxima share a large
    positive mean, on which a head of several layers died at the rate the convolutions need.

    Attributes:
        mirror: Whether the maps of an image and of its mirror image are averaged, outside training.
    """

    mirror = False

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
        """Latents [B, D] of images [B, C, H, W], each of mean 0 and one scale."""
        pooled = self.pooled(images)
        if self.mirror and not self.training:
            pooled = (pooled + self.pooled(images.flip(-1))) / 2
        return F.layer_norm(pooled, pooled.shape[1:]) * LATENT_SCALE

    def pooled(self, images: Tensor) -> Tensor:
        """The pooled maps [B, D] before they are centred and scaled, float32."""
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


def _resnet_stages(inputs: int, widths: Sequence[int], norm: str) -> list[nn.Module]:
    stages: list[nn.Module] = []
    for index, width in enumerate(widths):
        first = BasicBlock(inputs, width, stride=1 if index == 0 else 2, norm=norm)
        stages.append(nn.Sequential(first, BasicBlock(width, width, stride=1, norm=norm)))
        inputs = width
    return stages


def _narrow_stages(inputs: int, widths: Sequence[int], norm: str) -> list[nn.Module]:
    return [NarrowStage(*pair, norm=norm) for pair in pairwise((inputs, *widths))]


def _narrow_residual_stages(inputs: int, widths: Sequence[int], norm: str) -> list[nn.Module]:
    return [
        nn.Sequential(stage, NarrowBlock(width, norm=norm))
        for stage, width in zip(_narrow_stages(inputs, widths, norm), widths, strict=True)
    ]


def _plain_stages(inputs: int, widths: Sequence[int], norm: str) -> list[nn.Module]:
    return [PlainStage(*pair, norm=norm) for pair in pairwise((inputs, *widths))]


@dataclass(frozen=True)
class StagedFamily:
    """What the staged extractors of one name share, and the options they allow.

    Attributes:
        name: Name of the family in the configuration.
        stages: Makes the stages from the channels of the stem, the widths and the norm.
        activation: After the stem.
        widths: Default channels of the stages.
        halvings: How often the stages halve the maps.
        stems: Those allowed; the first is the default.
        pool: The cut that trains best.
    """

    name: str
    stages: Callable[[int, Sequence[int], str], list[nn.Module]]
    activation: type[nn.Module]
    widths: tuple[int, ...]
    halvings: int
    stems: tuple[str, ...]
    pool: str

    def __call__(
        self,
        *,
        in_channels: int,
        image_size: tuple[int, int],
        norm: str,
        widths: Sequence[int] | None,
        stem: str | None,
        pool: str,
    ) -> StagedExtractor:
        """Build one; arguments and errors are those of `build_extractor`."""
        stem = self.stems[0] if stem is None else stem
        check_choice(f"stem of {self.name}", stem, self.stems)
        widths = self.widths if widths is None else tuple(widths)
        if len(widths) != len(self.widths) or min(widths) < 1:
            raise ConfigError(
                f"widths of {self.name} are {widths}; allowed: {len(self.widths)} positive numbers"
            )
        _check_size(self.name, image_size, stem=stem, halvings=self.halvings)
        root, inputs = make_stem(
            stem, in_channels, widths[0], norm=norm, activation=self.activation
        )
        cut = self.pool if pool == "last" else pool
        return StagedExtractor(root, self.stages(inputs, widths, norm), widths, pool=cut)


_STEMS: Final = ("cifar", "patch", "pool")
DIGITS: Final = StagedFamily(
    "digits", _plain_stages, nn.GELU, (32, 64), 2, ("patch", "cifar", "pool", "cosine"), "last-max"
)
NARROW: Final = StagedFamily(
    "narrow", _narrow_stages, nn.GELU, (32, 128, 256), 3, ("cosine", *_STEMS), "last-max"
)
NARROW_RESIDUAL: Final = StagedFamily(
    "narrow-residual",
    _narrow_residual_stages,
    nn.GELU,
    (64, 256, 256),
    3,
    ("cosine", *_STEMS),
    "last-max",
)
RESNET18: Final = StagedFamily(
    "resnet18", _resnet_stages, nn.ReLU, (64, 128, 256, 512), 3, _STEMS, "last-mean"
)
_MLP_WIDTHS: Final = (128, 128)


def build_extractor(
    name: str,
    *,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 32,
    norm: str = "group-ws",
    widths: Sequence[int] | None = None,
    stem: str | None = None,
    pool: str = "last",
) -> Extractor:
    """Build a feature extractor by name.

    Args:
        name: Backbone: ``resnet18`` (He et al. 2015), ``narrow`` (a fast residual net for CPUs),
            ``narrow-residual`` (twice as deep, each stage with a residual block more),
            ``digits`` (tiny, for grey images of 8 to 28 pixels), ``mlp`` (linear layers, for rows
            of features) or ``linear`` (the pixels or features themselves).
        in_channels: Channels of the images.
        image_size: Side of square images, or (height, width), in pixels.
        norm: Normalisation: ``group``, ``group-ws`` (weight-standardised convolutions), ``batch``
            or ``frozen``.
        widths: Channels of the stages, or widths of the layers of ``mlp``; None for the defaults
            of the name.
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
    check_choice("extractor", name, tuple(BACKBONES))
    check_choice("norm", norm, NORMS)
    check_choice("pool", pool, POOLS)
    built: Extractor = found(BACKBONES[name].builder)(
        in_channels=in_channels,
        image_size=sides(image_size),
        norm=norm,
        widths=widths,
        stem=stem,
        pool=pool,
    )
    return built


def build_linear(
    *, in_channels: int, image_size: tuple[int, int], **ignored: object
) -> FlattenExtractor:
    """The pixels or features themselves; it has no options."""
    return FlattenExtractor(in_channels * math.prod(image_size))


def build_mlp(
    *,
    in_channels: int,
    image_size: tuple[int, int],
    widths: Sequence[int] | None,
    stem: str | None,
    pool: str,
    **ignored: object,
) -> MLPExtractor:
    """Linear layers on features or pixels; arguments and errors are those of `build_extractor`."""
    widths = _MLP_WIDTHS if widths is None else tuple(widths)
    if not widths or min(widths) < 1:
        raise ConfigError(f"widths of mlp are {widths}; allowed: one or more positive numbers")
    if stem is not None or pool != "last":
        given = f"stem {stem!r}" if stem is not None else f"pool {pool!r}"
        raise ConfigError(f"mlp has no maps for {given}; allowed: no stem, and pool 'last'")
    return MLPExtractor(in_channels * math.prod(image_size), widths)


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def size_in_words(image_size: int | tuple[int, int]) -> str:
    """``8``, or ``12x8 (width x height)``.

    >>> size_in_words((8, 8)), size_in_words((8, 12))
    ('8', '12x8 (width x height)')
    """
    height, width = sides(image_size)
    return str(height) if height == width else f"{width}x{height} (width x height)"


def _check_size(name: str, image_size: int | tuple[int, int], *, stem: str, halvings: int) -> None:
    smallest = 2 ** (halvings + (stem in ("patch", "pool"))) + (stem == "cosine")
    if min(sides(image_size)) < smallest:
        raise ConfigError(
            f"image size is {size_in_words(image_size)}; {name} with stem {stem!r} needs "
            f"{smallest} or more"
        )
