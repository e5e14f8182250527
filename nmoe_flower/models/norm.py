"""Convolutions and normalisation layers, chosen together by one name.

Averaging BatchNorm statistics of skewed clients destroys a model, so the norm is a choice of the
recipe. Only ``batch`` keeps running statistics; the other three hold parameters alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError

GROUPS = 8
NORMS = ("batch", "frozen", "group", "group-ws")
ACTIVATION_GAIN = 1.7


class StandardisedConv2d(nn.Conv2d):
    """Convolution whose filters have mean 0 and variance 1 / fan-in at every use.

    Each output filter is standardised over its inputs before the convolution, so a GroupNorm
    behind it sees maps of a stable scale. Statistics are taken in float32, also under autocast.

    Source: Qiao et al. 2019 (weight standardisation); the 1 / fan-in scale is that of Brock et
    al. 2021 (scaled weight standardisation).

    >>> conv = StandardisedConv2d(2, 4, 3)
    >>> bool(conv.standardised_weight().mean(dim=(1, 2, 3)).abs().max() < 1e-6)
    True
    """

    def standardised_weight(self) -> Tensor:
        """Filters [out, in, k, k] with mean 0 and sum of squares 1, float32, layout kept."""
        last = self.weight.is_contiguous(memory_format=torch.channels_last)
        weight = self.weight.permute(0, 2, 3, 1) if last else self.weight
        rows = weight.float().flatten(1)
        scaled: Tensor = F.layer_norm(rows, rows.shape[1:], eps=1e-8) * rows.shape[1] ** -0.5
        filters = scaled.view(weight.shape)
        return filters.permute(0, 3, 1, 2) if last else filters

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, in, H, W] -> [B, out, H', W']."""
        maps: Tensor = self._conv_forward(input, self.standardised_weight(), self.bias)
        return maps


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


def make_conv(inputs: int, outputs: int, kernel: int, *, norm: str, stride: int = 1) -> nn.Conv2d:
    """A bias-free "same" convolution of the kind ``norm`` needs, He-initialised."""
    standardised = norm in ("frozen", "group-ws")
    kind = StandardisedConv2d if standardised else nn.Conv2d
    conv = kind(inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    return conv


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
    return nn.GroupNorm(GROUPS, channels)


def check_choice(what: str, value: str, allowed: Sequence[str]) -> None:
    """Raise a ConfigError that lists the allowed values unless the value is one of them."""
    if value not in allowed:
        raise ConfigError(f"{what} is {value!r}; allowed: {', '.join(allowed)}")
