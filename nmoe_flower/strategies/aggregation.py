"""The weighted mean of replies, taken as they arrive."""

from collections.abc import Mapping

import numpy as np

__all__ = ["WeightedMean"]


class WeightedMean:
    """Running sum of ``weight * arrays``: memory of two models, however many replies are added.

    Floating arrays keep their dtype. Integer arrays (BatchNorm's counter) are averaged in float64
    and rounded back, where a plain mean would turn them into floats. Adding in a fixed order gives
    bit-equal results.
    """

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._scratch: dict[str, np.ndarray] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self.total = 0.0
        self.count = 0

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Add one reply's arrays with its weight."""
        for name, value in arrays.items():
            if name not in self._sums:
                self._dtypes[name] = value.dtype
                wide = np.float32 if value.dtype == np.float32 else np.float64
                self._sums[name] = np.multiply(value, weight, dtype=wide)
                self._scratch[name] = np.empty_like(self._sums[name])
            else:
                scaled = np.multiply(value, weight, out=self._scratch[name], casting="unsafe")
                self._sums[name] += scaled
        self.total += weight
        self.count += 1

    def result(self) -> dict[str, np.ndarray]:
        """The mean, in the dtypes that came in.

        Raises:
            ZeroDivisionError: The weights sum to zero.
        """
        if self.total <= 0:
            raise ZeroDivisionError("the weights of all replies sum to zero")
        return {
            name: _restore(value / np.asarray(self.total, value.dtype), self._dtypes[name])
            for name, value in self._sums.items()
        }


def _restore(mean: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "iub":
        mean = np.rint(mean)
    return mean.astype(dtype, copy=False)
