"""Gates that need no training: a draw, the client's own expert, the nearest mean."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.routing import Routing, check_top_k, require_generator, route_top_k

__all__ = ["LocalGate", "PrototypeGate", "RandomGate"]


class RandomGate:
    """RanGate: draw experts from a given distribution, without looking at the latent.

    ``distribution=None`` is uniform. With ``top_k`` > 1 the experts of a row are drawn without
    replacement. All weigh the same: the distribution has already spoken in the draw.

    Raises:
        ConfigError: The distribution has a wrong length, a negative or non-finite entry, or fewer
            positive entries than ``top_k``.

    >>> gate = RandomGate(3, distribution=[0.0, 1.0, 0.0])
    >>> gate.route(torch.zeros(2, 4), generator=Generator().manual_seed(0)).expert_ids
    tensor([[1],
            [1]])
    """

    def __init__(
        self, num_experts: int, *, distribution: Sequence[float] | None = None, top_k: int = 1
    ) -> None:
        check_top_k(top_k, num_experts)
        shares = [1.0] * num_experts if distribution is None else list(distribution)
        self.distribution = torch.tensor(shares, dtype=torch.float64)
        finite = bool(self.distribution.isfinite().all() and (self.distribution >= 0).all())
        if len(shares) != num_experts or not finite or sum(s > 0 for s in shares) < top_k:
            raise ConfigError(
                f"distribution must hold {num_experts} finite numbers of at least 0, {top_k} or "
                f"more of them positive, got {shares}"
            )
        self.distribution /= self.distribution.sum()
        self.top_k = top_k

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Draw experts for latents [B, D].

        Raises:
            ConfigError: There is no ``generator``.
        """
        source = require_generator(generator, "a random gate")
        rows = self.distribution.to(source.device).expand(len(latents), -1)
        ids = torch.multinomial(rows, self.top_k, generator=source) if len(latents) else rows
        ids = ids[:, : self.top_k].long().to(latents.device)
        return Routing(ids, latents.new_full(ids.shape, 1 / self.top_k))


class LocalGate:
    """Every latent stays with the client's own expert: nothing travels."""

    def __init__(self, own_id: int) -> None:
        if own_id < 0:
            raise ConfigError(f"own_id must be at least 0, got {own_id}")
        self.own_id = own_id

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Send latents [B, D] to the own expert, with weight 1."""
        shape = (len(latents), 1)
        ids = torch.full(shape, self.own_id, dtype=torch.int64, device=latents.device)
        return Routing(ids, latents.new_ones(shape))


class PrototypeGate:
    """A gate of zero rounds: expert i is known by the mean latent of client i.

    The score is that of linear discriminant analysis: minus half the squared distance to the mean,
    in units of a variance shared by all clients, less the part all experts have in common:
    h . mu_i / v - |mu_i|^2 / (2 v). If the latents of each client are normal with variance v, the
    softmax of the scores is exactly the probability that the latent came from client i. Being
    linear in h, the scores can also start a linear gate. The variance changes the weights for
    ``top_k`` > 1; a single number for all dimensions never changes the ranking.

    Args:
        means: Mean latent of every client, [E, D].
        variance: Variance within clients, a number or one per dimension [D]. None: the mean
            variance between the ``means``, which makes the scores free of units.
        top_k: K.

    Raises:
        ConfigError: A value is not finite, a variance is not positive, or a shape is wrong.

    >>> gate = PrototypeGate(torch.tensor([[0.0, 0.0], [4.0, 0.0]]), variance=1.0)
    >>> gate.scores(torch.tensor([[1.0, 7.0]]))  # difference -4: half of 1^2 - 3^2
    tensor([[ 0., -4.]])
    """

    def __init__(
        self, means: Tensor, *, variance: Tensor | float | None = None, top_k: int = 1
    ) -> None:
        if means.ndim != 2 or 0 in means.shape or not bool(means.isfinite().all()):
            raise ConfigError(f"means must be finite and [E, D], got shape {tuple(means.shape)}")
        check_top_k(top_k, len(means))
        if variance is None:
            between = means.var(dim=0, correction=0).mean()
            variance = between if between > 0 else torch.ones_like(between)
        spread = torch.as_tensor(variance, dtype=means.dtype, device=means.device)
        fits = spread.ndim == 0 or spread.shape == means.shape[1:]
        if not fits or not bool(((spread > 0) & spread.isfinite()).all()):
            raise ConfigError(
                f"variance must be one positive number or {means.shape[1]} of them, got {variance}"
            )
        self.weight = means / spread
        self.bias = -0.5 * (means * self.weight).sum(dim=1)
        self.top_k = top_k

    def scores(self, latents: Tensor) -> Tensor:
        """Score latents [B, D]: logits [B, E]."""
        return F.linear(latents, self.weight.to(latents), self.bias.to(latents))

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Pick the experts with the nearest means for latents [B, D]."""
        return route_top_k(self.scores(latents), self.top_k)
