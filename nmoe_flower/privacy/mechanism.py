"""The Gaussian mechanism for a client's correlation matrix R = (1/n) sum_x mean_v z_xv z_xv^T.

Unit of protection: one sample (an image, with all its augmented views), not a user. Adjacency:
replace one sample, n public; Flower sends the number of examples in clear, so hiding whether a
sample is there at all would need a noisy n ("add-remove" below divides by a public constant
instead). Features are clipped to norm c, so each sample adds a PSD matrix of trace at most c^2, and
two such matrices are at most sqrt(2) c^2 apart: their inner product is never negative.

Covered: what R tells about the samples, given the weights at which it was computed. Not covered:
the weights themselves, sample counts and metrics. They leave without noise, so a run is private end
to end only if the weights are trained with DP-SGD as well. Nor does it hold to the last bit of
floating-point arithmetic, whose gaps ``secure`` narrows and does not close.
"""

import math
import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy.packing import packed_size, smat, svec

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = [
    "Adjacency",
    "ClippedCorrelation",
    "GaussianMechanism",
    "check_noise",
    "secure_normal",
    "sensitivity",
]

Adjacency = Literal["replace-one", "add-remove"]
"""What two neighbouring data sets differ in: one sample replaced, or one more."""


def sensitivity(clip: float, num_examples: int, *, adjacency: Adjacency = "replace-one") -> float:
    """L2 (Frobenius) sensitivity of R: sqrt(2) c^2 / n, or c^2 / n for "add-remove".

    For "replace-one" n is the public number of samples. Two orthogonal samples of norm c attain the
    bound. For "add-remove" n is any public constant the sum is divided by; it need not be the true
    count, which then stays private. `check_release` refuses R if it is of more samples than n.

    Raises:
        ConfigError: ``clip`` is not positive and finite, ``num_examples`` is below 1, or the
            adjacency is unknown.

    >>> round(sensitivity(1.0, 100), 6)
    0.014142
    """
    if not (math.isfinite(clip) and clip > 0):
        raise ConfigError(f"clip must be positive and finite, got {clip}")
    if num_examples < 1:
        raise ConfigError(f"num_examples must be at least 1, got {num_examples}")
    if adjacency not in ("replace-one", "add-remove"):
        raise ConfigError(f"adjacency must be replace-one or add-remove, got {adjacency!r}")
    factor = math.sqrt(2) if adjacency == "replace-one" else 1.0
    return factor * clip**2 / num_examples


def check_noise(noise_multiplier: float) -> None:
    """Refuse a noise multiplier that is not a positive, finite number."""
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ConfigError(f"noise_multiplier must be positive and finite, got {noise_multiplier}")


class ClippedCorrelation:
    """R of a client's data set, added up by batches, every view clipped to norm ``clip``.

    Each sample must be added exactly once, with all its views: a sample that comes twice has twice
    the sensitivity. ``result`` therefore refuses any other count than ``num_examples``.

    Raises:
        ConfigError: ``clip`` or ``num_examples`` is out of range.
    """

    def __init__(
        self, clip: float, num_examples: int, *, adjacency: Adjacency = "replace-one"
    ) -> None:
        sensitivity(clip, num_examples, adjacency=adjacency)  # checks all three
        self.clip, self.num_examples, self.adjacency = clip, num_examples, adjacency
        self.seen = 0
        self._sum: Tensor | None = None

    def add(self, *views: "Tensor") -> None:
        """Add the features of a batch, one [B, D] per view, rows in the same order.

        Raises:
            ConfigError: Views differ in shape, from each other or from what was added before, or
                a feature is NaN or infinite; nothing of the batch was added.
        """
        import torch

        if not views or any(v.ndim != 2 or v.shape != views[0].shape for v in views):
            raise ConfigError(
                f"views must be [B, D] and alike, got {[tuple(v.shape) for v in views]}"
            )
        dim = views[0].shape[1]
        packed_size(dim)
        if self._sum is not None and len(self._sum) != dim:
            raise ConfigError(
                f"features must have {len(self._sum)} dimensions as before, got {dim}"
            )
        for view in views:
            bad = int((~view.isfinite()).any(dim=1).sum())
            if bad:
                raise ConfigError(f"features must be finite: {bad} of {len(view)} rows are not")
        for view in views:
            with torch.no_grad(), torch.autocast(view.device.type, enabled=False):
                z = view.detach() if view.dtype == torch.float64 else view.detach().float()
                norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
                z = z * (self.clip / norm.clamp(min=self.clip))
                product = (z.T @ z).double() / len(views)
            self._sum = product if self._sum is None else self._sum + product
        self.seen += views[0].shape[0]

    def result(self) -> "Tensor":
        """R without noise, [D, D] float64.

        Raises:
            ConfigError: Not exactly ``num_examples`` samples were added (with "add-remove", none).
        """
        exact = self.adjacency == "replace-one"
        if self._sum is None or (exact and self.seen != self.num_examples):
            raise ConfigError(
                f"the correlation is of {self.num_examples} samples, each added once, "
                f"got {self.seen}"
            )
        return self._sum / self.num_examples


class GaussianMechanism:
    """Releases R with symmetric Gaussian noise, ``1/noise_multiplier``-GDP per release.

    The noise is N(0, s^2) on the isometric packing (``svec``), s = noise_multiplier * sensitivity:
    diagonal entries have variance s^2, the others s^2 / 2, mirrored. It is fitted to the
    sensitivity, so releases are private only if R was made of clipped features; ``release`` refuses
    matrices that no clipped features can have.

    Args:
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        clip: Norm bound c of the features.
        num_examples: n, public. See ``sensitivity``.
        adjacency: "replace-one", or "add-remove" with n a public constant.
        secure: Draw the noise from the operating system's random source, not from a generator.
            Whoever knows a generator's seed can subtract its noise: for deployments, set it.

    Raises:
        ConfigError: A number is out of range.
    """

    def __init__(
        self,
        noise_multiplier: float,
        clip: float,
        num_examples: int,
        *,
        adjacency: Adjacency = "replace-one",
        secure: bool = False,
    ) -> None:
        check_noise(noise_multiplier)
        self.noise_multiplier, self.clip, self.num_examples = noise_multiplier, clip, num_examples
        self.adjacency, self.secure = adjacency, secure
        self.noise_std = noise_multiplier * sensitivity(clip, num_examples, adjacency=adjacency)

    def correlation(self) -> ClippedCorrelation:
        """An empty accumulator with this mechanism's clip, n and adjacency."""
        return ClippedCorrelation(self.clip, self.num_examples, adjacency=self.adjacency)

    def check(self, corr: "Tensor") -> None:
        """Refuse an R that no features of this clip have, before anything is paid for it.

        Raises:
            ConfigError: R is not square, symmetric and finite, has an impossible trace or
                eigenvalue, or is of less than single precision.
        """
        if corr.ndim != 2 or corr.shape[0] != corr.shape[1]:
            raise ConfigError(f"a correlation matrix must be [D, D], got {tuple(corr.shape)}")
        if not bool(corr.isfinite().all()):
            raise ConfigError("a correlation matrix must be finite, got NaN or infinity")
        import torch

        if corr.dtype not in (torch.float32, torch.float64):  # rounding moves R by more than it may
            raise ConfigError(f"a correlation matrix must be float32 or float64, got {corr.dtype}")
        double, bound = corr.double(), self.clip**2
        trace, tolerance = float(double.trace()), 1e-3 * bound
        if self.adjacency == "replace-one" and trace > bound + tolerance:
            raise ConfigError(
                f"features clipped to {self.clip} have a correlation matrix of trace at most "
                f"{bound:g}, got {trace:g}: were they clipped?"
            )
        lowest = float(torch.linalg.eigvalsh(double)[0])
        if lowest < -tolerance:
            raise ConfigError(f"a correlation matrix has no eigenvalue below 0, got {lowest:g}")
        svec(corr)  # symmetric, and not too wide

    def release(self, corr: "Tensor", generator: "Generator | None" = None) -> "Tensor":
        """Add noise to R, [D, D], and return a symmetric matrix of the same type.

        One release has one price. Releasing the same R again with fresh noise costs again; using
        the same noise for two different R reveals their difference.

        Args:
            corr: R in float32 or float64, of ``correlation()`` or of features clipped elsewhere.
            generator: Source of the noise; must be None when ``secure`` is set, and only then.

        Raises:
            ConfigError: R is not square, symmetric and finite, no clipped features have it, or the
                generator is missing or one too many.
        """
        self.check(corr)
        return smat(svec(corr) + self._noise(packed_size(corr.shape[0]), generator).to(corr))

    def _noise(self, size: int, generator: "Generator | None") -> "Tensor":
        import torch

        if self.secure != (generator is None):
            raise ConfigError(
                "a secure mechanism draws from the operating system: pass no generator"
                if self.secure
                else "release needs a generator, or a mechanism with secure=True"
            )
        if generator is None:
            return self.noise_std * torch.from_numpy(secure_normal(size))
        draw = torch.randn(size, generator=generator, device=generator.device, dtype=torch.float64)
        return self.noise_std * draw


def secure_normal(size: int) -> np.ndarray:
    """Standard normal numbers from ``os.urandom``, each the mean of four Box-Muller draws times 2.

    The sum makes it hard to invert a number to the uniform bits it came from (Holohan & Braghin
    2021, "Secure random sampling in differential privacy").
    """
    bits = np.frombuffer(os.urandom(64 * size), dtype=np.uint64).reshape(2, 4, size) >> np.uint64(
        11
    )
    first, second = (bits.astype(np.float64) + 0.5) * 2.0**-53
    normal: np.ndarray = np.sqrt(-2 * np.log(first)) * np.cos(2 * math.pi * second)
    total: np.ndarray = normal.sum(axis=0) / 2
    return total
