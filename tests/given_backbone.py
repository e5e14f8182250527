"""A tiny network that stands for one that somebody else has trained."""

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Two stages, of 4 and 6 channels, and a mean; its weights are always the same."""

    latent_dim = 6

    def __init__(self, *, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.low = nn.Conv2d(in_channels, 4, 3, stride=2, padding=1)
        self.high = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self._fill()

    def _fill(self) -> None:
        source = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weights in self.parameters():
                weights.copy_(torch.randn(weights.shape, generator=source) / 3)
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        return self.high(torch.relu(self.low(images))).mean(dim=(2, 3))


class Huge(Tiny):
    """Its latents do not fit into float16."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * 1e6


class Narrowing(nn.Module):
    """A block as in networks for phones: 1x1, in each channel alone, 1x1; a shortcut if it fits."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, 2 * inputs, 1)
        self.depthwise = nn.Conv2d(2 * inputs, 2 * inputs, 3, padding=1, groups=2 * inputs)
        self.project = nn.Conv2d(2 * inputs, outputs, 1)
        self.shortcut = inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.project(torch.relu(self.depthwise(torch.relu(self.expand(maps)))))
        return maps + found if self.shortcut else found


class Chained(Tiny):
    """A stem and three blocks in a row, of 6, 8 and 8 channels: it can be entered at each."""

    latent_dim = 8

    def __init__(self, *, in_channels: int, image_size: tuple[int, int]) -> None:
        nn.Module.__init__(self)
        self.stem = nn.Conv2d(in_channels, 6, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Narrowing(6, 6), Narrowing(6, 8), Narrowing(8, 8))
        self._fill()

    def forward(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        maps: Tensor = self.blocks(self.stem(images))
        return maps.mean(dim=(2, 3))


class Interrupted(Chained):
    """Something is computed between the second block and the third."""

    def forward(self, images: Tensor) -> Tensor:
        first, second, third = self.blocks
        found: Tensor = third(torch.relu(second(first(self.stem(images)))))
        return found.mean(dim=(2, 3))


class Overwritten(Chained):
    """What the last block gave is changed in place, as a DenseNet does after its last norm."""

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.blocks(self.stem(images)).relu_()
        return found.mean(dim=(2, 3))


class TokenBlock(nn.Module):
    """A linear layer over tokens, which answers as the blocks of some libraries do: a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, *, gain: float = 1.0
    ) -> tuple[Tensor]:
        return (gain * torch.relu(self.linear(hidden if mask is None else hidden * mask)),)


class OfTokens(Tiny):
    """Two blocks over tokens, one token for each row of the image."""

    latent_dim = 8
    masked = False

    def __init__(self, *, in_channels: int, image_size: tuple[int, int]) -> None:
        nn.Module.__init__(self)
        width = in_channels * image_size[1]
        self.blocks = nn.ModuleList(TokenBlock(width) for _ in range(2))
        self._fill()

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = images.transpose(1, 2).flatten(2)
        mask = torch.ones(hidden.shape[:2])[:, :, None] if self.masked else None
        for block in self.blocks:
            (hidden,) = block(hidden, mask, gain=2.0)
        return hidden.mean(dim=1)


class Masked(OfTokens):
    """Its blocks read a mask, too, which depends on the images."""

    masked = True


class Tied(Chained):
    """Its two blocks are one and the same."""

    def __init__(self, *, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__(in_channels=in_channels, image_size=image_size)
        self.blocks = nn.Sequential(self.blocks[0], self.blocks[0])
