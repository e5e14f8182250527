"""Who answers a latent, and with what weight: what every gate gives back."""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Generator, Tensor

from nmoe_flower.errors import ConfigError

__all__ = ["Router", "Routing", "check_top_k", "require_generator", "route_top_k"]


class Routing(NamedTuple):
    """The chosen experts of a batch, best first.

    Attributes:
        expert_ids: [B, K] int64; the ids of a row differ.
        weights: [B, K] float; a row sums to 1.
    """

    expert_ids: Tensor
    weights: Tensor


@runtime_checkable
class Router(Protocol):
    """Anything that picks experts for latents."""

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Pick experts for latents [B, D]; ``generator`` feeds what is random, if anything is."""
        ...


def route_top_k(scores: Tensor, top_k: int = 1) -> Routing:
    """Keep the ``top_k`` best of scores [B, E], weighted by their softmax.

    This is Softmax(Topk(v, k)) of the paper. Equal scores go to the lower id first, whatever the
    batch. With ``top_k=1`` the weight is the constant 1, so no gradient reaches the scores.

    Raises:
        ConfigError: ``top_k`` is not in 1..E.

    >>> import torch
    >>> route_top_k(torch.tensor([[0.0, 2.0, 2.0]]), 2)
    Routing(expert_ids=tensor([[1, 2]]), weights=tensor([[0.5000, 0.5000]]))
    """
    check_top_k(top_k, scores.shape[1])
    ranked = scores.sort(dim=1, descending=True, stable=True)
    return Routing(ranked.indices[:, :top_k], ranked.values[:, :top_k].softmax(dim=1))


def check_top_k(top_k: int, num_experts: int) -> None:
    """Refuse a ``top_k`` that is not in 1..E."""
    if not 1 <= top_k <= num_experts:
        raise ConfigError(
            f"top_k must be between 1 and the number of experts, {num_experts}, got {top_k}"
        )


def require_generator(generator: Generator | None, who: str) -> Generator:
    """The generator, or a ConfigError that says ``who`` needs one."""
    if generator is None:
        raise ConfigError(f"{who} draws numbers and needs a torch generator, got None")
    return generator
