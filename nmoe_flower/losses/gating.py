"""Objectives that train a gate on the cached answers of frozen experts.

All take gate scores [B, E], expert logits [B, E, C] and labels [B], and return the batch mean. The
paper's Softmax(Topk(v, 1)) is the constant 1, so it gives the gate no gradient. Each objective
here is a way around that; at inference the gate routes to its top-k all the same.

**Some experts for all.** With ``log_weights`` the E experts are a shortlist S of N, and the value
estimates that of all N. Expert i is on the shortlist with probability q_i > 0 (its own and the
nearest ones have q_i = 1), and w_i = 1 / q_i, so that for any numbers x_i

    E[sum_{i in S} w_i x_i] = sum_i q_i w_i x_i = sum_{i <= N} x_i     (Horvitz and Thompson, 1952).

Every sum over experts in an objective is replaced by that estimate. In the likelihood of the
mixture, log sum_i e^{s_i} l_i - log sum_i e^{s_i}, both sums are; as w_i e^{s_i} = e^{s_i + log
w_i}, that is the same objective on scores to which log w_i is added, the correction of sampled
softmax (Bengio and Senecal, 2008). The sums are unbiased; their logarithms are not, by half their
relative variances, which falls as 1 / S. If all w_i are 1 nothing is changed, to the last bit.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from nmoe_flower.catalogue import OBJECTIVES, found
from nmoe_flower.errors import ConfigError
from nmoe_flower.own_code import call_own, is_own, load_own

__all__ = [
    "Objective",
    "check_objective",
    "dense_mixture",
    "objective_of",
    "oracle_distillation",
    "pseudo_client_targets",
    "shortlisted_targets",
    "straight_through",
    "switch_top1",
]


def dense_mixture(
    scores: Tensor, expert_logits: Tensor, labels: Tensor, *, log_weights: Tensor | None = None
) -> Tensor:
    """Likelihood of the mixture of all experts: -log sum_i p_i softmax(H_i)_y.

    Its gradient on the scores is p - r, where r_i is the responsibility of expert i as in EM.
    ``log_weights``, [E] or [B, E], makes it that of all experts of whom these were sampled.

    >>> two = torch.tensor([[[0.0, 0.0], [9e9, 0.0]]])  # the second expert is sure and wrong
    >>> loss = dense_mixture(torch.zeros(1, 2), two, torch.tensor([1]))
    >>> round(float(loss.exp()), 4)  # 1 / (.5 * .5)
    4.0
    """
    if log_weights is not None:
        scores = scores + log_weights
    return -(scores.log_softmax(dim=1) + _log_likelihood(expert_logits, labels)).logsumexp(1).mean()


def oracle_distillation(
    scores: Tensor,
    expert_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    log_weights: Tensor | None = None,
) -> Tensor:
    """KL(t || p) from targets t_i proportional to exp(-CE_i / temperature).

    A low temperature asks for the best expert only, a high one for all that do well.
    ``log_weights`` as in `dense_mixture`: sum_i w_i t_i (log t_i - log p_i), w in both norms.

    Raises:
        ConfigError: ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be positive, got {temperature}")
    logits = _log_likelihood(expert_logits, labels) / temperature
    if log_weights is not None:  # KL of w t and w p: between the two the weights cancel
        logits, scores = logits + log_weights, scores + log_weights
    targets = logits.log_softmax(dim=1)
    return F.kl_div(scores.log_softmax(1), targets, reduction="batchmean", log_target=True)


def switch_top1(
    scores: Tensor, expert_logits: Tensor, labels: Tensor, *, log_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of p_i H_i for the best-scored expert i (Fedus et al., 2021, Eq. 2).

    The softmax comes before the choice, so p_i keeps a gradient: up where H_i helps, down where it
    misleads. With ``log_weights`` the best is that of the shortlist, and p_i is what it would have
    among all experts, as estimated.
    """
    chosen = scores.argmax(dim=1, keepdim=True)
    logits = expert_logits.take_along_dim(chosen[:, :, None], dim=1)[:, 0]
    return F.cross_entropy(_shares(scores, log_weights).gather(1, chosen) * logits, labels)


def straight_through(
    scores: Tensor,
    expert_logits: Tensor,
    labels: Tensor,
    *,
    top_k: int = 1,
    floor: float = 1e-3,
    log_weights: Tensor | None = None,
) -> Tensor:
    """Mixture likelihood with hard top-k weights forward and the full softmax backward.

    The gradient divides by the likelihood of the chosen experts, which has no lower bound. So each
    expert's probability of the true class counts as at least ``floor``. With ``log_weights`` the
    best are those of the shortlist, and the softmax backward is over all experts, as estimated.

    Raises:
        ConfigError: ``top_k`` is not in 1..E, or ``floor`` not in (0, 1).
    """
    if not 1 <= top_k <= scores.shape[1]:
        raise ConfigError(
            f"top_k must be between 1 and the number of experts, {scores.shape[1]}, got {top_k}"
        )
    if not 0 < floor < 1:
        raise ConfigError(f"floor must be between 0 and 1, got {floor}")
    soft = _shares(scores, log_weights)
    if log_weights is not None:
        soft = soft * log_weights.exp()
    best = scores.detach().sort(dim=1, descending=True, stable=True)
    kept = best.values[:, :top_k].softmax(dim=1)
    hard = torch.zeros_like(soft).scatter(1, best.indices[:, :top_k], kept)
    weights = hard + soft - soft.detach()
    likelihood = _log_likelihood(expert_logits, labels).exp().clamp(min=floor)
    return -(weights * likelihood).sum(dim=1).log().mean()


class Objective(Protocol):
    """What trains a gate: a row of `OBJECTIVES`, or ``gate.objective = "package.module:name"``."""

    def __call__(self, scores: Tensor, expert_logits: Tensor, labels: Tensor) -> Tensor:
        """The batch mean, a scalar with a gradient on the scores.

        Args:
            scores: Scores of the gate, [B, E]. Where the experts are a shortlist of more, minus
                the log of the probability to be on it is added to each.
            expert_logits: What the frozen experts say, [B, E, C].
            labels: The true classes, [B].
        """


def objective_of(name: str) -> Callable[..., Tensor]:
    """The objective that ``gate.objective`` names; one of somebody's own is imported.

    Raises:
        ConfigError: It cannot be imported, or cannot be called.
    """
    own = is_own(name)
    function: Callable[..., Tensor]
    function = load_own("gate.objective", name) if own else found(OBJECTIVES[name])
    return function


def check_objective(name: str) -> None:
    """Try an objective of one's own on two samples, three experts and two classes.

    Raises:
        ConfigError: It raises something, is no finite scalar, or gives the gate no gradient.
    """
    scores = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]], requires_grad=True)
    answers = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]] * 2)
    key = "gate.objective"
    loss = call_own(key, name, objective_of(name), scores, answers, torch.tensor([0, 1]))
    if not isinstance(loss, Tensor) or loss.ndim or not bool(loss.isfinite()):
        raise ConfigError(f"{key} = {name} must give a finite scalar, got {loss!r}")
    found = torch.autograd.grad(loss, scores, allow_unused=True)[0] if loss.requires_grad else None
    if found is None or not bool(found.isfinite().all()):
        raise ConfigError(f"{key} = {name} gives the gate's scores no finite gradient")


def pseudo_client_targets(
    num: int, own_id: int, num_clients: int, *, keep: float = 0.7, generator: Generator
) -> Tensor:
    """RollGate's targets (NMoE paper, section III-C): mostly home, the rest to the others.

    Exactly round(keep * num) targets, in random places, are ``own_id``. The rest is uniform over
    the other clients. A client alone keeps everything.

    Returns:
        Client ids, [num] int64.

    Raises:
        ConfigError: ``own_id`` is not in 0..num_clients-1, or ``keep`` not in 0..1.

    >>> ids = pseudo_client_targets(10, 3, 5, keep=0.7, generator=Generator().manual_seed(0))
    >>> int((ids == 3).sum())
    7
    """
    if not 0 <= own_id < num_clients:
        raise ConfigError(f"own_id must be in 0..{num_clients - 1}, got {own_id}")
    if not 0 <= keep <= 1:
        raise ConfigError(f"keep must be between 0 and 1, got {keep}")
    targets = torch.full((num,), own_id, device=generator.device)
    away = num - round(keep * num)
    if num_clients == 1 or away == 0:
        return targets
    places = torch.randperm(num, generator=generator, device=generator.device)[:away]
    steps = torch.randint(1, num_clients, (away,), generator=generator, device=generator.device)
    targets[places] = (own_id + steps) % num_clients
    return targets


def shortlisted_targets(
    num: int, log_weights: Tensor, *, keep: float = 0.7, generator: Generator
) -> Tensor:
    """`pseudo_client_targets` of a client that knows a shortlist: places on it, its own first.

    The others are drawn as their weights say. An expert that is on the list with probability q
    weighs 1 / q there, so over all lists it is drawn as often as any other of all clients.

    Args:
        num: How many targets.
        log_weights: Minus the log of the probability of each expert to be on the list, [S].
        keep: Share of the targets that is the client's own place, 0.
        generator: Draws places and targets.

    Returns:
        Places, [num] int64. A list of the own expert alone keeps everything.

    Raises:
        ConfigError: ``keep`` is not in 0..1.

    >>> weights = torch.tensor([1.0, 1.0, 4.0]).log()
    >>> ids = shortlisted_targets(10, weights, generator=Generator().manual_seed(0))
    >>> int((ids == 0).sum())
    7
    """
    ids = pseudo_client_targets(num, 0, len(log_weights), keep=keep, generator=generator)
    others = ids.nonzero()[:, 0]
    if len(others):
        shares = log_weights[1:].double().exp().to(ids.device)
        ids[others] = 1 + torch.multinomial(
            shares, len(others), replacement=True, generator=generator
        )
    return ids


def _shares(scores: Tensor, log_weights: Tensor | None) -> Tensor:
    """p_i [B, E] of each expert; among all of whom these were sampled, if there are weights."""
    if log_weights is None:
        return scores.softmax(dim=1)
    return (scores - (scores + log_weights).logsumexp(dim=1, keepdim=True)).exp()


def _log_likelihood(expert_logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability [B, E] that each expert gives to the true class."""
    picked = expert_logits.take_along_dim(labels[:, None, None], dim=2)[:, :, 0]
    return picked - expert_logits.logsumexp(dim=2)
