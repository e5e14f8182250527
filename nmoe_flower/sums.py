"""Sums over latents: all that one exchange needs to carry, and what a server solves from them.

A client tells how many latents it has, their mean, their scatter, and counts and sums by class.
Sums of clients add up to those of the pooled data, whatever the skew; one that joins is added, one
that leaves is subtracted. From them follow exactly, without a round of training: a standardisation
or the principal components, a ridge head, and the discriminants of the clients (the gate ``lda``).

Scatter and sums by class are kept about each part's mean, and merged with the distance of the
means (Chan, Golub & LeVeque 1983): sums about zero would lose what matters where means are large.
All is float64; float32 travels, but for the mean. D is the length of a latent, C the number of
classes.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import DataError

__all__ = [
    "Discriminants",
    "Ridge",
    "Solution",
    "Standardisation",
    "Sums",
    "covariance_shrunk",
    "discriminants",
    "from_moments",
    "nearest_means",
    "packed_bytes",
    "ridge",
    "solve",
    "standardisation",
    "total",
    "within_covariance",
]

Array = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]

_MOST_BYTES = 2**30  # of one scatter matrix in float64; a server holds about four
_ROWS = 4096  # latents multiplied at a time
_CONSTANT = 1e-6  # of the largest deviation: a dimension that varies less says nothing
_ROUNDING = 1e-4  # what float32 on the wire may move, relative to the largest number
_DIGITS = 1e-13  # of the means: what float64 may move a mean of what is left by, and then some


@dataclass(frozen=True)
class Sums:
    """What the latents of one client, or of several together, add up to.

    Attributes:
        count: How many latents, at least 1.
        mean: The mean of these latents, [D].
        scatter: The sum of (x - mean)(x - mean)^T over them, [D, D].
        class_counts: How many of each class, [C]; noise may make them fractions.
        class_sums: The sum of (x - mean) over the latents x of each class, [C, D].

    Raises:
        DataError: A shape does not fit, a number is not finite, or the scatter is not symmetric.
    """

    count: int
    mean: Array
    scatter: Array
    class_counts: Array
    class_sums: Array

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DataError(f"sums are of at least 1 latent, got a count of {self.count}")
        dim, classes = len(self.mean), len(self.class_counts)
        for name, value, shape in (
            ("mean", self.mean, (dim,)),
            ("scatter", self.scatter, (dim, dim)),
            ("class-counts", self.class_counts, (classes,)),
            ("class-sums", self.class_sums, (classes, dim)),
        ):
            if value.shape != shape or not value.size:
                raise DataError(f"{name} has the shape {value.shape}, wanted {shape}")
            if not np.isfinite(value).all():
                raise DataError(f"{name} has NaN or infinite entries")
        largest = float(np.abs(self.scatter).max())
        if not np.allclose(self.scatter, self.scatter.T, rtol=0, atol=1e-6 * largest):
            raise DataError("the scatter is not symmetric")

    @classmethod
    def of(cls, latents: npt.NDArray[Any], labels: npt.NDArray[np.int64], num_classes: int) -> Self:
        """The sums of latents [n, D] with labels [n] from 0 to ``num_classes`` - 1.

        Raises:
            DataError: There is no latent, one is not finite, D is too large for this machine, or
                the labels are not [n] whole numbers of that range.

        >>> sums = Sums.of(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([0, 1]), 2)
        >>> sums.mean, sums.scatter.tolist()
        (array([1., 1.]), [[2.0, 0.0], [0.0, 0.0]])
        """
        count, dim = latents.shape
        packed_bytes(dim)
        if not count:
            raise DataError("sums are of at least 1 latent, got none")
        if not np.isfinite(latents).all():
            bad = int((~np.isfinite(latents)).any(axis=1).sum())
            raise DataError(f"latents must be finite: {bad} of {count} are not")
        if labels.shape != (count,) or labels.dtype.kind not in "iu":
            raise DataError(
                f"labels must be [{count}] whole numbers, got {labels.dtype} {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= num_classes:
            raise DataError(
                f"labels must be in 0..{num_classes - 1}, got {labels.min()} to {labels.max()}"
            )
        mean = latents.mean(axis=0, dtype=np.float64)
        try:
            scatter, class_sums = np.zeros((dim, dim)), np.zeros((num_classes, dim))
        except MemoryError:
            raise DataError(_too_large(dim)) from None
        one_hot = np.eye(num_classes)
        for start in range(0, count, _ROWS):
            rows = slice(start, start + _ROWS)
            centred = latents[rows] - mean
            scatter += centred.T @ centred
            class_sums += one_hot[labels[rows]].T @ centred
        counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
        return cls(count, mean, scatter, counts, class_sums)

    @property
    def dim(self) -> int:
        """D, the length of a latent."""
        return len(self.mean)

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of both together: a client that joins.

        Raises:
            DataError: They are of other latents or classes.
        """
        return total([self, other])

    def __sub__(self, other: "Sums") -> "Sums":
        """What is left without ``other``: a client that leaves.

        Raises:
            DataError: ``other`` is not part of this: it has more, it varies more, or nothing is
                left. Sums with noise, whose counts are fractions, may vary more.
        """
        _alike(self, other)
        count = self.count - other.count
        if count < 1:
            raise DataError(
                f"{other.count} latents of {self.count} are subtracted: nothing would be left"
            )
        class_counts = self.class_counts - other.class_counts
        if class_counts.min() < -_ROUNDING * self.count:
            raise DataError("more latents of a class are subtracted than there are")
        mean = (self.count * self.mean - other.count * other.mean) / count
        apart = mean - other.mean
        between = (count * other.count / self.count) * np.outer(apart, apart)
        scatter = self.scatter - other.scatter - between
        least = float(scatter.diagonal().min())
        allowed = _ROUNDING * float(np.abs(self.scatter).max())
        allowed += (_DIGITS * self.count * float(np.abs(self.mean).max())) ** 2
        if least < -allowed and not self._is_noisy and not other._is_noisy:
            raise DataError(
                f"{other.count} latents are subtracted that are not among these {self.count}: the "
                f"scatter would have {least:.4g} on its diagonal"
            )
        return Sums(
            count,
            mean,
            scatter,
            class_counts,
            self.class_sums
            - other.class_sums
            - np.outer(other.class_counts, other.mean - self.mean)
            - np.outer(class_counts, mean - self.mean),
        )

    @property
    def _is_noisy(self) -> bool:
        """Whether noise was added: a count of latents is a whole number."""
        return bool((self.class_counts != np.round(self.class_counts)).any())

    def under(self, standard: "Standardisation") -> "Sums":
        """The sums of the same latents after a standardisation; exact, since that is linear."""
        return Sums(
            self.count,
            standard.apply(self.mean),
            standard.around(self.scatter),
            self.class_counts,
            standard.linear(self.class_sums),
        )

    def packed(self) -> dict[str, npt.NDArray[Any]]:
        """The sums as they travel: the upper triangle of the scatter row by row.

        In float32 but for counts and the mean, whose last digits decide where spread is small.
        """
        rows, columns = np.triu_indices(self.dim)
        return {
            "count": np.array(self.count, np.int64),
            "mean": self.mean,
            "scatter": self.scatter[rows, columns].astype(np.float32),
            "class-counts": self.class_counts,
            "class-sums": self.class_sums.astype(np.float32),
        }

    @classmethod
    def read(cls, arrays: Arrays) -> Self:
        """Take the sums from what travelled, and refuse what contradicts itself.

        Raises:
            DataError: An array is missing, or of a wrong length or kind; or sums, counts and mean
                are not of the same latents.
        """
        missing = [name for name in _NAMES if name not in arrays]
        if missing:
            raise DataError(f"the array {missing[0]!r} is missing")
        for name in _NAMES:
            if arrays[name].dtype.kind not in "iuf":
                raise DataError(f"{name} is of dtype {arrays[name].dtype}, wanted numbers")
        if arrays["count"].size != 1 or arrays["count"].dtype.kind not in "iu":
            raise DataError(f"count must be one whole number, got {arrays['count']!r}")
        mean, triangle = (arrays[name].astype(np.float64) for name in ("mean", "scatter"))
        dim = mean.size
        if mean.ndim != 1 or triangle.shape != (dim * (dim + 1) // 2,):
            raise DataError(
                f"scatter has the shape {triangle.shape}; the upper triangle for a mean of shape "
                f"{mean.shape} has {dim * (dim + 1) // 2} numbers"
            )
        packed_bytes(dim)
        scatter = np.zeros((dim, dim))
        rows, columns = np.triu_indices(dim)
        scatter[rows, columns] = triangle
        scatter[columns, rows] = triangle
        found = cls(
            int(arrays["count"]),
            mean,
            scatter,
            np.atleast_1d(arrays["class-counts"]).astype(np.float64),
            np.atleast_2d(arrays["class-sums"]).astype(np.float64),
        )
        found._check_agree()
        return found

    def _check_agree(self) -> None:
        """Counts, scatter and sums by class must be of the same latents."""
        counted = float(self.class_counts.sum())
        if abs(counted - self.count) > _ROUNDING * self.count:
            raise DataError(f"count is {self.count}, but class-counts add up to {counted:g}")
        least = float(self.scatter.diagonal().min())
        if least < -_ROUNDING * float(np.abs(self.scatter).max()):
            raise DataError(
                f"the scatter has {least:.4g} on its diagonal; a sum of squares is not below 0"
            )
        deviation = np.sqrt(np.maximum(self.scatter.diagonal(), 0))
        allowed = _ROUNDING * (math.sqrt(self.count) * deviation + np.abs(self.class_sums).max())
        if (np.abs(self.class_sums.sum(axis=0)) > allowed).any():
            raise DataError("class-sums about the mean do not add up to 0")
        bound = np.outer(deviation, deviation)
        if (np.abs(self.scatter) > bound + _ROUNDING * float(bound.max())).any():
            raise DataError(
                "the scatter is no sum of squares: entries beside its diagonal are too large"
            )


_NAMES = ("count", "mean", "scatter", "class-counts", "class-sums")


def packed_bytes(dim: int) -> int:
    """Bytes of a scatter that travels; refuses latents whose matrices no memory should hold.

    Raises:
        DataError: A matrix [D, D] in float64 is larger than 1 GiB; the text says how large.

    >>> packed_bytes(1536)
    4721664
    """
    if 8 * dim**2 > _MOST_BYTES:
        raise DataError(_too_large(dim))
    return 4 * (dim * (dim + 1) // 2)


def _too_large(dim: int) -> str:
    return (
        f"latents of {dim:,} numbers: their second moments take {8 * dim**2:,} bytes in memory and "
        f"{2 * dim * (dim + 1):,} on the wire; allowed: up to {_MOST_BYTES:,} in memory, which are "
        f"latents of {math.isqrt(_MOST_BYTES // 8):,} numbers"
    )


def _alike(first: Sums, second: Sums) -> None:
    for name, one, other in (
        ("latents", first.dim, second.dim),
        ("classes", len(first.class_counts), len(second.class_counts)),
    ):
        if one != other:
            raise DataError(f"sums of other {name}: {one} numbers and {other}")


def total(parts: Iterable[Sums]) -> Sums:
    """The sums of all parts together; the order of the parts changes nothing but the last digits.

    Raises:
        DataError: There is no part, or they are of other latents or classes.
    """
    return _pooled(parts)[0]


def within_covariance(parts: Iterable[Sums]) -> Array:
    """The covariance within the parts, pooled: the sum of their scatters over that of counts.

    Raises:
        DataError: As `total`.
    """
    return _pooled(parts)[1]


def _pooled(parts: Iterable[Sums]) -> tuple[Sums, Array, Array]:
    """The total, the covariance within parts [D, D], and their means [E, D]; in one pass."""
    first: Sums | None = None
    counts, means, by_class = [], [], []
    for part in parts:
        if first is None:
            first = part
            inner, class_sums = part.scatter.copy(), part.class_sums.copy()
        else:
            _alike(first, part)
            inner += part.scatter
            class_sums += part.class_sums
        counts.append(part.count)
        means.append(part.mean)
        by_class.append(part.class_counts)
    if first is None:
        raise DataError("sums of no client")
    weights, centres = np.array(counts, float), np.stack(means)
    count = sum(counts)
    mean = weights @ centres / count
    apart = centres - mean
    scatter = inner + (apart.T * weights) @ apart
    class_counts = np.stack(by_class)
    together = Sums(
        count,
        mean,
        (scatter + scatter.T) / 2,
        class_counts.sum(axis=0),
        class_sums + class_counts.T @ apart,
    )
    return together, inner / count, centres


@dataclass(frozen=True)
class Standardisation:
    """What makes latents alike: z = scale * (x - mean), or z = matrix (x - mean).

    Attributes:
        mean: The mean latent, [D].
        weight: The scale, [D]: one over the deviation of each number, 0 for one that never varied;
            or the matrix, [k, D]: principal components in rows.
    """

    mean: Array
    weight: Array

    def linear(self, rows: Array) -> Array:
        """The same without taking off the mean: rows [..., D] to [..., k]."""
        if self.weight.ndim == 1:
            return rows * self.weight
        return np.asarray(rows @ self.weight.T)

    def apply(self, rows: Array) -> Array:
        """Latents [..., D] to [..., k]."""
        return self.linear(rows - self.mean)

    def around(self, scatter: Array) -> Array:
        """A scatter [D, D] to that of the standardised latents [k, k]."""
        found = self.linear(self.linear(scatter).T)
        return np.asarray((found + found.T) / 2)

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """As a network keeps them, in float32: ``mean``, and ``scale`` or ``matrix``."""
        name = "scale" if self.weight.ndim == 1 else "matrix"
        return {"mean": self.mean.astype(np.float32), name: self.weight.astype(np.float32)}

    def rounded(self) -> "Standardisation":
        """What a network keeps of it: what is solved for this is solved for exactly that."""
        mean, weight = (array.astype(np.float64) for array in self.arrays().values())
        return Standardisation(mean, weight)


def standardisation(sums: Sums, components: int = 0, *, uniform: bool = False) -> Standardisation:
    """Mean 0 and variance 1 in every number of a latent, or its principal components.

    Components are those of the standardised latents, so that no unit decides; they keep their
    proportions, and together they have the mean variance 1. Numbers are rounded to float32.

    Args:
        sums: What everybody's latents add up to.
        components: k, the components to keep; 0: keep every number.
        uniform: One scale for all numbers, for the mean variance 1: what of noisy sums can be told.

    Raises:
        DataError: There are fewer than ``components`` numbers in a latent, none of them varies, or
            noise has made their variance negative.
    """
    if not 0 <= components <= sums.dim:
        raise DataError(
            f"components is {components}; allowed: 0 (all) to {sums.dim}, the numbers of a latent"
        )
    deviation = np.sqrt(np.maximum(sums.scatter.diagonal(), 0) / sums.count)
    if uniform:
        variance = float(sums.scatter.trace()) / sums.count / sums.dim
        if variance < 0:
            raise DataError(
                f"the mean variance of the latents is {variance:.4g}: noise has drowned it; "
                "allowed: above 0, by less noise or more latents"
            )
        deviation = np.full(sums.dim, math.sqrt(variance))
    scale = _scale(deviation)
    found = Standardisation(sums.mean, scale)
    if components:
        values, vectors = np.linalg.eigh(found.around(sums.scatter / sums.count))
        kept = vectors[:, ::-1][:, :components].T
        kept = kept * np.sign(kept[np.arange(components), np.abs(kept).argmax(axis=1)])[:, None]
        size = math.sqrt(max(float(values[::-1][:components].mean()), np.finfo(float).tiny))
        found = Standardisation(sums.mean, kept * scale / size)
    return found.rounded()


def from_moments(parts: Iterable[Arrays]) -> Standardisation:
    """Mean 0 and variance 1 from ``count``, ``mean`` and ``squares`` of each client alone.

    What `standardisation` gives without components, for D times fewer bytes.

    Raises:
        DataError: There is no part, one has other numbers than the first or some that are not
            finite, or no latent varies.
    """
    counts, means, squares = [], [], []
    for part in parts:
        counts.append(int(part["count"]))
        means.append(np.asarray(part["mean"], np.float64))
        squares.append(np.asarray(part["squares"], np.float64))
    shapes = {value.shape for value in (*means, *squares)}
    finite = all(np.isfinite(value).all() for value in (*means, *squares))
    least = min(map(np.min, squares)) if len(shapes) == 1 and finite else -1
    if min(counts, default=0) < 1 or least < 0:
        raise DataError(
            "moments need counts of at least 1, and finite squares of at least 0 beside means"
        )
    weights, centres = np.array(counts, float), np.stack(means)
    mean = weights @ centres / weights.sum()
    spread = np.sum(squares, axis=0) + weights @ np.square(centres - mean)
    return Standardisation(mean, _scale(np.sqrt(spread / weights.sum()))).rounded()


def _scale(deviation: Array) -> Array:
    """One over each deviation [D]; 0 for what does not vary.

    Raises:
        DataError: Nothing varies.
    """
    largest = float(deviation.max())
    if largest == 0:
        raise DataError("every latent is the same: there is nothing to tell them apart by")
    varies = deviation > _CONSTANT * largest
    return np.where(varies, 1 / np.where(varies, deviation, 1.0), 0.0)


def covariance_shrunk(covariance: Array, shrinkage: float, floor: float = 0.0) -> Array:
    """(1 - s) S + (s v + floor) I, where v is the mean variance; never singular for s above 0.

    Of a noisy S the nearest covariance takes its place: eigenvalues below 0 count as 0. Noise of
    the matrix takes them down to -floor, and that of the means, by which it is centred, further.

    Args:
        covariance: The covariance S of latents, [D, D].
        shrinkage: How far it is moved towards its mean variance, 0 to 1.
        floor: The largest eigenvalue of noise in S, which keeps noise from being taken for a
            direction of little variance; 0: there is none.
    """
    dim = len(covariance)
    if floor > 0:
        values, vectors = np.linalg.eigh(covariance)
        covariance = (vectors * np.maximum(values, 0)) @ vectors.T
    variance = float(covariance.trace()) / dim
    if variance <= 0:
        return (1.0 + floor) * np.eye(dim)
    return (1 - shrinkage) * covariance + (shrinkage * variance + floor) * np.eye(dim)


@dataclass(frozen=True)
class Ridge:
    """A linear head: logits = weight x + bias.

    Attributes:
        weight: A row per class, [C, D].
        bias: A number per class, [C].
    """

    weight: Array
    bias: Array


def ridge(
    sums: Sums, *, shrinkage: float = 0.1, sharpness: float = 1.0, floor: float = 0.0
) -> Ridge:
    """Least squares onto the one-hot labels, with a shrunk covariance: that of the pooled data.

    Args:
        sums: What everybody's latents add up to.
        shrinkage: How far the covariance is moved towards its mean variance, 0 to 1; above 0 it
            holds with fewer latents than numbers too.
        sharpness: The logits are so many times the least-squares answers, which lie about 0 and 1.
        floor: Added to every variance: the largest eigenvalue of noise in the covariance.
    """
    cross = sums.class_sums / sums.count
    weight = _solve(covariance_shrunk(sums.scatter / sums.count, shrinkage, floor), cross.T).T
    bias = sums.class_counts / sums.count - weight @ sums.mean
    return Ridge(sharpness * weight, sharpness * bias)


@dataclass(frozen=True)
class Discriminants:
    """Scores of E normal laws with one covariance: log densities, less what all have in common.

    Attributes:
        weight: A row per client, [E, D].
        bias: A number per client, [E].
    """

    weight: Array
    bias: Array

    def before(self, standard: Standardisation) -> "Discriminants":
        """The same scores of latents that are not standardised: that is folded in."""
        turned = standard.weight.ndim == 2
        weight = self.weight @ standard.weight if turned else self.weight * standard.weight
        return Discriminants(weight, self.bias - weight @ standard.mean)


def discriminants(
    means: Array, covariance: Array, *, shrinkage: float = 0.1, floor: float = 0.0
) -> Discriminants:
    """Linear discriminants of clients: w_i = S^-1 mu_i and b_i = -mu_i w_i / 2.

    All clients are equally likely beforehand: how much one holds says nothing of who is asked.

    Args:
        means: Mean latent of each client, [E, D].
        covariance: Covariance within clients, pooled, [D, D].
        shrinkage: How far the covariance is moved towards its mean variance, 0 to 1.
        floor: Added to every variance, as in `covariance_shrunk`.
    """
    centre = means.mean(axis=0)
    apart = means - centre
    weight = _solve(covariance_shrunk(covariance, shrinkage, floor), apart.T).T
    bias = -0.5 * (apart * weight).sum(axis=1) - weight @ centre
    return Discriminants(weight, bias)


def nearest_means(means: Array) -> Discriminants:
    """Scores of E normal laws of variance sqrt(D) in every number: the nearest mean is first.

    The variance is not 1, as it would be of standardised latents whose numbers know nothing of each
    other: D numbers that say much the same would be sure of what they guess.

    Args:
        means: Mean standardised latent of each client, [E, D].

    >>> nearest_means(np.array([[2.0], [4.0]])).bias.tolist()
    [-2.0, -8.0]
    """
    weight = means / math.sqrt(means.shape[1])
    return Discriminants(weight, -0.5 * (means * weight).sum(axis=1))


def _solve(matrix: Array, right: Array) -> Array:
    """Solve a positive definite system; with no shrinkage at all it may be singular.

    Raises:
        DataError: The system is singular.
    """
    try:
        return np.asarray(np.linalg.solve(matrix, right))
    except np.linalg.LinAlgError:
        raise DataError(
            "the covariance of the latents is singular and is not shrunk; allowed: a shrinkage "
            "above 0"
        ) from None


@dataclass(frozen=True)
class Solution:
    """All that follows from the sums of all clients.

    Attributes:
        standard: What is applied to every latent first.
        head: The ridge head on standardised latents.
        gate: The discriminants of the clients on standardised latents, in their order.
    """

    standard: Standardisation
    head: Ridge
    gate: Discriminants


def solve(
    parts: Iterable[Sums],
    *,
    components: int = 0,
    shrinkage: float = 0.1,
    sharpness: float = 6.0,
    noise: float = 0.0,
) -> Solution:
    """Standardisation, ridge head and discriminants from the sums of each client, read once.

    Args:
        parts: One per client, in order.
        components: The components to keep; 0: keep every number of a latent.
        shrinkage: How far both covariances are moved towards their mean variance, 0 to 1.
        sharpness: The head's logits are so many times its least-squares answers.
        noise: The largest eigenvalue of noise in the scatter of all together, of private sums; all
            numbers of a latent then get one scale. 0: there is none.

    Raises:
        DataError: As `total` and `standardisation`.
    """
    sums, covariance, means = _pooled(parts)
    standard = standardisation(sums, components, uniform=noise > 0)
    weight = standard.weight
    stretch = np.square(weight).sum(axis=1).max() if components else np.square(weight).max()
    floor = noise / sums.count * float(stretch)
    return Solution(
        standard,
        ridge(sums.under(standard), shrinkage=shrinkage, sharpness=sharpness, floor=floor),
        discriminants(
            standard.apply(means), standard.around(covariance), shrinkage=shrinkage, floor=floor
        ),
    )
