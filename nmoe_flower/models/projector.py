"""What FedSC trains: an extractor, and a projector that is dropped afterwards."""

from torch import Tensor, nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.extractor import Extractor

__all__ = ["Contrastive", "Projector"]

_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}


class Projector(nn.Module):
    """Latents [B, D] to features [B, d] through one hidden layer, as in FedSC.

    ``batch`` normalises the hidden layer over the batch: it keeps features from collapsing to
    their mean, and mixes the samples of a batch while training.

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
