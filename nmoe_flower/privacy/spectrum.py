"""What a server may do with noisy correlation matrices: all of it is post-processing, and free.

Symmetric noise of ``GaussianMechanism`` with standard deviation s has its spectrum within
+- s sqrt(2 d), the noise edge. Eigenvalues of R below the edge of the mean are lost; those above
come out too large, by a known amount.
"""

import math
from typing import Literal

import numpy as np

from nmoe_flower.errors import ConfigError, ReplyError

__all__ = ["check_release", "mean_noise_std", "noise_edge", "shrink_spectrum", "symmetrise"]

_TAIL = 8.0  # standard deviations allowed beyond what noise does: one chance in 10^14


def symmetrise(matrix: np.ndarray) -> np.ndarray:
    """The symmetric part (M + M^T) / 2, [d, d]."""
    half: np.ndarray = (matrix + matrix.T) / 2
    return half


def noise_edge(noise_std: float, dim: int) -> float:
    """Largest eigenvalue of the noise alone: s sqrt(2 d).

    Useful releases have it below the smallest eigenvalue that matters, about c^2 / C for C balanced
    clusters.

    >>> round(noise_edge(0.001, 128), 4)
    0.016
    """
    return noise_std * math.sqrt(2 * dim)


def mean_noise_std(noise_stds: "np.typing.ArrayLike", shares: "np.typing.ArrayLike") -> float:
    """Noise of the share-weighted mean of independent releases: sqrt(sum q_i^2 s_i^2).

    >>> mean_noise_std([0.2, 0.2, 0.2, 0.2], [0.25] * 4)
    0.1
    """
    return float(np.linalg.norm(np.asarray(noise_stds) * np.asarray(shares)))


def shrink_spectrum(
    matrix: np.ndarray,
    noise_std: float,
    *,
    clip: float = 1.0,
    goal: Literal["matrix", "eigenvalues"] = "matrix",
) -> np.ndarray:
    """Remove what noise did to the spectrum of a mean of releases, [d, d].

    Eigenvalues below the noise edge become 0. One above it, y, came from x with y = x + d s^2/(2x);
    "eigenvalues" returns that x (so traces and effective ranks are right), "matrix" returns
    sqrt(y^2 - 2 d s^2), which also pays for the eigenvector's own error and is the closest matrix
    (Benaych-Georges & Nadakuditi 2011, Gavish & Donoho 2017). Both are cut at ``clip``^2.

    Average first, then shrink: noise has mean zero, shrinking each release leaves a bias. After
    shrinking, the mean no longer holds a client's noise, so a client takes its noiseless R out.

    Raises:
        ConfigError: ``noise_std`` is negative, or ``goal`` is unknown.

    >>> shrink_spectrum(np.diag([0.5, 0.1]), 0.15).round(3)  # the edge is 0.3
    array([[0.4, 0. ],
           [0. , 0. ]])
    """
    if not (math.isfinite(noise_std) and noise_std >= 0):
        raise ConfigError(f"noise_std must be finite and not negative, got {noise_std}")
    if goal not in ("matrix", "eigenvalues"):
        raise ConfigError(f"goal must be matrix or eigenvalues, got {goal!r}")
    values, vectors = np.linalg.eigh(symmetrise(matrix))
    above = np.maximum(values, 0) ** 2 - noise_edge(noise_std, len(values)) ** 2
    root = np.sqrt(np.maximum(above, 0))
    kept = root if goal == "matrix" else (values + root) / 2 * (above > 0)
    shrunk: np.ndarray = (vectors * np.minimum(kept, clip**2)) @ vectors.T
    return symmetrise(shrunk)


def check_release(
    matrix: np.ndarray, *, dim: int, clip: float = 1.0, noise_std: float = 0.0
) -> None:
    """Refuse a client's R that no features of norm ``clip`` have, its noise allowed for.

    It knows no adjacency: also with "add-remove" R must have been divided by at least as many
    samples as it is of, for its trace not to be above ``clip``^2.

    Args:
        matrix: R, as it was released, [dim, dim].
        dim: How many numbers a feature has.
        clip: Largest norm of a feature.
        noise_std: Standard deviation of the noise in the packed R; 0: there is none.

    Raises:
        ReplyError: R is not [dim, dim], not finite, not symmetric, or has an impossible trace or
            eigenvalue.
    """
    if matrix.shape != (dim, dim):
        raise ReplyError(f"the correlation matrix must be {(dim, dim)}, got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ReplyError("the correlation matrix holds NaN or infinity")
    bound = clip**2
    tolerance = 1e-3 * bound
    if np.abs(matrix - matrix.T).max() > tolerance:
        raise ReplyError("the correlation matrix is not symmetric")
    trace = float(np.trace(matrix))
    slack = tolerance + _TAIL * noise_std * math.sqrt(dim)
    if not -slack <= trace <= bound + slack:
        hint = "" if trace < 0 else ": was R divided by fewer samples than it is of?"
        raise ReplyError(
            f"the correlation matrix has trace {trace:g}; features of norm at most {clip:g} and "
            f"the noise allow {-slack:g} to {bound + slack:g}{hint}"
        )
    low, high = (float(value) for value in np.linalg.eigvalsh(matrix)[[0, -1]])
    slack = tolerance + noise_edge(noise_std, dim) + _TAIL * noise_std
    if low < -slack or high > bound + slack:
        raise ReplyError(
            f"the correlation matrix has eigenvalues from {low:g} to {high:g}; features of norm at "
            f"most {clip:g} and the noise allow {-slack:g} to {bound + slack:g}"
        )
