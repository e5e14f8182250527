"""A given extractor with low-rank adapters (Hu et al. 2021) on its last blocks.

An adapter adds ``scale B A`` to the weights of a 1x1 convolution or a linear layer, with A [r, in]
and B [out, r]. The backbone stays as it was given; adapters are all of the extractor that is
trained, kept and sent.
"""

import torch
from torch import Tensor, nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.given import FrozenBackbone, PretrainedExtractor
from nmoe_flower.models.halves import Halves

__all__ = ["AdaptedExtractor"]


class Adapter(nn.Module):
    """What is added to the weights of one layer: nothing at first, since B is zero.

    Args:
        inputs: Columns that the weights have.
        outputs: Rows that the weights have.
        rank: Rank of what is added, r.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.A = nn.Parameter(torch.empty(rank, inputs).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self) -> Tensor:
        """B A, [outputs, inputs]."""
        return self.B @ self.A


class AdaptedExtractor(PretrainedExtractor):
    """A frozen backbone whose last blocks have adapters; A is drawn from torch's global stream.

    Args:
        backbone: What is adapted; all extractors of a process share it.
        blocks: How many of its last blocks, as `Halves` counts them.
        rank: Rank of the adapters, r.
        scale: Factor of B A.

    Attributes:
        halves: The backbone below the blocks, and the blocks.

    Raises:
        ConfigError: The backbone lacks such blocks, or a layer has fewer inputs or outputs than
            the rank.
    """

    def __init__(self, backbone: FrozenBackbone, *, blocks: int, rank: int, scale: float) -> None:
        super().__init__(backbone)
        self.halves = Halves(backbone, blocks)
        self.scale = scale
        sides = {name: min(w.shape[:2]) for name, w in self.halves.layers.items()}
        narrowest = min(sides, key=sides.__getitem__)
        if not 1 <= rank <= sides[narrowest]:
            raise ConfigError(
                f"extractor.adapter-rank = {rank}; allowed: 1 to {sides[narrowest]}, the least "
                f"side of the layer {narrowest} of {backbone.name}"
            )
        self.adapters = nn.ModuleDict(
            {
                _key(name): Adapter(weights.shape[1], weights.shape[0], rank)
                for name, weights in self.halves.layers.items()
            }
        )

    def upper(self, rows: Tensor) -> Tensor:
        """Latents [B, D], float32, of rows [B, width] of ``halves.lower``."""
        weights = {
            name: frozen.to(rows.device)
            + self.scale * self.adapters[_key(name)]().view(frozen.shape)
            for name, frozen in self.halves.layers.items()
        }
        return self.halves.upper(rows, weights)

    def raw(self, images: Tensor) -> Tensor:
        """What the adapted backbone says to images [B, C, H, W]: [B, D], float32."""
        found = self.upper(self.halves.lower(images))
        if not self.backbone.mirror or self.training:
            return found
        return (found + self.upper(self.halves.lower(images.flip(-1)))) / 2


def _key(layer: str) -> str:
    """The name of a layer among modules, whose names have no dots."""
    return layer.replace(".", "/")
