"""Two random views of a row of features for contrastive learning: noise, and features left out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nmoe_flower.errors import ConfigError

__all__ = ["FeatureViews"]


@dataclass(frozen=True)
class FeatureViews:
    """Gaussian noise on every feature, and a share of the features at their mean, drawn per row.

    Features are standardised, so noise is in deviations and the mean is 0. No row touches another:
    gradients and matrices of single samples stay what they are.

    Attributes:
        noise: Its standard deviation.
        mask: Share of the features that a view does not see, from 0 to below 1.

    Raises:
        ConfigError: A number is out of range.
    """

    noise: float = 0.2
    mask: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ConfigError(f"view noise is {self.noise}; allowed: 0 or more")
        if not 0 <= self.mask < 1:
            raise ConfigError(f"view mask is {self.mask}; allowed: 0 to below 1")

    def __call__(self, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two views of features [B, F, 1, 1], float32; equal seeds, equal views."""
        both = torch.cat([features, features])
        both = both + self.noise * torch.randn(both.shape, generator=generator)
        seen = torch.rand(both.shape, generator=generator) >= self.mask
        first, second = (both * seen).chunk(2)
        return first, second
