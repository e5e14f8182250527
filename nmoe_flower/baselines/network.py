"""The network that every published system trains: experts on a trunk, or whole ones, and a gate."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from nmoe_flower.catalogue import BASELINES
from nmoe_flower.clients.device import fresh_head, initial_seed
from nmoe_flower.config import Config
from nmoe_flower.models import Classifier, configured_extractor
from nmoe_flower.training import seeded

__all__ = ["ExpertNetwork", "cross_entropy", "distance"]


class ExpertNetwork(nn.Module):
    """K experts: heads on a shared ``trunk``, or whole networks without one (``baseline.size``).

    With ``latent_dim`` it reads latents of a given extractor, and has no trunk of its own.

    Attributes:
        trunk: From images to latents [B, D].
        expert: By id, ``"0"`` and on.
        gate: A linear score of latents for each expert, by id, at first 0; empty if not ``gated``.
        latent_dim: D; of whole networks the number of values of an image, for gates that read it.
        whole: Experts are whole networks.

    The experts are drawn one after the other: equal ones would stay equal for ever.
    """

    def __init__(
        self,
        config: Config,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        experts: int = 1,
        gated: bool = False,
        latent_dim: int = 0,
    ) -> None:
        super().__init__()
        with seeded(initial_seed(config, "baseline")):
            self.trunk: nn.Module = nn.Identity()
            self.latent_dim = latent_dim or math.prod(image_shape)
            several = BASELINES[config.run.system].several  # one alone has its trunk to itself
            self.whole = several and config.baseline.size == "net"
            self.expert = nn.ModuleDict()
            if not latent_dim:
                body = configured_extractor(config, image_shape)
                latent_dim = body.latent_dim
                if not self.whole:
                    self.trunk, self.latent_dim = body, latent_dim
            for expert in range(experts):
                head = fresh_head(config, latent_dim, num_classes)
                if not self.whole:
                    self.expert[str(expert)] = head
                    continue
                own = body if expert == 0 else configured_extractor(config, image_shape)
                self.expert[str(expert)] = Classifier(own, head)
        self.gate = nn.ModuleDict()
        for name in self.expert if gated else ():
            self.gate[name] = row = nn.Linear(self.latent_dim, 1)
            nn.init.zeros_(row.weight)
            nn.init.zeros_(row.bias)

    @property
    def bodies(self) -> list[nn.Module]:
        """What has the extractor's shape: the trunk, or that of every expert if they are whole."""
        if self.whole:
            return [expert.get_submodule("extractor") for expert in self.expert.values()]
        return [self.trunk]

    @property
    def held(self) -> list[int]:
        """The ids of its experts."""
        return [int(name) for name in self.expert]

    def hold(self, experts: Iterable[int], *, gate: bool = True) -> None:
        """Forget all experts but these.

        Args:
            experts: The ids of those to keep, in any order.
            gate: Forget the others' rows of the gate, too.
        """
        kept = {str(expert) for expert in experts}
        for part in (self.expert, self.gate) if gate else (self.expert,):
            for name in [name for name in part if name not in kept]:
                del part[name]

    def scores(self, latents: Tensor) -> Tensor:
        """What the gate says of each expert, [B, K].

        Args:
            latents: Latents of images, [B, D].
        """
        return torch.cat([row(latents) for row in self.gate.values()], dim=1)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What a gate reads of images, [B, D], and the logits of every expert, [B, K, C]."""
        rows = self.trunk(images)
        return rows.flatten(1), self.heads(rows)

    def heads(self, rows: Tensor) -> Tensor:
        """The logits of every expert, [B, K, C], on what the trunk gives."""
        return torch.stack([expert(rows) for expert in self.expert.values()], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of every expert, [B, K, C]."""
        return self.heads(self.trunk(images))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of every expert on every sample, [B, K].

    Args:
        logits: Logits of every expert, [B, K, C].
        labels: Class of each sample, [B].
    """
    picked = logits.float().log_softmax(dim=2)[torch.arange(len(labels)), :, labels]
    return -picked


def distance(network: nn.Module, received: Sequence[Tensor]) -> Tensor:
    """The squared distance of a network's parameters from those received."""
    parts = [
        (p - old).square().sum() for p, old in zip(network.parameters(), received, strict=True)
    ]
    return torch.stack(parts).sum()
