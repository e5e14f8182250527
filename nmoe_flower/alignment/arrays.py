"""Kinds of arrays that the parts of alignment hand to each other."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["AnyFloats", "Bools", "Floats", "Ints", "State"]

AnyFloats = npt.NDArray[np.floating]
"""Floats in the precision they came in: single or double."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
State = dict[str, npt.NDArray[Any]]
"""All of a part that changes, by name: what a checkpoint keeps."""
