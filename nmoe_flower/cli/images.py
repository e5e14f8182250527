"""What ``nmoe infer`` asks about, one by one: images, rows of tables or documents."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nmoe_flower.data import (
    SUFFIXES,
    TABLE_SUFFIXES,
    Fit,
    fit_pixels,
    open_picture,
    read_table,
    to_pixels,
)  # fmt: skip
from nmoe_flower.data.text import LARGEST_DOCUMENT, units_of
from nmoe_flower.errors import DataError
from nmoe_flower.files import read_text

__all__ = ["Loaded", "read_images", "read_rows", "read_texts"]

_ARRAY = b"\x93NUMPY"
_MOST_BYTES = 1 << 30

Pixels = npt.NDArray[np.uint8]


class Loaded(NamedTuple):
    """One image or row, or why there is none.

    Attributes:
        name: The file, with the place in it for an array: ``digits.npy[3]``.
        pixels: uint8 [H, W, channels]; or a row of features, float64 [F], or of tokens, float32
            [1, 1, T]; None if it cannot be used.
        error: What is wrong with it, in words.
    """

    name: str
    pixels: Pixels | npt.NDArray[np.float64] | npt.NDArray[np.float32] | None
    error: str = ""


class _Images:
    """Reads images of one shape.

    Args:
        shape: (channels, height, width) that every image must have; colour is converted.
        fit: How the size of images (not of arrays) is changed to that; None: it is not.
    """

    def __init__(self, shape: tuple[int, int, int], *, fit: Fit | None) -> None:
        self._channels, self._height, self._width = shape
        self._fit = fit

    def read(self, name: str, source: Path | BinaryIO) -> Iterator[Loaded]:
        """All images in a file or a stream."""
        try:
            yield from self._read(name, source)
        except DataError as error:
            yield Loaded(name, None, str(error))
        except OSError as error:
            yield Loaded(name, None, error.strerror or str(error) or "it cannot be read")

    def _read(self, name: str, source: Path | BinaryIO) -> Iterator[Loaded]:
        if isinstance(source, Path) and source.suffix == ".npy":
            yield from self._array(name, source)
            return
        if isinstance(source, Path):
            yield Loaded(name, self._image(source))
            return
        data = source.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise DataError(f"more than {_MOST_BYTES} bytes")
        stream = io.BytesIO(data)
        if data.startswith(_ARRAY):
            yield from self._array(name, stream)
        else:
            yield Loaded(name, self._image(stream))

    def _image(self, source: Path | BinaryIO) -> Pixels:
        picture = open_picture(source, "it")
        pixels = to_pixels(picture, "L" if self._channels == 1 else "RGB", "it")
        size = (self._width, self._height)
        if picture.size != size and not self._fit:
            raise DataError(
                f"it has {picture.width}x{picture.height} pixels, the extractor needs "
                f"{self._width}x{self._height}: --resize changes it"
            )
        return fit_pixels(pixels, size, self._fit) if self._fit else pixels

    def _array(self, name: str, source: Path | BinaryIO) -> Iterator[Loaded]:
        try:
            on_disk = isinstance(source, Path)
            array = np.load(source, allow_pickle=False, mmap_mode="r" if on_disk else None)
        except (ValueError, EOFError):
            raise DataError("it is not a .npy array of numbers") from None
        one = (self._height, self._width, self._channels)
        shapes = (one, one[:2]) if self._channels == 1 else (one,)
        if array.dtype == np.uint8 and array.shape in shapes:
            yield Loaded(name, np.asarray(array).reshape(one))
        elif array.dtype == np.uint8 and array.shape[1:] in shapes:
            for place, pixels in enumerate(array):
                yield Loaded(f"{name}[{place}]", np.asarray(pixels).reshape(one))
        else:
            raise DataError(
                f"the array is {array.dtype} of shape {array.shape}; allowed: uint8 of shape "
                f"{' or '.join(str(shape) for shape in shapes)}, or many of these"
            )


def read_images(
    sources: Iterable[str],
    shape: tuple[int, int, int],
    *,
    stdin: BinaryIO,
    resize: bool = False,
    fit: Fit | None = None,
) -> Iterator[Loaded]:
    """Every image of files, folders (their image files and arrays, by name) and ``-``.

    Args:
        sources: Names, as on a command line.
        shape: (channels, height, width) that every image must have.
        stdin: What ``-`` stands for: one image or one .npy array.
        resize: Stretch images of another size to fit.
        fit: How images of another size were changed for training, and are now; None: they were not.
    """
    reader = _Images(shape, fit=fit or ("stretch" if resize else None))
    for source in sources:
        path = Path(source)
        if source == "-":
            yield from reader.read("-", stdin)
        elif path.is_dir():
            suffixes = (*sorted(SUFFIXES), ".npy")
            files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in suffixes]
            if not files:
                yield Loaded(source, None, f"the folder has no file {', '.join(suffixes)}")
            for file in files:
                yield from reader.read(str(file), file)
        else:
            yield from reader.read(source, path)


def read_texts(
    sources: Iterable[str], make_row: Callable[[str], npt.NDArray[np.float32]], *,
    unit: Literal["files", "lines", "paragraphs"], stdin: BinaryIO,
) -> Iterator[Loaded]:  # fmt: skip
    """Every document of files, of those in folders, and of ``-``, as a row of tokens.

    Args:
        sources: Names, as on a command line.
        make_row: Makes the row of a text, or raises `DataError`.
        unit: What of a file is a document, as in training.
        stdin: What ``-`` stands for.
    """
    for source in sources:
        path = Path(source)
        if source == "-":
            yield from _documents("-", lambda: _decoded(stdin), make_row, unit)
        elif path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file())
            if not files:
                yield Loaded(source, None, "the folder has no file")
            for file in files:
                yield from _documents(str(file), partial(_said, file), make_row, unit)
        else:
            yield from _documents(source, partial(_said, path), make_row, unit)


def _documents(
    name: str,
    read: Callable[[], str],
    make_row: Callable[[str], npt.NDArray[np.float32]],
    unit: Literal["files", "lines", "paragraphs"],
) -> Iterator[Loaded]:
    try:
        parts = units_of(read(), unit)
    except DataError as error:
        yield Loaded(name, None, str(error))
        return
    for number, text in enumerate(parts):
        if unit != "files" and not text.strip():
            continue
        called = name if unit == "files" else f"{name}[{number}]"
        try:
            yield Loaded(called, make_row(text))
        except DataError as error:
            yield Loaded(called, None, str(error))


def _said(path: Path) -> str:
    if path.suffix.lower() in TABLE_SUFFIXES:
        raise DataError("it is a table: give the text of its column in files")
    return read_text(path, what="the document", raises=DataError, most=LARGEST_DOCUMENT)


def _decoded(stdin: BinaryIO) -> str:
    data = stdin.read(LARGEST_DOCUMENT + 1)
    if len(data) > LARGEST_DOCUMENT:
        raise DataError(f"more than {LARGEST_DOCUMENT:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is no UTF-8 from byte {error.start} on") from None


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
