"""What extractors are made of: convolutions and norms, stems that read the pixels, stages.

Averaging BatchNorm statistics of skewed clients destroys a model, so the norm is a choice of the
recipe. Only ``batch`` keeps running statistics; the other three hold parameters alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import winograd

GROUPS = 8
NORMS = ("batch", "frozen", "group", "group-ws")
ACTIVATION_GAIN = 1.7
_VECTOR = 16  # channels of a group from which torch's GroupNorm is fast in bfloat16
_LARGE = 1024  # places of a map from which it takes another way


class TiledConv2d(nn.Conv2d):
    """A convolution, computed in tiles where that is faster: see `nmoe_flower.models.winograd`.

    >>> TiledConv2d(2, 4, 3, padding=1)(torch.zeros(1, 2, 8, 8)).shape
    torch.Size([1, 4, 8, 8])
    """

    def filters(self) -> Tensor:
        """What maps are convolved with, [out, in, k, k]."""
        return self.weight

    def forward(self, input: Tensor, *, even: bool = False) -> Tensor:
        """Maps [B, in, H, W] -> [B, out, H', W'].

        Args:
            input: The maps.
            even: Nobody looks at the last row or column of an odd number of them: they may be
                missing.
        """
        filters = self.filters()
        shape = [size - size % 2 if even else size for size in input.shape[-2:]]
        if winograd.pays(self, input, shape):
            return winograd.convolve(input, filters, shape)
        maps: Tensor = self._conv_forward(input, filters, self.bias)
        return maps


class StandardisedConv2d(TiledConv2d):
    """Convolution whose filters have mean 0 and variance 1 / fan-in at every use.

    Each output filter is standardised over its inputs before the convolution, so a GroupNorm
    behind it sees maps of a stable scale. Statistics are taken in float32, also under autocast.

    Source: Qiao et al. 2019 (weight standardisation); the 1 / fan-in scale is that of Brock et
    al. 2021 (scaled weight standardisation).

    >>> conv = StandardisedConv2d(2, 4, 3)
    >>> bool(conv.filters().mean(dim=(1, 2, 3)).abs().max() < 1e-6)
    True
    """

    def filters(self) -> Tensor:
        """Filters [out, in, k, k] with mean 0 and sum of squares 1, float32, layout kept."""
        last = self.weight.is_contiguous(memory_format=torch.channels_last)
        weight = self.weight.permute(0, 2, 3, 1) if last else self.weight
        rows = weight.float().flatten(1)
        scaled: Tensor = F.layer_norm(rows, rows.shape[1:], eps=1e-8) * rows.shape[1] ** -0.5
        filters = scaled.view(weight.shape)
        return filters.permute(0, 3, 1, 2) if last else filters


class ChannelAffine(nn.Module):
    """A scale and a shift per channel: BatchNorm with statistics fixed at mean 0, variance 1.

    Maps [B, C, H, W] -> [B, C, H, W]. It has no statistics, so nothing but parameters is averaged.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), ACTIVATION_GAIN))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Scale and shift every channel, in the dtype of the maps."""
        scale = self.weight.to(maps.dtype).view(-1, 1, 1)
        return maps * scale + self.bias.to(maps.dtype).view(-1, 1, 1)


def make_conv(inputs: int, outputs: int, kernel: int, *, norm: str, stride: int = 1) -> TiledConv2d:
    """A bias-free "same" convolution of the kind ``norm`` needs, He-initialised."""
    standardised = norm in ("frozen", "group-ws")
    kind = StandardisedConv2d if standardised else TiledConv2d
    conv = kind(inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    return conv


def convolve_and_halve(conv: TiledConv2d, maps: Tensor) -> Tensor:
    """A "same" convolution, then max pooling: [B, in, H, W] -> [B, out, H / 2, W / 2]."""
    return _halved(conv(maps, even=True))


def _halved(maps: Tensor) -> Tensor:
    """Max pooling of 2 x 2; where there is no way back, without eight bytes for each place."""
    if torch.is_grad_enabled() or maps.device.type != "cpu":
        return F.max_pool2d(maps, 2)
    rows, columns = (size - size % 2 for size in maps.shape[-2:])
    maps = maps[..., :rows, :columns]
    maps = torch.maximum(maps[..., ::2, :], maps[..., 1::2, :])
    return torch.maximum(maps[..., ::2], maps[..., 1::2])


class GroupNorm(nn.GroupNorm):
    """GroupNorm that takes small maps of few channels to float32 where torch's kernel is slow.

    On a CPU torch walks through a group of bfloat16 number by number if its channels do not fill a
    vector: two to three times as long as in float32, conversions included.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, C, H, W] -> the same, normalised within groups."""
        few = self.num_channels < _VECTOR * self.num_groups and math.prod(input.shape[2:]) < _LARGE
        if few and input.dtype == torch.bfloat16 and input.device.type == "cpu":
            return super().forward(input.float()).to(input.dtype)
        return super().forward(input)


def make_norm(channels: int, *, norm: str) -> nn.Module:
    """The normalisation layer of ``norm`` for that many channels.

    Raises:
        ConfigError: The name is unknown, or groups do not divide the channels.
    """
    check_choice("norm", norm, NORMS)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "frozen":
        return ChannelAffine(channels)
    if channels % GROUPS:
        raise ConfigError(
            f"width {channels} cannot be split into {GROUPS} groups; norm {norm!r} needs "
            f"multiples of {GROUPS}"
        )
    return GroupNorm(GROUPS, channels)


def check_choice(what: str, value: str, allowed: Sequence[str]) -> None:
    """Raise a ConfigError that lists the allowed values unless the value is one of them."""
    if value not in allowed:
        raise ConfigError(f"{what} is {value!r}; allowed: {', '.join(allowed)}")


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
        maps = F.gelu(self.norm1(convolve_and_halve(self.conv1, maps)))
        return maps + F.gelu(self.norm2(self.conv2(maps)))


class NarrowBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, GELU after each; the branch starts at zero.

    Its last scale is zero, so that a deep net starts as the shallow one and trains at its rate.
    """

    def __init__(self, width: int, *, norm: str) -> None:
        super().__init__()
        self.conv1 = make_conv(width, width, 3, norm=norm)
        self.norm1 = make_norm(width, norm=norm)
        self.conv2 = make_conv(width, width, 3, norm=norm)
        self.norm2 = make_norm(width, norm=norm)
        nn.init.zeros_(self.norm2.get_parameter("weight"))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, C, H, W] -> maps of the same shape."""
        branch = F.gelu(self.norm1(self.conv1(maps)))
        return maps + F.gelu(self.norm2(self.conv2(branch)))


class PlainStage(nn.Module):
    """One convolution, halved by max pooling; GELU. For images too small for anything deeper."""

    def __init__(self, inputs: int, outputs: int, *, norm: str) -> None:
        super().__init__()
        self.conv = make_conv(inputs, outputs, 3, norm=norm)
        self.norm = make_norm(outputs, norm=norm)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, in, H, W] -> [B, out, H / 2, W / 2]."""
        return F.gelu(self.norm(convolve_and_halve(self.conv, maps)))


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
