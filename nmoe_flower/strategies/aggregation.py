"""Means over clients: of their arrays, as they arrive, and of what they measured."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from flwr.app import MetricRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.plurals import listed

__all__ = [
    "Largest",
    "Measured",
    "WeightedMean",
    "agreeing",
    "average",
    "listed",
    "only_finite",
    "shares_of",
]

Value = int | float | list[int] | list[float]  # of a metric

_ORDINARY = (2.0**-20, 2.0**53)  # weights whose products with float32 neither vanish nor overflow
_INT64_MAX = 2**63 - 1
_BLOCK = 2**16  # entries of a sum that are added at a time: they stay in the cache


class WeightedMean:
    """Running sum of ``weight * arrays``: memory of one model, however many replies are added.

    Arrays keep the dtype of the first reply; give it replies whose dtypes were restored.

    - **Floats** are summed in float32 if they are float32, else in float64. Where such a sum would
      overflow, or a weight is so large or small that products would, the array goes on as a running
      mean in float64: finite replies have a finite mean, whatever their weights.
    - **Integers and booleans** (BatchNorm's counter) are summed exactly, whatever their size, and
      the mean is rounded once: to the nearest, ties to even.

    Adding in a fixed order gives bit-equal results.

    Attributes:
        count: Replies added.
        weight: Sum of their weights, exactly.
    """

    def __init__(self) -> None:
        self._sums: dict[str, _Floats | _Integers] = {}
        self.weight = Fraction(0)
        self.count = 0

    @property
    def total(self) -> float:
        """Sum of the weights; infinite if no float holds it."""
        try:
            return float(self.weight)
        except OverflowError:
            return np.inf

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Add one reply's arrays with its finite weight of at least 0; 0 counts, but adds nothing.

        Args:
            arrays: Finite, real, of the names, shapes and dtypes of the first reply.
            weight: Weight of the reply, finite, at least 0; need not be a whole number.
        """
        before, exact = self.weight, Fraction(weight)
        self.weight += exact
        self.count += 1
        for name, value in arrays.items():
            if name not in self._sums:
                kind = _Floats if value.dtype.kind == "f" else _Integers
                self._sums[name] = kind(value)
        if exact:
            with np.errstate(over="raise", invalid="raise"):
                for name, value in arrays.items():
                    self._sums[name].add(value, weight, before)

    def result(self) -> dict[str, np.ndarray]:
        """The mean, in the dtypes that came in.

        Raises:
            ZeroDivisionError: The weights sum to zero.
        """
        if not self.weight:
            raise ZeroDivisionError("the weights of all replies sum to zero")
        return {name: sums.mean(self.weight) for name, sums in self._sums.items()}


class _Floats:
    """Sum of float arrays; after an overflow, and for odd weights, their mean so far."""

    def __init__(self, like: np.ndarray) -> None:
        self._dtype = like.dtype
        single = like.dtype.itemsize == 4
        self._wide = np.dtype(np.float32) if single else np.result_type(like, np.float64)
        self._sum: np.ndarray | None = None
        self._ahead = 0  # leading entries of the sum that have a value which overflows further on
        self._mean: np.ndarray | None = None

    def add(self, value: np.ndarray, weight: float, before: Fraction) -> None:
        """Add ``weight * value`` to replies that weighed ``before``; floating errors are raised."""
        if self._mean is None and _ORDINARY[0] <= weight <= _ORDINARY[1]:
            try:
                self._add_up(value, weight)
                return
            except FloatingPointError:
                pass
        self._add_to_mean(value, Fraction(weight), before)

    def _add_up(self, value: np.ndarray, weight: float) -> None:
        """Block by block; a block is replaced only by sums that are finite."""
        if self._sum is None:
            first = np.empty(value.shape, self._wide)  # in C's order, whatever that of the value
            self._sum = np.multiply(value, weight, out=first, dtype=self._wide)
            return
        entries, sums = value.reshape(-1), self._sum.reshape(-1)
        scratch = np.empty(min(sums.size, _BLOCK), self._wide)
        for start in range(0, sums.size, _BLOCK):
            self._ahead = start
            block = sums[start : start + _BLOCK]
            added = scratch[: block.size]
            np.multiply(entries[start : start + _BLOCK], weight, out=added, dtype=self._wide)
            block[:] = np.add(block, added, out=added)
        self._ahead = 0

    def _add_to_mean(self, value: np.ndarray, weight: Fraction, before: Fraction) -> None:
        """A share of the old mean and a share of the value: no part is larger than its whole."""
        precise = np.result_type(self._wide, np.float64)
        already = None
        if self._mean is None:
            zeros = np.zeros(value.shape, precise)
            self._mean = zeros if self._sum is None else self._sum / precise.type(float(before))
            if self._sum is not None and self._ahead:
                with_it = self._sum.reshape(-1)[: self._ahead].astype(precise)
                already = with_it / precise.type(float(before + weight))
            self._sum = None
        share = float(weight / (before + weight))
        largest = np.finfo(precise).max
        with np.errstate(over="ignore"):  # rounding up of the largest number there is
            mixed = self._mean * (1.0 - share) + value.astype(precise) * share
        self._mean = np.clip(mixed, -largest, largest, out=np.empty(value.shape, precise))
        if already is not None:
            self._mean.reshape(-1)[: self._ahead] = already

    def mean(self, total: Fraction) -> np.ndarray:
        """The mean of replies that weighed ``total``, more than 0: in the dtype of the replies."""
        mean = self._mean
        if mean is None:
            assert self._sum is not None  # something was added: the total is not 0
            with np.errstate(over="ignore"):  # rounding up of the largest number there is
                mean = self._sum / np.asarray(float(total), self._wide)
        if mean.dtype != self._dtype or not records.is_finite(mean):
            largest = np.finfo(self._dtype).max
            mean = np.clip(mean, -largest, largest)
        return mean.astype(self._dtype, copy=mean is self._mean)


class _Integers:
    """Exact sum of integer arrays: in int64 while it fits, then in Python's integers."""

    def __init__(self, like: np.ndarray) -> None:
        self._dtype = like.dtype
        self._sum = np.zeros(like.shape, np.int64)
        self._most = 0  # no entry of the sum is further from 0
        self._parts = 1  # what is summed is so many times weight * value: whole for any float

    def add(self, value: np.ndarray, weight: float, before: Fraction) -> None:
        """Add ``weight * value``; what was there ``before`` does not matter."""
        whole, parts = weight.as_integer_ratio()
        growth = max(parts // self._parts, 1)
        whole *= max(self._parts // parts, 1)
        self._parts = max(parts, self._parts)
        self._most = self._most * growth + whole * _largest(value)
        if max(self._most, growth) > _INT64_MAX and self._sum.dtype != object:
            self._sum = self._sum.astype(object)
        wide = value.astype(self._sum.dtype)
        self._sum = np.asarray(self._sum * growth + wide * whole, self._sum.dtype)

    def mean(self, total: Fraction) -> np.ndarray:
        """The mean of replies that weighed ``total``, rounded to the nearest, ties to even."""
        whole = int(total * self._parts)
        quotient = self._sum // whole
        rest = self._sum - quotient * whole
        up = (rest > whole - rest) | ((rest == whole - rest) & (quotient % 2 == 1))
        return np.asarray(quotient + up).astype(self._dtype)


def _largest(value: np.ndarray) -> int:
    """The largest distance from 0, at least 1: of the values, or of all that the dtype holds."""
    if value.dtype.kind == "b":
        return 1
    if value.dtype.itemsize < 8:
        return int(np.iinfo(value.dtype).max) + 1
    return max(int(value.max()), -int(value.min()), 1) if value.size else 1


def shares_of(weights: Sequence[float]) -> list[float]:
    """Each weight's share of their sum; the weights are finite, at least 0, and not all 0.

    >>> shares_of([1, 3])
    [0.25, 0.75]
    >>> shares_of([1e308, 1e308])
    [0.5, 0.5]
    """
    total = sum(weights)
    if total < np.inf:
        return [weight / total for weight in weights]
    exact = sum(map(Fraction, weights))
    return [float(Fraction(weight) / exact) for weight in weights]


class Largest:
    """Who sent the largest values of each array: memory of two numbers per array."""

    def __init__(self) -> None:
        self._squares: dict[str, tuple[float, int]] = {}

    def note(self, client: int, squares: Mapping[str, float]) -> None:
        """Compare the sums of squares of one reply's arrays with the largest so far."""
        for name, value in squares.items():
            if value > self._squares.get(name, (-1.0, 0))[0]:
                self._squares[name] = (value, client)

    def of(self, name: str) -> str:
        """The client with the largest values of an array, and their norm, in words."""
        if name not in self._squares:
            return "nobody sent it"
        squares, client = self._squares[name]
        return f"client {client} sent the largest, of norm {squares**0.5:.3g}"


@dataclass(frozen=True, slots=True)
class Measured:
    """The metrics of one usable reply.

    Attributes:
        client: Who sent it.
        weight: Finite, at least 0; 0: the client had no examples, and so measured nothing.
        metrics: As they came.
    """

    client: int
    weight: float
    metrics: MetricRecord


def average(measured: Sequence[Measured], without: str) -> tuple[MetricRecord, dict[str, str]]:
    """The weighted mean of every metric that can be averaged.

    A metric can be averaged if every client that had examples sent it, finite, and all as a number
    or all as a list of one length.

    Args:
        measured: Metrics of every usable reply, in a fixed order.
        without: The metric that is the weight.

    Returns:
        The means; and for each metric that is left out, which clients sent what.
    """
    counted = [one for one in measured if one.weight > 0]
    means, left_out = MetricRecord(), dict[str, str]()
    shares = shares_of([one.weight for one in counted]) if counted else []
    names = dict.fromkeys(name for one in counted for name in one.metrics if name != without)
    for name in names:
        values = {one.client: one.metrics.get(name) for one in counted}
        forms = {client: _form(value) for client, value in values.items()}
        if len(set(forms.values())) > 1 or not all(map(_is_finite, values.values())):
            left_out[name] = _told(forms)
            continue
        mean = _mean(list(values.values()), shares)
        if _is_finite(mean):
            means[name] = mean
        else:
            left_out[name] = "its mean is not finite"
    return means, left_out


def only_finite(metrics: MetricRecord) -> tuple[MetricRecord, dict[str, str]]:
    """The finite ones; and for each that is left out, its value."""
    left_out = {n: f"it is {_form(value)}" for n, value in metrics.items() if not _is_finite(value)}
    kept = {name: value for name, value in metrics.items() if name not in left_out}
    return MetricRecord(kept), left_out


def agreeing(measured: Sequence[Measured]) -> tuple[list[RecordDict], list[int]]:
    """The records whose metric names most clients share, for an aggregation that needs that.

    Returns:
        Those records, as Flower hands them over; and the clients whose names are others.
    """
    names = Counter(frozenset(one.metrics) for one in measured)
    common = names.most_common(1)[0][0] if names else frozenset()
    kept = [
        RecordDict({records.METRICS: one.metrics})
        for one in measured
        if one.metrics.keys() == common
    ]
    return kept, [one.client for one in measured if one.metrics.keys() != common]


def _mean(values: Sequence[Any], shares: Sequence[float]) -> Value:
    """In the order of the clients, as Flower sums."""
    if not isinstance(values[0], list):
        return float(sum(value * share for value, share in zip(values, shares, strict=True)))
    means = [value * shares[0] for value in values[0]]
    for value, share in zip(values[1:], shares[1:], strict=True):
        means = [mean + one * share for mean, one in zip(means, value, strict=True)]
    return means


def _form(value: Value | None) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        whole = "a list" if _is_finite(value) else "a list with NaN, infinite or huge entries"
        return f"{whole} of length {len(value)}"
    if _is_finite(value):
        return "a number"
    return "an integer that no float holds" if isinstance(value, int) else f"{value}"


def _is_finite(value: Value | None) -> bool:
    """Whether floats hold it; a list: all of it. Nothing is not finite."""
    if value is None:
        return False
    try:
        return all(map(math.isfinite, value)) if isinstance(value, list) else math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _told(forms: Mapping[int, str]) -> str:
    by_form: dict[str, list[int]] = {}
    for client, form in forms.items():
        by_form.setdefault(form, []).append(client)
    return "; ".join(f"{listed(clients)} sent {form}" for form, clients in by_form.items())
