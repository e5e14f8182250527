"""Sums over latents as one correlation matrix, so that one release of it makes all of them private.

A client's sums are of x x^T, x e_y^T and e_y e_y^T over its latents x, labels y in one-hot form.
These are the blocks of v v^T for v = (x cos a, e_y sin a), with x brought to norm 1, so v has norm
1 as well. So the sums, divided by n, are the correlation matrix R of the v, and what
`GaussianMechanism` promises for R holds for all of them jointly: replacing one sample moves R by at
most sqrt(2) / n, whatever becomes of latent and label (`sensitivity`). One noise, one price.

By hand: let |x| = |x'| = 1 and t = x.x'. The squared distance of v v^T and v' v'^T is
2 - 2 (v.v')^2, and v.v' = t cos^2 a + [y = y'] sin^2 a. It is 2 at most, where v.v' = 0: for other
labels with orthogonal latents, for equal ones at t = -tan^2 a, which `SHARE` allows. Norms below 1
make it smaller.

The angle shares the noise out: entries of x x^T get it over cos^2 a, sums by class over
sin a cos a, counts over sin^2 a. With cos^2 a = 2/3 sums by class get as much as the entries of
x x^T beside the diagonal do.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from nmoe_flower.errors import DataError
from nmoe_flower.privacy.packing import smat
from nmoe_flower.privacy.spectrum import noise_edge
from nmoe_flower.sums import Sums

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SHARE", "labelled_latents", "noise_in_scatter", "sums_of_release"]

SHARE = 2 / 3
"""The part of v's squared norm that is the latent's, cos^2 a; the label has the rest."""


def labelled_latents(latents: "Tensor", labels: "Tensor", num_classes: int) -> "Tensor":
    """Latents and their labels as vectors v of norm 1, [n, D + C].

    Args:
        latents: Rows [n, D]; each is brought to norm 1, but one of zeros stays so.
        labels: A class each, [n], 0 to C - 1.
        num_classes: How many classes there are, C.

    >>> import torch
    >>> found = labelled_latents(torch.tensor([[3.0, 4.0]]), torch.tensor([1]), 2)
    >>> found.norm().item()
    1.0
    """
    import torch
    from torch.nn import functional as F

    unit = F.normalize(latents.double(), dim=1)
    told = F.one_hot(labels, num_classes).double()
    return torch.cat([unit * math.sqrt(SHARE), told * math.sqrt(1 - SHARE)], dim=1)


def sums_of_release(packed: np.ndarray, count: int, num_classes: int) -> Sums:
    """The sums over unit latents that a release of R tells, noise and all.

    Args:
        packed: The matrix R as ``svec`` packs it, [(D + C)(D + C + 1) / 2].
        count: The public number of samples, n.
        num_classes: How many classes there are, C.

    Raises:
        DataError: There is no latent in R, or a number is not finite.
        ConfigError: The length fits no matrix.
    """
    matrix = smat(packed.astype(np.float64))
    dim = len(matrix) - num_classes
    if dim < 1:
        raise DataError(
            f"a matrix of {len(matrix)} rows holds no latent beside {num_classes} labels"
        )
    moment = matrix[:dim, :dim] * (count / SHARE)
    by_class = matrix[dim:, :dim] * (count / math.sqrt(SHARE * (1 - SHARE)))
    counts = matrix.diagonal()[dim:] * (count / (1 - SHARE))
    mean = by_class.sum(axis=0) / count
    return Sums(
        count,
        mean,
        moment - count * np.outer(mean, mean),
        counts,
        by_class - np.outer(counts, mean),
    )


def noise_in_scatter(
    noise_stds: "np.typing.ArrayLike", counts: "np.typing.ArrayLike", dim: int
) -> float:
    """Largest eigenvalue of the noise in the sums of x x^T of all clients together.

    The noise of a mean e, by which these are centred, moves their scatter besides: by
    -n (m e^T + e m^T + e e^T), in few directions, and further the larger the mean m is.

    Args:
        noise_stds: Deviation of the noise in the packed R of each client.
        counts: Samples of each client.
        dim: The length of a latent, D.

    >>> round(noise_in_scatter([0.001, 0.001], [100, 100], 50), 3)
    2.121
    """
    std = float(np.linalg.norm(np.asarray(noise_stds) * np.asarray(counts))) / SHARE
    return noise_edge(std, dim)
