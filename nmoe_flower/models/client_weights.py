"""A gate of E numbers per client: how much each expert is worth to it, whatever the input.

For concepts that inputs do not show, such as devices that call the same things by other names: then
no gate on latents can tell whom to ask, and a client's own labels can.
"""

import math
from typing import Self

import torch
from torch import Generator, Tensor

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.gate import GateSite, Routing, check_top_k, route_top_k

__all__ = ["ClientWeightsGate", "mixture_weights"]

_TOLERANCE = 1e-4  # nats per sample that other weights could gain at most


def mixture_weights(answers: Tensor, labels: Tensor, *, tolerance: float = _TOLERANCE) -> Tensor:
    """The weights w that make labels likeliest under sum_e w_e p_e(y | x), by EM.

    A step multiplies each weight by the mean of p_e(y | x) over that of the mixture, so likelihood
    never falls. The largest such factor, less 1, bounds what any other weights could gain, for the
    log-likelihood is concave: the weights are returned once that is below ``tolerance``.

    Args:
        answers: Logits of every expert, [N, E, C]; an expert that did not answer a sample has NaN
            there, and cannot explain it.
        labels: The true classes, [N].
        tolerance: Nats per sample, above 0.

    Returns:
        float64 [E], at least 0, of sum 1; even if there is no sample that an expert answered.

    Raises:
        ConfigError: Shapes do not fit, or ``tolerance`` is not above 0.

    >>> right, wrong = [4.0, 0.0], [0.0, 4.0]
    >>> answers = torch.tensor([[right, wrong], [right, wrong]])
    >>> mixture_weights(answers, torch.tensor([0, 0])).round(decimals=2).tolist()
    [1.0, 0.0]
    """
    if answers.ndim != 3 or not answers.shape[1] or labels.shape != answers.shape[:1]:
        raise ConfigError(
            "answers must be [N, E, C] and labels [N], got shapes "
            f"{tuple(answers.shape)} and {tuple(labels.shape)}"
        )
    if not tolerance > 0:
        raise ConfigError(f"tolerance must be above 0, got {tolerance}")
    experts = answers.shape[1]
    weights = torch.full((experts,), 1 / experts, dtype=torch.float64)
    true = answers.double().log_softmax(dim=2).take_along_dim(labels[:, None, None], dim=2)[..., 0]
    true = true.nan_to_num(nan=-math.inf)
    true = true[true.isfinite().any(dim=1)]
    if not len(true):
        return weights
    likelihoods = (true - true.max(dim=1, keepdim=True).values).exp()
    # EM is within KL(best, start) / steps of the best, so this many are always enough.
    for _ in range(math.ceil(math.log(max(experts, 2)) / tolerance)):
        factors = (likelihoods / (likelihoods @ weights)[:, None]).mean(dim=0)
        if float(factors.max()) - 1 <= tolerance:
            break
        weights = weights * factors
        weights = weights / weights.sum()
    return weights


class ClientWeightsGate:
    """Asks the experts that explain a client's own held-out labels best, for every latent alike.

    Args:
        weights: What each expert is worth, [E], at least 0 and not all 0.
        top_k: Experts per sample, K.

    Raises:
        ConfigError: A weight is negative or not finite, all are 0, or ``top_k`` is not in 1..E.

    >>> ClientWeightsGate(torch.tensor([0.1, 0.6, 0.3]), top_k=2).route(torch.zeros(1, 4))
    Routing(expert_ids=tensor([[1, 2]]), weights=tensor([[0.6667, 0.3333]]))
    """

    def __init__(self, weights: Tensor, *, top_k: int = 1) -> None:
        fits = weights.ndim == 1 and bool((weights.isfinite() & (weights >= 0)).all())
        if not fits or not float(weights.sum()) > 0:
            raise ConfigError(f"weights must be [E], finite, at least 0 and not all 0: {weights}")
        check_top_k(top_k, len(weights))
        self.weights = weights / weights.sum()
        self.top_k = top_k

    @classmethod
    def at(cls, site: GateSite) -> Self:
        """The gate of one device, of what all experts, or its shortlist, say to its hold-out."""
        if site.holdout_answers is None or site.holdout_labels is None:
            raise ConfigError("client weights need the experts' answers to a hold-out, got none")
        weights = mixture_weights(site.holdout_answers, site.holdout_labels)
        if site.shortlist is not None:
            weights = weights.new_zeros(site.num_experts).scatter(0, site.shortlist, weights)
        return cls(weights, top_k=site.settings.top_k)

    def scores(self, latents: Tensor) -> Tensor:
        """Score latents [B, D]: the same log weights for each, [B, E]."""
        least = torch.finfo(torch.float32).tiny
        scores = self.weights.clamp(min=least).log().float().to(latents.device)
        return scores.expand(len(latents), -1)

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Send latents [B, D] to the experts of most weight."""
        return route_top_k(self.scores(latents), self.top_k)
