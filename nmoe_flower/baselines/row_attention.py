"""Attention over rows of heads, with an image's latents as the query."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["RowAttention"]


class RowAttention(nn.Module):
    """For every class, weights of several heads that depend on the image.

    Args:
        latent_dim: D, length of latents and rows.
        features: How many of the D numbers are read at most; they are strided.
        parts: How many attentions are averaged; fewer, if they do not divide the numbers read.
        scale: A score is the cosine of query and key, times this.
        dropout: Share of the weights that is dropped in training.
    """

    def __init__(
        self, latent_dim: int, *, features: int, parts: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self._scale = scale
        self._stride = -(-latent_dim // features)
        read = -(-latent_dim // self._stride)
        self._parts = math.gcd(parts, read)
        self.query = nn.Linear(read, read)
        self.key = nn.Linear(read, read)
        self._dropout = dropout

    def forward(self, latents: Tensor, rows: Tensor) -> Tensor:
        """Weights of K heads for each image and class, [B, C, K]; in sum 1 without dropout.

        Args:
            latents: Latents of images, [B, D].
            rows: Row of each class in each head, [K, C, D].
        """
        asked = self.query(latents[:, :: self._stride]).unflatten(1, (self._parts, -1))
        keys = self.key(rows[..., :: self._stride]).unflatten(2, (self._parts, -1))
        asked, keys = F.normalize(asked, dim=2), F.normalize(keys, dim=3)
        (heads, classes), images = rows.shape[:2], len(latents)
        flat = keys.flatten(0, 1).permute(1, 2, 0)  # [P, E, K * C]
        alike = torch.bmm(asked.transpose(0, 1), flat).view(self._parts, images, heads, classes)
        # Heads are not last: over a last dimension of a few softmax takes ten times as long.
        weights = (self._scale * alike).softmax(dim=2)
        if self.training:
            each = torch.ones(images, self._parts, classes, heads, device=latents.device)
            weights = weights * F.dropout(each, self._dropout).permute(1, 0, 3, 2)
        found: Tensor = weights.mean(dim=0).transpose(1, 2)
        return found
