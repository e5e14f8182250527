"""What FedSC trains: an extractor, and a projector that is dropped afterwards."""

import torch
from torch import Tensor, nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.extractor import Extractor

__all__ = ["Contrastive", "Projector", "SharedNorm"]


class SharedNorm(nn.Module):
    """BatchNorm by the running statistics of all clients, in training too: [B, D] -> [B, D].

    The statistics of a skewed client's batch are those of its main class: BatchNorm subtracts
    there what tells the class from the others', and no exchange of matrices brings it back. Here a
    step takes the statistics it received as constants, the same on every client, and adds its
    batch to them; the server averages them with the weights. First and second moments are kept, so
    their average over clients is that of the pooled batches.

    Args:
        dim: D.
        momentum: Weight of a batch in the statistics; the first batches weigh equally.
    """

    running_mean: Tensor
    running_square: Tensor
    num_batches_tracked: Tensor

    def __init__(self, dim: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_square", torch.ones(dim))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by what was received; in training, count this batch for the next."""
        mean, square = self.running_mean, self.running_square
        if self.training:
            self._count(x.detach().to(mean))
        scale = self.weight * (square - mean.square() + self.eps).rsqrt()
        return (x - mean) * scale + self.bias

    @torch.no_grad()
    def _count(self, x: Tensor) -> None:
        self.num_batches_tracked += 1
        part = max(self.momentum, 1 / int(self.num_batches_tracked))
        self.running_mean = self.running_mean.lerp(x.mean(dim=0), part)
        self.running_square = self.running_square.lerp(x.square().mean(dim=0), part)


_NORMS = {
    "batch": nn.BatchNorm1d, "shared": SharedNorm, "layer": nn.LayerNorm, "none": nn.Identity,
}  # fmt: skip


class Projector(nn.Module):
    """Latents [B, D] to features [B, d] through one hidden layer, as in FedSC.

    ``batch`` normalises the hidden layer over the batch: it keeps features from collapsing to
    their mean, and mixes the samples of a batch while training. ``shared``: see ``SharedNorm``.

    Raises:
        ConfigError: A width is below 1, or the norm is unknown.
    """

    def __init__(self, latent_dim: int, dim: int, *, hidden: int, norm: str = "batch") -> None:
        super().__init__()
        if min(latent_dim, dim, hidden) < 1:
            raise ConfigError(
                f"every width of a projector must be at least 1, got latent_dim={latent_dim}, "
                f"hidden={hidden}, dim={dim}"
            )
        if norm not in _NORMS:
            raise ConfigError(f"projector norm is {norm!r}; allowed: {', '.join(_NORMS)}")
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden, bias=norm == "none"),
            _NORMS[norm](hidden),
            nn.ReLU(),
            nn.Linear(hidden, dim, bias=False),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Features [B, d], not yet in the unit ball."""
        features: Tensor = self.layers(latents)
        return features


class Contrastive(nn.Module):
    """``projector(extractor(images))``: images [B, C, H, W] to features [B, d]."""

    def __init__(self, extractor: Extractor, projector: Projector) -> None:
        super().__init__()
        self.extractor = extractor
        self.projector = projector

    def forward(self, images: Tensor) -> Tensor:
        """Project the latents of images."""
        features: Tensor = self.projector(self.extractor(images))
        return features
