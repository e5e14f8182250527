"""A gate that does not know how many experts there are: each carries an embedding of its own.

The device of expert i is known by the mean m_i of its normalised latents. A projection P, shared by
all, makes its embedding e_i = P m_i, and scores a normalised latent h by

    s_i(h) = P h . e_i - |e_i|^2 / 2 = (|P h|^2 - |P h - P m_i|^2) / 2,

minus half the squared distance under P, up to what all experts have in common. FedGate trains P
alone, which has no entry that belongs to a device: one that joins computes its embedding, one that
leaves takes it along, and nobody trains anything. With P a multiple of the identity this is
`PrototypeGate` on normalised latents.
"""

from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.gate import Routing, check_top_k, normalised_latents, route_top_k

__all__ = ["MetricGate", "MetricLearner", "metric_scores"]


def metric_scores(queries: Tensor, embeddings: Tensor) -> Tensor:
    """Scores [B, E] of projected latents [B, d] against embeddings [E, d].

    >>> metric_scores(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    tensor([[ 0.5000, -1.5000]])
    """
    return queries @ embeddings.T - embeddings.square().sum(dim=1) / 2


class _Metric(nn.Module):
    """The projection alone."""

    def __init__(self, latent_dim: int, dim: int) -> None:
        super().__init__()
        if not 1 <= dim <= latent_dim:
            raise ConfigError(
                f"embeddings of latents of {latent_dim} numbers have 1 to {latent_dim}, got {dim}"
            )
        self.latent_dim, self.dim = latent_dim, dim
        self.projection = nn.Parameter(torch.zeros(dim, latent_dim))

    def queries(self, latents: Tensor) -> Tensor:
        """Latents [B, D] where embeddings are, [B, d]."""
        return self.embed(normalised_latents(latents))

    def embed(self, normal: Tensor) -> Tensor:
        """Normalised latents, or devices' means of them, [n, D] where embeddings are, [n, d]."""
        return normal @ self.projection.T


class MetricGate(_Metric):
    """Scores latents against the embeddings of the experts there are.

    Args:
        latent_dim: Numbers of a latent, D.
        num_experts: Number of experts E.
        dim: Numbers of an embedding, d, from 1 to D.
        top_k: Experts per sample, K.

    Raises:
        ConfigError: A size is out of range.

    >>> gate = MetricGate(4, 2, dim=1)
    >>> _ = gate.projection.data.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    >>> _ = gate.embeddings.copy_(torch.tensor([[-1.0], [1.0]]))
    >>> gate.route(torch.tensor([[5.0, 1.0, 0.0, 0.0]])).expert_ids
    tensor([[1]])
    """

    NAMES: ClassVar = ("projection", "embeddings")
    embeddings: Tensor

    def __init__(self, latent_dim: int, num_experts: int, *, dim: int, top_k: int = 1) -> None:
        super().__init__(latent_dim, dim)
        check_top_k(top_k, num_experts)
        self.num_experts, self.top_k = num_experts, top_k
        self.register_buffer("embeddings", torch.zeros(num_experts, dim))

    def forward(self, latents: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The scores of `scores`; a gate of this kind draws nothing."""
        return self.scores(latents)

    def scores(self, latents: Tensor) -> Tensor:
        """Score latents [B, D]: logits [B, E]."""
        return metric_scores(self.queries(latents), self.embeddings.to(latents))

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Pick the experts with the nearest embeddings for latents [B, D]."""
        return route_top_k(self.scores(latents), self.top_k)


class MetricLearner(_Metric):
    """The projection while it is trained, on experts of whom the means are known.

    Args:
        means: The means of each expert's normalised latents, [E, D].
        dim: Numbers of an embedding, d, from 1 to D.

    Raises:
        ConfigError: ``dim`` is out of range.
    """

    means: Tensor

    def __init__(self, means: Tensor, *, dim: int) -> None:
        super().__init__(means.shape[1], dim)
        self.register_buffer("means", means, persistent=False)

    def forward(
        self, latents: Tensor, *, generator: Generator | None = None, normalised: bool = False
    ) -> Tensor:
        """Score latents [B, D]: logits [B, E], with a gradient through latents and embeddings.

        Args:
            latents: The latents.
            generator: Taken for those gates that draw.
            normalised: `normalised_latents` has seen them.
        """
        queries = self.embed(latents) if normalised else self.queries(latents)
        return metric_scores(queries, self.embed(self.means))
