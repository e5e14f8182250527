"""Labelled rows of numbers, for sensors and tables: standardised, in place of images.

To everything that trains, a row of F features is an image of one pixel with F channels.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.columns import TABLE_SUFFIXES, Table, read_table
from nmoe_flower.data.images import Features
from nmoe_flower.data.request import LABEL_NAMES, DataRequest
from nmoe_flower.errors import DataError

__all__ = ["Rows", "describe_features", "read_features", "standardise", "tables_beside"]

_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(\.0*)?")  # as tables are often exported: 1.0
_FRACTION = re.compile(r"[+-]?[0-9]*\.[0-9]+(e[+-]?[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Rows:
    """A split of a table.

    Attributes:
        values: float64 [N, F], as they stand in the file.
        labels: Class codes, int64 [N].
        clients: Owner of each row, as text; None if nobody asked.
    """

    values: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    clients: list[str] | None = None


def read_features(request: DataRequest) -> tuple[list[Rows], list[str], tuple[str, ...]]:
    """Read the train split, and the test split if there is one.

    ``data.dataset`` is a table, or a folder with ``train`` and ``test`` tables (``train.csv``;
    several files ``train-0.csv``, ``train-1.csv`` are joined).

    Returns:
        Splits, class names, and the names of the F feature columns.

    Raises:
        DataError: A table cannot be read, a column is missing, or a value is no number: tells row
            and column.
    """
    tables = _split_tables(request)
    first = tables[0][0]
    label = request.label_column or _find_label(first)
    chosen = request.feature_columns or tuple(
        name for name in first.columns if name not in (label, request.client_column)
    )
    if request.client_column:
        first.column(request.client_column, "data.partition-column")
    if not chosen:
        raise DataError(f"{first.name} has no feature columns beside {label!r}")
    if odd := [name for name in chosen if "," in name or name != name.strip() or not name]:
        raise DataError(f"{first.name}: the column name {odd[0]!r} cannot stand in a list of names")
    if label in chosen:
        raise DataError(f"column {label!r} is the label: leave it out of data.feature-columns")
    raw = [[_labels(table, label) for table in split] for split in tables]
    found = set().union(*(set(labels) for split in raw for labels in split))
    if len({type(value) for value in found}) > 1:
        raise DataError(f"column {label!r} has numbers in one table and text in another")
    classes = sorted(found)
    codes = {value: code for code, value in enumerate(classes)}
    splits = [
        Rows(
            np.concatenate([table.numbers(chosen) for table in split]),
            np.array([codes[value] for labels in some for value in labels], np.int64),
            [name for table in split for name in _clients(table, request)]
            if request.by_client
            else None,
        )
        for split, some in zip(tables, raw, strict=True)
    ]
    return splits, [str(value) for value in classes], chosen


def _split_tables(request: DataRequest) -> list[list[Table]]:
    """The tables of every split that there is."""
    path = Path(request.dataset).expanduser()
    if path.is_file():
        return [[read_table(path)]]
    folder = request.folder
    if folder is None:
        raise DataError(
            f"data set {request.dataset!r} is no table and no folder of tables; allowed for "
            f"data.kind = features: {', '.join(TABLE_SUFFIXES)}"
        )
    files, found = _files(folder, request)
    if not found[request.train_split]:
        if len(files) == 1:
            return [[read_table(files[0])]]
        wanted = ", ".join(request.train_split + suffix for suffix in TABLE_SUFFIXES)
        there = ", ".join(file.name for file in files) or "none"
        raise DataError(f"data folder {request.dataset!r} has no table {wanted}; it has {there}")
    if not found.get(request.test_split) and request.test_split not in ("", "test"):
        raise DataError(f"data folder {request.dataset!r} has no table {request.test_split!r}")
    return [[read_table(file) for file in some] for some in found.values() if some]


def _files(folder: Path, request: DataRequest) -> tuple[list[Path], dict[str, list[Path]]]:
    """All tables in a folder, and those of each split that is asked for."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
    return files, {
        split: [file for file in files if re.fullmatch(rf"{re.escape(split)}(-.*)?", file.stem)]
        for split in (request.train_split, request.test_split)
        if split
    }


def tables_beside(request: DataRequest) -> dict[str, int]:
    """Rows of the tables in the folder that belong to no split that is asked for, by file."""
    if Path(request.dataset).expanduser().is_file() or (folder := request.folder) is None:
        return {}
    files, found = _files(folder, request)
    if not found[request.train_split]:  # the only table is all there is
        return {}
    rows = {}
    for file in sorted(set(files).difference(*found.values())):
        with suppress(DataError):  # what nobody asked for may be anything
            rows[file.name] = len(read_table(file))
    return rows


def _find_label(table: Table) -> str:
    for name in LABEL_NAMES:
        if name in table.columns:
            return name
    raise DataError(
        f"{table.name}: no label column found; set data.label-column (label_column) to one of "
        f"{', '.join(table.columns)}"
    )


def _labels(table: Table, column: str) -> list[int | str]:
    """Labels as whole numbers, or as text if one of them is none."""
    values = [
        value.item() if isinstance(value, np.generic) else value
        for value in table.column(column, "data.label-column")
    ]
    labels: list[int | str] = []
    for row, value in enumerate(values):
        if value is None or value == "" or value != value:
            raise DataError(f"row {row} of {table.name} has no label in column {column!r}")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # of a matrix, whose columns have one type
        if not isinstance(value, int | str):
            raise DataError(
                f"row {row} of {table.name} has the label {value!r} in column {column!r}; whole "
                "numbers or text are needed"
            )
        labels.append(value)
    return _numbered(labels, f"{table.name} has the label {{!r}} in column {column!r}")


def _numbered(labels: list[int | str], told: str) -> list[int | str]:
    """Texts that are all whole numbers, as numbers; numbers with fractions are no classes."""
    texts = [value for value in labels if isinstance(value, str)]
    whole = [_WHOLE.fullmatch(value) for value in texts]
    if texts and all(whole):
        numbers = iter([int(match[1]) for match in whole if match])
        return [next(numbers) if isinstance(value, str) else value for value in labels]
    if texts and all(_WHOLE.fullmatch(value) or _FRACTION.fullmatch(value) for value in texts):
        row = next(row for row, value in enumerate(labels) if not _is_whole(value))
        raise DataError(
            f"row {row} of {told.format(labels[row])}; whole numbers or text are needed"
        )
    return labels


def _is_whole(label: int | str) -> bool:
    return isinstance(label, int) or _WHOLE.fullmatch(label) is not None


def _clients(table: Table, request: DataRequest) -> list[str]:
    values: Any = table.column(request.client_column, "data.partition-column")
    names = []
    for row, value in enumerate(values):
        name = "" if value is None or value != value else str(value)
        if not name:
            raise DataError(
                f"row {row} of {table.name} has {value!r} in column {request.client_column!r} "
                "(data.partition-column)"
            )
        names.append(name)
    return names


def describe_features(
    names: Sequence[str], train: npt.NDArray[np.float64], request: DataRequest
) -> Features:
    """The statistics to standardise with: the given ones, else those of the train split [N, F].

    They are the sums that clients could add up, n, of x and of its squares, over all of them.
    """
    if request.feature_means:
        return Features(tuple(names), request.feature_means, request.feature_deviations)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    flat = deviation <= 1e-12 * np.maximum(np.abs(mean), 1e-300)  # a constant
    deviation = np.where(flat, 1.0, deviation)
    return Features(tuple(names), tuple(mean.tolist()), tuple(deviation.tolist()))


def standardise(values: npt.NDArray[np.float64], features: Features) -> npt.NDArray[np.float32]:
    """Rows [N, F] to mean 0 and deviation 1 as "images" float32 [N, 1, 1, F].

    Raises:
        DataError: A value is further from the mean than single precision reaches.
    """
    scaled = (values - np.array(features.means)) / np.array(features.deviations)
    with np.errstate(over="ignore"):
        found = scaled.astype(np.float32)
    if not np.isfinite(found).all():
        row, column = np.argwhere(~np.isfinite(found))[0]
        raise DataError(
            f"row {row} has {values[row, column]!r} in column {features.names[column]!r}, which is "
            f"{scaled[row, column]:.3g} deviations from the mean"
        )
    rows: npt.NDArray[np.float32] = found.reshape(len(found), 1, 1, -1)
    return rows
