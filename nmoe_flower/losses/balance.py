"""Load balance: keep a gate from sending everything to few experts.

The NMoE paper's L_load divides by the number of samples where the sum runs over experts; this is
the standard form of the Switch Transformer (Fedus et al., 2021, Eq. 4-6), without its factor alpha.
"""

from torch import Tensor

from nmoe_flower.errors import ConfigError

__all__ = ["load_balance", "load_balance_global", "load_fractions"]


def load_fractions(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Share of the choices that each expert got: [E], summing to 1.

    Args:
        expert_ids: Chosen experts, [B] or [B, K].
        num_experts: Number of experts E.

    Raises:
        ConfigError: There is no choice, or an id is not in 0..E-1.

    >>> import torch
    >>> load_fractions(torch.tensor([0, 0, 2, 0]), 3)
    tensor([0.7500, 0.0000, 0.2500])
    """
    if not expert_ids.numel():
        raise ConfigError("load fractions need at least one choice, got none")
    low, high = (int(end) for end in expert_ids.aminmax())
    if low < 0 or high >= num_experts:
        raise ConfigError(f"expert ids must be in 0..{num_experts - 1}, got {low} to {high}")
    return expert_ids.reshape(-1).bincount(minlength=num_experts) / expert_ids.numel()


def load_balance(probs: Tensor, *, expert_ids: Tensor | None = None) -> Tensor:
    """E * sum_i f_i P_i over gate probabilities [B, E]: 1.0 when balanced, E at full collapse.

    f_i is the share of the batch routed to expert i (no gradient), P_i the mean probability of i.
    1.0 is not a lower bound: f and P of one batch can disagree.

    Args:
        probs: [B, E]; rows sum to 1.
        expert_ids: The experts really chosen, [B, K], when that is not the most likely one.

    Raises:
        ConfigError: The batch is empty, or ``probs`` is not a matrix.

    >>> import torch
    >>> load_balance(torch.eye(4)), load_balance(torch.eye(4)[[2, 2, 2]])
    (tensor(1.), tensor(4.))
    """
    _check(probs)
    ids = probs.argmax(dim=1) if expert_ids is None else expert_ids
    return load_balance_global(probs, load_fractions(ids, probs.shape[1]))


def load_balance_global(probs: Tensor, fractions: Tensor) -> Tensor:
    """The same with the fractions [E] of the whole federation, which the server gathers.

    A client whose own batch has one class must not spread it over all experts: a load loss on local
    fractions fights specialisation. With global ones it only avoids experts that are busy overall.

    Raises:
        ConfigError: The batch is empty, or ``fractions`` does not hold E numbers.

    >>> import torch
    >>> load_balance_global(torch.tensor([[0.5, 0.5]]), torch.tensor([0.9, 0.1]))
    tensor(1.)
    """
    _check(probs)
    if fractions.shape != probs.shape[1:]:
        raise ConfigError(
            f"fractions must hold one number per expert, {probs.shape[1]}, "
            f"got shape {tuple(fractions.shape)}"
        )
    return probs.shape[1] * (fractions.detach().to(probs) * probs.mean(dim=0)).sum()


def _check(probs: Tensor) -> None:
    if probs.ndim != 2 or not len(probs):
        raise ConfigError(
            f"probs must be [B, E] with at least one row, got shape {tuple(probs.shape)}"
        )
