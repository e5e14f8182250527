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
        self.dropout = nn.Dropout(dropout)

    def forward(self, latents: Tensor, rows: Tensor) -> Tensor:
        """Weights of K heads for each image and class, [B, C, K]; in sum 1 without dropout.

        Args:
            latents: Latents of images, [B, D].
            rows: Row of each class in each head, [K, C, D].
        """
        asked = self.query(latents[:, :: self._stride]).unflatten(1, (self._parts, -1))
        keys = self.key(rows[..., :: self._stride]).unflatten(2, (self._parts, -1))
        alike = torch.einsum("bpe,kcpe->bpck", F.normalize(asked, dim=2), F.normalize(keys, dim=3))
        weights: Tensor = self.dropout((self._scale * alike).softmax(dim=3)).mean(dim=1)
        return weights
