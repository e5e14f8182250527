"""What the clients' sums make of an extractor: latents of mean 0 and one scale, or components."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError

__all__ = ["Standard", "add_standard", "standardised"]


class Standard(nn.Module):
    """Latents [B, D] to standardised ones: scale * (x - mean), or matrix (x - mean).

    Until it is solved from sums (`nmoe_flower.sums.standardisation`) it changes nothing, or, if it
    has components, keeps the first numbers. Nothing of it is trained.

    With ``unit`` latents are brought to norm 1 first: as the private sums were made.

    Attributes:
        latent_dim: Numbers of a standardised latent: k components, or D.

    Raises:
        ConfigError: There are more components than numbers in a latent.

    >>> Standard(3)(torch.ones(1, 3))
    tensor([[1., 1., 1.]])
    >>> Standard(3, components=2)(torch.ones(1, 3)).shape
    torch.Size([1, 2])
    """

    mean: Tensor
    scale: Tensor
    matrix: Tensor

    def __init__(self, latent_dim: int, *, components: int = 0, unit: bool = False) -> None:
        super().__init__()
        if not 0 <= components <= latent_dim:
            raise ConfigError(
                f"head.components is {components}, and latents have {latent_dim} numbers; allowed: "
                f"0 (all) to {latent_dim}"
            )
        self.components, self.unit = components, unit
        self.latent_dim = components or latent_dim
        self.register_buffer("mean", torch.zeros(latent_dim))
        if components:
            self.register_buffer("matrix", torch.eye(components, latent_dim))
        else:
            self.register_buffer("scale", torch.ones(latent_dim))

    def forward(self, latents: Tensor) -> Tensor:
        """Standardise latents [B, D]: [B, k] or [B, D]."""
        if self.unit:
            latents = F.normalize(latents, dim=1)
        centred = latents - self.mean
        return centred @ self.matrix.T if self.components else centred * self.scale


def add_standard(extractor: nn.Module, *, components: int = 0, unit: bool = False) -> None:
    """Give an extractor the submodule ``standard``, which its latents pass from now on.

    ``extractor(images)`` is standardised then, ``extractor.forward(images)`` as before: any module
    can be had so, whatever its ``forward`` does. Its ``latent_dim`` becomes the number of
    components.

    Raises:
        ConfigError: As `Standard`.
    """
    dim = int(extractor.latent_dim)  # type: ignore[arg-type]
    standard = Standard(dim, components=components, unit=unit)
    extractor.standard = standard
    if components:
        extractor.latent_dim = components  # type: ignore[assignment]
    extractor.register_forward_hook(lambda module, images, raw: standardised(module, raw))


def standardised(extractor: nn.Module, raw: Tensor) -> Tensor:
    """What an extractor makes of raw latents [B, D], wherever these come from: [B, k] or [B, D]."""
    standard = getattr(extractor, "standard", None)
    return raw if standard is None else standard(raw)
