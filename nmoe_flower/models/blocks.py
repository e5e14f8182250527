"""What extractors are made of: stems that read the pixels, and stages that shrink the maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.models.norm import make_conv, make_norm


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
