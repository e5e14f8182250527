"""A symmetric matrix as a vector of d(d+1)/2 numbers, with lengths kept: what travels for R.

Off-diagonal entries are stored once, times sqrt(2), so ||svec(R)||_2 = ||R||_F. Hence Gaussian
noise on the vector is calibrated by the Frobenius sensitivity, and no half of the matrix is sent
twice. Works on NumPy arrays and on torch tensors alike; torch is not imported here.
"""

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nmoe_flower.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MAX_DIM", "packed_dim", "packed_size", "smat", "svec"]

MAX_DIM = 2048
"""Widest features that are packed: 8.4 MB of float32 per matrix."""

Matrix = TypeVar("Matrix", np.ndarray, "Tensor")


def packed_size(dim: int) -> int:
    """Numbers in the packed form of a ``dim`` by ``dim`` matrix.

    Raises:
        ConfigError: ``dim`` is not in 1..MAX_DIM.
    """
    if not 1 <= dim <= MAX_DIM:
        raise ConfigError(f"features must have 1 to {MAX_DIM} dimensions to be packed, got {dim}")
    return dim * (dim + 1) // 2


def packed_dim(size: int) -> int:
    """Dimension d of the matrix whose packed form has ``size`` numbers.

    Raises:
        ConfigError: No d in 1..MAX_DIM has d(d+1)/2 = size.
    """
    dim = (math.isqrt(8 * size + 1) - 1) // 2 if size > 0 else 0
    if dim * (dim + 1) // 2 != size or not 1 <= dim <= MAX_DIM:
        raise ConfigError(
            f"a packed matrix has d(d+1)/2 numbers for some d in 1..{MAX_DIM}, got {size}"
        )
    return dim


def svec(matrix: Matrix) -> Matrix:
    """Pack a symmetric matrix [d, d] into [d(d+1)/2]: the upper triangle row by row.

    Raises:
        ConfigError: The matrix is not square, too wide, or not symmetric to rounding.

    >>> svec(np.array([[1.0, 2.0], [2.0, 3.0]]))
    array([1.        , 2.82842712, 3.        ])
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ConfigError(f"a matrix to pack must be square, got shape {tuple(matrix.shape)}")
    packed_size(matrix.shape[0])
    if float(abs(matrix - matrix.T).max()) > 1e-4 * float(abs(matrix).max()):
        raise ConfigError("a matrix to pack must be symmetric: one triangle would be lost")
    rows, columns = np.triu_indices(matrix.shape[0])
    packed: Matrix = matrix[rows, columns] * _scale(rows, columns, matrix)
    return packed


def smat(vector: Matrix, *, dim: int | None = None) -> Matrix:
    """Unpack what ``svec`` packed: [d(d+1)/2] to an exactly symmetric [d, d].

    Args:
        vector: The packed matrix.
        dim: The dimension both sides agreed on, if it is to be checked.

    Raises:
        ConfigError: The length fits no matrix, or not one of dimension ``dim``.
    """
    if vector.ndim != 1:
        raise ConfigError(f"a packed matrix must be one-dimensional, got {tuple(vector.shape)}")
    found = packed_dim(int(vector.shape[0]))
    if dim is not None and found != dim:
        raise ConfigError(
            f"a packed matrix of dimension {dim} has {packed_size(dim)} numbers, got "
            f"{vector.shape[0]} (dimension {found})"
        )
    rows, columns = np.triu_indices(found)
    values = vector / _scale(rows, columns, vector)
    empty: Any = np.zeros if isinstance(vector, np.ndarray) else vector.new_zeros
    matrix: Matrix = empty((found, found), dtype=values.dtype)
    matrix[rows, columns] = values
    matrix[columns, rows] = values
    return matrix


def _scale(rows: np.ndarray, columns: np.ndarray, like: Matrix) -> Matrix:
    """1 on the diagonal and sqrt(2) beside it, of the kind and type of ``like``."""
    scale = np.where(rows == columns, 1.0, math.sqrt(2))
    if isinstance(like, np.ndarray):
        return scale.astype(like.dtype)
    return like.new_tensor(scale)
