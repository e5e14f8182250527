"""Rows of tables, one after the other, for bundles that were trained on features."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nmoe_flower.cli.images import Loaded
from nmoe_flower.data import TABLE_SUFFIXES, read_table
from nmoe_flower.errors import DataError

__all__ = ["read_rows"]


def read_rows(sources: Iterable[str], columns: Sequence[str]) -> Iterator[Loaded]:
    """Every row of tables and of the tables in folders, float64 [F], as it stands in the file.

    A table with a value that is no number is refused as a whole, with row and column.

    Args:
        sources: Names, as on a command line.
        columns: The F feature columns; a table may have others beside them.
    """
    for source in sources:
        path = Path(source)
        if source == "-":
            yield Loaded("-", None, "a table is read from a file, whose suffix says what it is")
        elif path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix.lower() in TABLE_SUFFIXES)
            if not files:
                yield Loaded(source, None, f"the folder has no file {', '.join(TABLE_SUFFIXES)}")
            for file in files:
                yield from _rows(file, columns)
        else:
            yield from _rows(path, columns)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[Loaded]:
    try:
        values = read_table(path).numbers(columns)
    except DataError as error:
        yield Loaded(str(path), None, str(error))
        return
    for row, features in enumerate(values):
        yield Loaded(f"{path}[{row}]", features)
