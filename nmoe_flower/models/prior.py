"""Client-aware prior correction: adapt answers to the classes that a client really meets.

By Bayes' rule a classifier trained under class shares ``reference`` and used under ``prior`` should
answer p(c | x) prior_c / reference_c, renormalised (Saerens et al., 2002).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nmoe_flower.errors import ConfigError

__all__ = ["PriorChoice", "choose_prior", "correct", "em_prior"]


class PriorChoice(NamedTuple):
    """The prior that explains a batch better.

    Attributes:
        prior: [C], the client's own or the reference.
        gain: Nats per sample by which the own prior is likelier than the reference. The own one is
            chosen if this is positive.
    """

    prior: Tensor
    gain: float


def correct(probabilities: Tensor, prior: Tensor, *, reference: Tensor | None = None) -> Tensor:
    """Move probabilities [N, C] from the class shares ``reference`` to ``prior``.

    Shares [C] are normalised first; ``reference=None`` is uniform. A row whose classes are all
    impossible under the prior becomes the prior.

    Raises:
        ConfigError: A share is negative or not finite, all are 0, one of ``reference`` is 0, or
            their number is not C.

    >>> correct(torch.tensor([[0.5, 0.5]]), torch.tensor([3.0, 1.0]))
    tensor([[0.7500, 0.2500]])
    """
    goal = _shares("prior", prior, probabilities)
    joint = probabilities.double() * (goal / _reference(reference, probabilities))
    total = joint.sum(dim=1, keepdim=True)
    corrected = torch.where(total == 0, goal, joint / total)
    return corrected.to(probabilities.dtype)


def choose_prior(
    probabilities: Tensor, own_prior: Tensor, *, reference: Tensor | None = None
) -> PriorChoice:
    """Choose the client's own class shares or the reference, whichever fits the batch better.

    Under a prior the likelihood of x is, up to a factor common to all priors,
    sum_c p(c | x) prior_c / reference_c. It is 1 for the reference itself. Labels are not used, but
    the whole unlabelled batch is: this is transductive, and results must say so.

    Raises:
        ConfigError: As ``correct``, or the batch is empty.

    >>> own = torch.tensor([0.9, 0.1])
    >>> choose_prior(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), own).prior
    tensor([0.9000, 0.1000], dtype=torch.float64)
    >>> choose_prior(torch.tensor([[0.9, 0.1], [0.1, 0.9]]), own).prior
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    _not_empty(probabilities)
    own = _shares("own_prior", own_prior, probabilities)
    base = _reference(reference, probabilities)
    gain = float((probabilities.double() @ (own / base)).log().mean())
    return PriorChoice(own if gain > 0 else base, gain)


def em_prior(
    probabilities: Tensor,
    *,
    reference: Tensor | None = None,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> Tensor:
    """Estimate the class shares [C] of an unlabelled batch by EM (Saerens et al., 2002).

    Stops when no share moves by more than ``tolerance``. Transductive, like ``choose_prior``.

    Raises:
        ConfigError: As ``correct``, or the batch is empty.

    >>> em_prior(torch.eye(4)[[0, 0, 0, 2]])
    tensor([0.7500, 0.0000, 0.2500, 0.0000], dtype=torch.float64)
    """
    _not_empty(probabilities)
    base = _reference(reference, probabilities)
    likelihood = probabilities.double() / base
    prior = base
    for _ in range(iterations):
        joint = likelihood * prior
        update = (joint / joint.sum(dim=1, keepdim=True)).mean(dim=0)
        moved = float((update - prior).abs().max())
        prior = update
        if moved <= tolerance:
            break
    return prior


def _reference(reference: Tensor | None, probabilities: Tensor) -> Tensor:
    given = torch.ones(probabilities.shape[1]) if reference is None else reference
    shares = _shares("reference", given, probabilities)
    if not bool((shares > 0).all()):
        raise ConfigError(f"every share of reference must be positive, got {given.tolist()}")
    return shares


def _shares(name: str, shares: Tensor, probabilities: Tensor) -> Tensor:
    classes = probabilities.shape[1]
    values = shares.to(device=probabilities.device, dtype=torch.float64)
    valid = values.shape == (classes,) and bool(values.isfinite().all() and (values >= 0).all())
    if not valid or not bool(values.sum() > 0):
        raise ConfigError(
            f"{name} must hold {classes} finite numbers of at least 0, not all 0, "
            f"got {shares.tolist()}"
        )
    return values / values.sum()


def _not_empty(probabilities: Tensor) -> None:
    if not len(probabilities):
        raise ConfigError("a prior cannot be estimated from an empty batch")
