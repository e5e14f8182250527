"""Tables of numbers from files: CSV, parquet, .npz and .npy, as named columns."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.hugging_face import import_extra
from nmoe_flower.errors import DataError
from nmoe_flower.files import read_text

__all__ = ["TABLE_SUFFIXES", "Table", "read_table"]

MOST_BYTES = 1 << 32
_LARGEST = 1e100  # of a feature, either side of 0: its square can still be summed
_NAMES = "columns"  # in an .npz with one matrix: the names of its columns

Column = Sequence[Any] | npt.NDArray[Any]


@dataclass(frozen=True)
class Table:
    """Columns of equal length by name; of a CSV they hold text.

    Attributes:
        name: The file's name, for errors.
        columns: The columns, by name, in the order of the file.
    """

    name: str
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str, key: str) -> Column:
        """One column.

        Args:
            name: The column's name.
            key: The setting that asks for it, for the error.

        Raises:
            DataError: There is none of that name.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.name} has no column {name!r} ({key}); the columns are "
                f"{', '.join(self.columns)}"
            )
        return self.columns[name]

    def numbers(self, names: Sequence[str]) -> npt.NDArray[np.float64]:
        """Columns as a matrix, float64 [N, len(names)].

        Raises:
            DataError: A value is missing, no number, NaN or too large: tells row and column.
        """
        matrix = np.empty((len(self), len(names)))
        for place, name in enumerate(names):
            matrix[:, place] = self._numbers(name)
        return matrix

    def _numbers(self, name: str) -> npt.NDArray[np.float64]:
        column = self.column(name, "data.feature-columns")
        try:
            values = np.asarray(column, dtype=np.float64)
            usable = np.abs(values) <= _LARGEST
        except (TypeError, ValueError, OverflowError):
            usable = np.zeros((0, 0), bool)
        if usable.ndim != 1:  # lists or texts among them: found one by one
            usable = np.array([_is_number(value) for value in column])
        if not usable.all():
            row = int(np.argmin(usable))
            raise DataError(
                f"row {row} of {self.name} has {column[row]!r} in column {name!r}; finite "
                f"numbers up to {_LARGEST:g} are needed (data.feature-columns chooses the columns)"
            )
        return values


def _is_number(value: Any) -> bool:
    try:
        return abs(float(value)) <= _LARGEST
    except (TypeError, ValueError, OverflowError):
        return False


def read_table(path: Path, name: str = "") -> Table:
    """Read a table by its suffix.

    A ``.csv`` (or ``.tsv``) has a line of names. An ``.npz`` has a named array for every column, or
    one matrix, whose columns are named by the array ``columns``, else ``0``, ``1`` and so on. An
    ``.npy`` is a structured array, or a matrix with columns ``0``, ``1`` and so on. ``.parquet``
    needs the extra ``data``.

    Args:
        path: The file.
        name: For errors; "" takes the file's.

    Raises:
        DataError: It cannot be read, is no table, has no rows, or columns share a name.
    """
    name = name or path.name
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{name} is no table; allowed: {', '.join(TABLE_SUFFIXES)}")
    columns = reader(path, name)
    if not columns:
        raise DataError(f"{name} has no columns")
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{column} has {length}" for column, length in lengths.items())
        raise DataError(f"the columns of {name} differ in length: {told}")
    if not next(iter(lengths.values())):
        raise DataError(f"{name} has no rows")
    return Table(name, columns)


def _read_csv(path: Path, name: str) -> dict[str, Column]:
    text = read_text(path, what="the table", raises=DataError, most=MOST_BYTES)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        lines = [
            line
            for line in csv.reader(io.StringIO(text, newline=None), delimiter=delimiter)
            if line
        ]
    except csv.Error as error:
        raise DataError(f"{name} is not a table of values with {delimiter!r}: {error}") from None
    if not lines:
        raise DataError(f"{name} is empty")
    names, *rows = ([value.strip() for value in line] for line in lines)
    if twice := [column for column in names if names.count(column) > 1]:
        raise DataError(f"{name} has the column {twice[0]!r} twice")
    for row, values in enumerate(rows):
        if len(values) != len(names):
            raise DataError(
                f"row {row} of {name} has {len(values)} values for {len(names)} columns"
            )
    return {column: [values[place] for values in rows] for place, column in enumerate(names)}


def _read_parquet(path: Path, name: str) -> dict[str, Column]:
    import_extra("pyarrow", f"the table {name}")
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
    except (OSError, ArrowException, ValueError) as error:
        raise DataError(f"{name} cannot be read: {error}") from None
    columns: dict[str, Column] = {}
    for column in table.column_names:
        if column in columns:
            raise DataError(f"{name} has the column {column!r} twice")
        columns[column] = table.column(column).to_pylist()
    return columns


def _read_npz(path: Path, name: str) -> dict[str, Column]:
    arrays = _load(path, name)
    matrices = [key for key, array in arrays.items() if array.ndim == 2]
    if len(matrices) > 1:
        raise DataError(
            f"{name} has several matrices: {', '.join(matrices)}; one, or arrays of one dimension"
        )
    columns: dict[str, Column] = {}
    for key, array in arrays.items():
        if array.ndim == 2:
            named = arrays.get(_NAMES)
            columns |= _columns_of(array, name, None if named is None else named.tolist())
        elif key != _NAMES or not matrices:
            columns[key] = _one_dimensional(key, array, name)
    return columns


def _read_npy(path: Path, name: str) -> dict[str, Column]:
    array = _load(path, name)[""]
    if array.dtype.names:
        return {key: _one_dimensional(key, array[key], name) for key in array.dtype.names}
    return _columns_of(array, name, None)


def _load(path: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file by name; an .npy has one, without a name."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return dict(loaded)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged archive raises anything
        if "pickle" in str(error):  # what NumPy advises then would run code of the file
            raise DataError(f"{name} holds Python objects, or is no file of arrays") from None
        raise DataError(f"{name} is no file of arrays: {error}") from None


def _columns_of(
    matrix: npt.NDArray[Any], name: str, names: Sequence[str] | None
) -> dict[str, Column]:
    if matrix.ndim != 2:
        raise DataError(f"{name} has an array of shape {matrix.shape}; [rows, columns] is needed")
    names = [str(place) for place in range(matrix.shape[1])] if names is None else names
    if len(names) != matrix.shape[1] or len(set(names)) != len(names):
        raise DataError(
            f"{name} has {matrix.shape[1]} columns and {len(set(names))} different names for them"
        )
    return {column: matrix[:, place] for place, column in enumerate(names)}


def _one_dimensional(key: str, array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    if array.ndim != 1:
        raise DataError(f"{key!r} in {name} has the shape {array.shape}; one dimension is needed")
    return array


_READERS: dict[str, Callable[[Path, str], dict[str, Column]]] = {
    ".csv": _read_csv,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    ".tsv": _read_csv,
}
TABLE_SUFFIXES = tuple(_READERS)
