"""EfficientNet-Lite0: a network trained on ImageNet that small devices can run."""

from collections.abc import Iterator, Mapping
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EfficientNetLite0"]

_EPSILON: Final = 1e-3  # of batch norm, as TensorFlow trained it
_STEM: Final = 32
# Of every stage: kernel, stride, expansion, channels, blocks.
_STAGES: Final = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class FoldedConv2d(nn.Conv2d):
    """A convolution that its batch norm is folded into, padded as TensorFlow's "SAME" pads.

    An odd pixel of padding goes to the right and below; `clip` keeps the outputs within 0 and 6.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        clip: bool,
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding=padding, groups=groups)
        self.clip = clip

    @torch.no_grad()
    def fold(self, state: Mapping[str, Tensor], conv: str, norm: str) -> None:
        """Take the weights of a convolution and of the batch norm behind it."""
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _EPSILON).sqrt()
        self.weight.copy_(state[f"{conv}.weight"] * scale[:, None, None, None])
        assert self.bias is not None
        self.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, inputs, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        if self.stride[0] > 1:
            (k, _), (s, _) = self.kernel_size, self.stride
            short = [max((-(-side // s) - 1) * s + k - side, 0) for side in input.shape[2:]]
            (top, left) = (total // 2 for total in short)
            input = F.pad(input, (left, short[1] - left, top, short[0] - top))
        maps = super().forward(input)
        return F.relu6(maps) if self.clip else maps


class Block(nn.Module):
    """Expansion, a convolution in each channel alone, projection; a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, times: int) -> None:
        super().__init__()
        width = inputs * times
        self.expand = FoldedConv2d(inputs, width, kernel=1, clip=True) if times > 1 else None
        self.depthwise = FoldedConv2d(
            width, width, kernel=kernel, stride=stride, groups=width, clip=True
        )
        self.project = FoldedConv2d(width, outputs, kernel=1, clip=False)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        wide = maps if self.expand is None else self.expand(maps)
        found: Tensor = self.project(self.depthwise(wide))
        return maps + found if self.shortcut else found


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its last stage (Tan and Le 2019; the "lite" form for devices).

    No squeeze-and-excitation, and ReLU6 in place of swish. Stages are counted from 0; those from 4
    on have 112, 192 and 320 channels, at a 16th and a 32nd of the side of the images.

    Attributes:
        stages: The seven stages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = FoldedConv2d(3, _STEM, kernel=3, stride=2, clip=True)
        stages, inputs = [], _STEM
        for kernel, stride, times, width, count in _STAGES:
            blocks = []
            for number in range(count):
                step = stride if number == 0 else 1
                blocks.append(Block(inputs, width, kernel=kernel, stride=step, times=times))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Self:
        """The network with the weights of a state.

        Args:
            state: Weights and batch norms, named as the public PyTorch port of TensorFlow's model
                names them (``_conv_stem.weight``, ``_blocks.0._bn1.bias``).

        Raises:
            KeyError: A name is missing.
            RuntimeError: A shape is another.
        """
        network = cls()
        for layer, conv, norm in network.layers():
            layer.fold(state, conv, norm)
        return network

    def layers(self) -> Iterator[tuple[FoldedConv2d, str, str]]:
        """Every convolution with the names of its weights and of its batch norm in a state."""
        yield self.stem, "_conv_stem", "_bn0"
        for number, block in enumerate(part for part in self.modules() if isinstance(part, Block)):
            at = f"_blocks.{number}."
            if block.expand is not None:
                yield block.expand, f"{at}_expand_conv", f"{at}_bn0"
            yield block.depthwise, f"{at}_depthwise_conv", f"{at}_bn1"
            yield block.project, f"{at}_project_conv", f"{at}_bn2"

    def forward(self, images: Tensor) -> Tensor:
        """The last stage's maps [B, 320, H / 32, W / 32] of images [B, 3, H, W]."""
        maps: Tensor = self.stem(images)
        for stage in self.stages:
            maps = stage(maps)
        return maps
