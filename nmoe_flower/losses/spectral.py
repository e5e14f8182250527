"""The spectral contrastive loss (NMoE paper, Eq. 3) and a FedSC client's part of it (Eq. 4).

A client's part is of a batch, or of one sample, which DP-SGD can clip.

Eq. 3 pulls two views of a sample together and pushes different samples apart:

    L = -E z . z+  +  weight / 2 * E (z . z-)^2

With R = E z z^T the second expectation is ||R||^2, and R is the share-weighted mean of the clients'
R_i. So a client that knows the mean of the others, Rbar, minimises (Eq. 4)

    L_i = -E_i z . z+  +  weight * (q_i / 2 * ||R_i||^2 + (1 - q_i) * <R_i, Rbar>)

and at the weights where Rbar was taken, sum_i q_i grad L_i = grad L (Jing et al., ICML 2024). Both
are half of the form in HaoChen et al., NeurIPS 2021. Features belong on the unit ball, see
``unit_ball``; ``weight`` then does what the squared radius does there.

Products are accumulated in float32 (float64 for float64 features), under autocast too.
"""

import math

import torch
from torch import Tensor

from nmoe_flower.errors import ConfigError

__all__ = [
    "RunningCorrelation",
    "correlation",
    "local_spectral",
    "others_mean",
    "sample_spectral",
    "spectral_contrastive",
    "unit_ball",
]


def unit_ball(z: Tensor) -> Tensor:
    """Scale rows longer than 1 down to length 1; shorter rows stay. [B, D] -> [B, D].

    Without it the loss has no lower bound early in training. Half-precision input gives float32:
    rounding the result back could push it out of the ball.

    >>> unit_ball(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    with torch.autocast(z.device.type, enabled=False):
        z = _wide(z)
        norm: Tensor = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        return z / norm.clamp(min=1)


def correlation(z: Tensor) -> Tensor:
    """Mean of z z^T over the rows, [B, D] -> [D, D]: not centred, hence PSD with trace E ||z||^2.

    For R_i of the paper, stack both views: ``correlation(torch.cat([z1, z2]))``.

    Raises:
        ConfigError: ``z`` is not [B, D] with at least one row.

    >>> correlation(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    if z.ndim != 2 or 0 in z.shape:
        raise ConfigError(f"features must be [B, D] with at least one row, got {tuple(z.shape)}")
    with torch.autocast(z.device.type, enabled=False):
        z = _wide(z)
        return z.T @ z / z.shape[0]


def spectral_contrastive(
    z1: Tensor, z2: Tensor, *, weight: float = 1.0, unbiased: bool = True
) -> Tensor:
    """Eq. 3 on a batch: two views [B, D] of the same samples in the same order -> scalar.

    Args:
        z1: Features of the first view.
        z2: Features of the second view.
        weight: Weight of the uniformity term, for features on the unit ball.
        unbiased: Take negatives from different samples only. The plain squared norm of the batch's
            R (False, as FedSC was published) also counts each sample against itself, which adds up
            to weight / (2B): 31 % of the term at B = 32 where ||R||^2 = 1/10.

    Raises:
        ConfigError: The views differ in shape, a batch has one sample, or the loss is not finite.

    >>> z = torch.eye(4)  # four samples, all orthogonal: nothing left to push apart
    >>> spectral_contrastive(z, z)
    tensor(-1.)
    """
    return local_spectral(z1, z2, None, share=1.0, weight=weight, unbiased=unbiased)


def local_spectral(
    z1: Tensor,
    z2: Tensor,
    others: Tensor | None,
    *,
    share: float,
    weight: float = 1.0,
    unbiased: bool = True,
    running: Tensor | None = None,
) -> Tensor:
    """Eq. 4: a client's loss on a batch, given the mean correlation of the other clients.

    ``sum_i q_i grad L_i`` equals the global gradient when ``share`` is q_i, ``unbiased`` is False
    and the others' R are those of the current weights. A larger share (FedSC's schedule goes from 1
    to 0.2) trusts the own, fresh R more; 1 is plain federated averaging of Eq. 3.

    Args:
        z1: Features of the first view, [B, D].
        z2: Features of the second view, [B, D].
        others: Rbar_{-i}, [D, D], a constant (see ``others_mean``). None only when ``share`` is 1.
        share: q_i, this client's part of all samples, in (0, 1].
        weight: Weight of the uniformity term.
        unbiased: Whether negatives are taken from different samples only, as in
            ``spectral_contrastive``.
        running: An estimate, for small batches, of the own R from earlier batches, [D, D], a
            constant (see ``RunningCorrelation``). The own term becomes <R_B, running> -
            ||running||^2 / 2, with the gradient of ||R||^2 / 2 where the two agree. It is free of
            own terms if ``running`` never saw these samples at these weights, so ``unbiased``
            does not matter then.

    Raises:
        ConfigError: A shape, ``share`` or ``weight`` is wrong, a batch has one sample, or the loss
            is not finite.
    """
    _check_views(z1, z2, single=running is not None or not unbiased)
    _check_weight(weight)
    if not 0 < share <= 1:
        raise ConfigError(f"share must be in (0, 1], got {share}")
    if others is None and share != 1:
        raise ConfigError(f"others may be None only when share is 1, got share {share}")
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = _wide(z1), _wide(z2)
        matrix = correlation(torch.cat([z1, z2]))
        positive = (z1 * z2).sum(dim=1)
        negative = share * _own_term(z1, z2, matrix, running, unbiased)
        if others is not None and share != 1:
            constant = _constant(others, matrix, "others")
            negative = negative + (1 - share) * (matrix * constant).sum()
        loss = weight * negative - positive.mean()
    if not bool(loss.isfinite()):
        raise ConfigError(_blame(z1=z1, z2=z2, others=others, running=running))
    return loss


def sample_spectral(z1: Tensor, z2: Tensor, mean: Tensor, *, weight: float = 1.0) -> Tensor:
    """Eq. 4 of single samples, [B], which DP-SGD can clip: the loss of each, given the mean R.

    DP-SGD bounds what each sample adds to a gradient, so the loss must be a sum over samples.
    Eq. 4 is not: its own term ``share / 2 * ||R_i||^2`` couples all samples of the batch. But at
    the weights where Rbar = sum_i q_i R_i was taken,

        grad (weight / 2 * ||R||^2)  =  weight * <Rbar, grad R>  =  grad (weight * <Rbar, R>)

    with Rbar a constant on the right, and R is a mean over samples x and their two views v. So

        L_x = -z_x1 . z_x2  +  weight * mean_v z_xv^T Rbar z_xv

    has, averaged over all samples of all clients, the gradient of Eq. 3 in the form that counts a
    sample's own terms (``unbiased=False``). Rbar keeps the client's own part in: it is a constant
    that arrived with noise and is paid for, so no sample touches the loss of another.

    Args:
        z1: Features of the first view, [B, D], in the unit ball.
        z2: Features of the second view, [B, D], in the unit ball.
        mean: Rbar, [D, D], a constant: the mean of all clients' matrices, this one's included.
        weight: Weight of the uniformity term.

    Raises:
        ConfigError: The shapes do not fit, or ``weight`` is wrong.

    >>> z = torch.eye(2)
    >>> sample_spectral(z, z, torch.diag(torch.tensor([0.5, 0.25])), weight=2.0)
    tensor([ 0.0000, -0.5000])
    """
    _check_weight(weight)
    if z1.ndim != 2 or z1.shape != z2.shape or mean.shape != (z1.shape[1], z1.shape[1]):
        raise ConfigError(
            "views must be [B, D] and alike and the mean [D, D], got "
            f"{tuple(z1.shape)}, {tuple(z2.shape)} and {tuple(mean.shape)}"
        )
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = _wide(z1), _wide(z2)
        constant = mean.detach().to(z1)
        attract = (z1 * z2).sum(dim=1)
        repel = ((z1 @ constant) * z1).sum(dim=1) + ((z2 @ constant) * z2).sum(dim=1)
        return weight * repel / 2 - attract


def others_mean(mean: Tensor, own: Tensor, *, share: float) -> Tensor:
    """Take a client's own matrix out of the share-weighted mean of all: Rbar_{-i}, [D, D].

    ``own`` must be what the client sent (with its noise, when it added any), since that is what the
    mean holds.

    Raises:
        ConfigError: ``share`` is not in (0, 1), or the shapes differ.

    >>> float(others_mean(torch.tensor([[0.4]]), torch.tensor([[0.1]]), share=0.25))
    0.5
    """
    if not 0 < share < 1:
        raise ConfigError(f"share must be in (0, 1) to leave others, got {share}")
    return (mean - share * _constant(own, mean, "own")) / (1 - share)


class RunningCorrelation:
    """Exponential mean of the batches' correlation matrices, without gradients.

    A batch of B samples gives a matrix of rank 2B at most; the mean over the last ``1 / (1 -
    decay)`` batches gives the negatives of that many samples. It lags behind the weights by as many
    steps: with high learning rates that collapsed representations, so keep ``decay`` modest.

    Args:
        decay: Weight of the past per update, in [0, 1).
        initial: A matrix to start from, such as the client's R at the weights it received.

    Raises:
        ConfigError: ``decay`` is out of range.

    >>> running = RunningCorrelation(decay=0.5)
    >>> running.update(torch.tensor([[1.0, 0.0]]))
    >>> running.update(torch.tensor([[0.0, 1.0]]))
    >>> running.value.diagonal()  # weights 1/2 * 1/2 and 1/2, scaled to sum to 1
    tensor([0.3333, 0.6667])
    """

    def __init__(self, decay: float = 0.9, *, initial: Tensor | None = None) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self._sum = None if initial is None else _wide(initial.detach())
        self._weight = 0.0 if initial is None else 1.0

    def update(self, z: Tensor) -> None:
        """Take in a batch [B, D], both views stacked."""
        matrix = (1 - self.decay) * correlation(z.detach())
        past = 0.0 if self._sum is None else self.decay * _constant(self._sum, matrix, "initial")
        self._sum = past + matrix
        self._weight = self.decay * self._weight + 1 - self.decay

    @property
    def value(self) -> Tensor | None:
        """The mean [D, D], its weights summing to 1; None before the first batch."""
        return None if self._sum is None else self._sum / self._weight


def _own_term(
    z1: Tensor, z2: Tensor, matrix: Tensor, running: Tensor | None, unbiased: bool
) -> Tensor:
    """||R||^2 / 2 of the client itself, estimated from a batch."""
    if running is not None:
        past = _constant(running, matrix, "running")
        return (matrix * past).sum() - past.square().sum() / 2
    norm = matrix.square().sum()
    if not unbiased:
        return norm / 2
    batch = z1.shape[0]
    lengths = z1.square().sum(dim=1).square() + z2.square().sum(dim=1).square()
    own = (lengths + 2 * (z1 * z2).sum(dim=1).square()).sum()
    return (4 * batch**2 * norm - own) / (8 * batch * (batch - 1))


def _wide(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _constant(given: Tensor, like: Tensor, name: str) -> Tensor:
    if given.shape != like.shape:
        raise ConfigError(f"{name} must be {tuple(like.shape)}, got {tuple(given.shape)}")
    return given.detach().to(like)


def _check_views(z1: Tensor, z2: Tensor, *, single: bool) -> None:
    if z1.shape != z2.shape or z1.ndim != 2 or 0 in z1.shape:
        raise ConfigError(
            f"both views must be [B, D] and alike, got {tuple(z1.shape)} and {tuple(z2.shape)}"
        )
    if z1.shape[0] == 1 and not single:
        raise ConfigError("a batch of one sample has no negatives: use at least two samples")


def _check_weight(weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise ConfigError(f"weight must be a finite number of at least 0, got {weight}")


def _blame(**tensors: Tensor | None) -> str:
    """Say which input makes the loss NaN or infinite."""
    for name, tensor in tensors.items():
        if tensor is not None and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).any(dim=1).sum())
            return f"{name} must be finite: {bad} of {tensor.shape[0]} rows hold NaN or infinity"
    return "the loss overflowed: project the features with unit_ball first"
