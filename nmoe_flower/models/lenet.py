"""LeNet-5 without its three last layers, which are the head: the backbone of the study pfl-moe.

It is found as one's own code is: ``nmoe_flower.models.lenet:LeNet5``.
"""

import torch
from torch import nn

__all__ = ["LeNet5"]


class LeNet5(nn.Module):
    """Two convolutions of 5 x 5, each with ReLU and a pool of 2 x 2: of 32 x 32 pixels D = 400."""

    def __init__(self, *, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        height, width = ((size - 4) // 2 for size in image_size)
        self.latent_dim = 16 * ((height - 4) // 2) * ((width - 4) // 2)
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Latents [B, D] of images [B, in_channels, *image_size]."""
        latents: torch.Tensor = self.body(images)
        return latents
