"""The gate of the NMoE paper (arXiv:2511.01743, section II-A), a network to be trained."""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.routing import Routing, check_top_k, require_generator, route_top_k

__all__ = ["Gate"]


class Gate(nn.Module):
    """A linear gate, or an MLP with one hidden layer, on the normalised latent.

    The latent passes a LayerNorm without parameters, so a change of scale between extractors does
    not change the sharpness of the gate. The last layer starts at zero: a fresh gate is uniform.

    With ``noisy=True``, in training mode only, each score gets normal noise with standard
    deviation softplus(x W_n) (Shazeer et al., 2017, Eq. 4); W_n starts at zero.

    Attributes:
        latent_dim: D.
        num_experts: E.
        top_k: K, the experts that ``route`` picks.

    Raises:
        ConfigError: A size is below 1, or ``top_k`` is not in 1..E.

    >>> Gate(4, 3, top_k=2).route(torch.ones(1, 4)).expert_ids
    tensor([[0, 1]])
    """

    def __init__(
        self,
        latent_dim: int,
        num_experts: int,
        *,
        hidden: int = 0,
        top_k: int = 1,
        noisy: bool = False,
    ) -> None:
        super().__init__()
        if latent_dim < 1 or num_experts < 1 or hidden < 0:
            raise ConfigError(
                "a gate needs latent_dim and num_experts of at least 1 and hidden of at least 0, "
                f"got latent_dim={latent_dim}, num_experts={num_experts}, hidden={hidden}"
            )
        check_top_k(top_k, num_experts)
        self.latent_dim = latent_dim
        self.num_experts = num_experts
        self.top_k = top_k
        self.body = nn.Sequential(nn.Linear(latent_dim, hidden), nn.GELU()) if hidden else None
        self.head = nn.Linear(hidden or latent_dim, num_experts)
        self.noise = nn.Linear(latent_dim, num_experts, bias=False) if noisy else None
        for linear in (self.head, self.noise):
            if linear is not None:
                for parameter in linear.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Score latents [B, D]: logits [B, E].

        Raises:
            ConfigError: The gate is noisy and in training mode, and there is no ``generator``.
        """
        normal = F.layer_norm(latents, (self.latent_dim,))
        scores: Tensor = self.head(normal if self.body is None else self.body(normal))
        if self.noise is None or not self.training:
            return scores
        source = require_generator(generator, "a noisy gate in training mode")
        draws = torch.randn(scores.shape, generator=source, device=source.device)
        return scores + draws.to(scores) * F.softplus(self.noise(normal))

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Pick the top-k experts of latents [B, D]."""
        return route_top_k(self(latents, generator=generator), self.top_k)
