"""Labels, and images or text, of any data set that ``datasets`` reads, from a folder or the hub.

The packages of the extra ``data`` bring pandas along: they are imported only where needed.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.pixels import has_colour, open_picture, to_pixels
from nmoe_flower.data.request import LABEL_NAMES, ColourFoundError, DataRequest, RawSplit
from nmoe_flower.errors import DataError
from nmoe_flower.installation import install_hint

__all__ = [
    "LabelledTable",
    "find_text_column",
    "import_extra",
    "labelled_tables",
    "load_tables",
    "read_hugging_face",
]

_TEXT_NAMES = ("text", "content", "document", "body", "code")
_IMAGE_NAMES = ("img", "image", "images", "picture")


@dataclass(frozen=True)
class LabelledTable:
    """A split of what `datasets` reads.

    Attributes:
        name: Name of the split.
        table: The split, a ``datasets.Dataset``.
        column: Name of the column of images or text.
        labels: Class codes, int64 [N].
        clients: Who each row belongs to; None if nobody asked.
    """

    name: str
    table: Any
    column: str
    labels: npt.NDArray[np.int64]
    clients: list[str] | None

    def place(self, row: int) -> str:
        """What a row is called in errors.

        Args:
            row: Number of the row, from 0.
        """
        return f"row {row} of the {self.name} split"


def read_hugging_face(request: DataRequest, arrow_dir: Path) -> tuple[list[RawSplit], list[str]]:
    """Read labels and prepare images with ``datasets``, from a folder or the hub."""
    tables, class_names, beside = labelled_tables(request, arrow_dir)
    raws = [
        RawSplit(
            one.name,
            one.labels,
            _reader(one.table, one.column, one.name),
            one.place,
            one.clients,
            beside if number == 0 else {},
        )
        for number, one in enumerate(tables)
    ]
    return raws, class_names


def labelled_tables(
    request: DataRequest, arrow_dir: Path, *, text_column: str | None = None
) -> tuple[list[LabelledTable], list[str], dict[str, int]]:
    """Open the train split, and the test split if there is one.

    Args:
        request: What is asked for.
        arrow_dir: Where `datasets` may put what it converts.
        text_column: Column of the text, "" finds it; None: images are wanted.

    Returns:
        Splits, class names, and the rows of the splits that nobody asked for, by name.

    Raises:
        DataError: A split, a column or a label is missing, or the data cannot be read.
    """
    import_extra("datasets", _purpose(request))
    tables = load_tables(request, arrow_dir)
    if request.train_split not in tables:
        raise DataError(
            f"data set {request.dataset!r} has no split {request.train_split!r}; "
            f"it has {', '.join(tables)}"
        )
    names = [request.train_split]
    if request.test_split in tables:
        names.append(request.test_split)
    elif request.test_split not in ("", "test"):
        raise DataError(
            f"data set {request.dataset!r} has no split {request.test_split!r}; "
            f"it has {', '.join(tables)}"
        )
    features = tables[names[0]].features
    label_column = _find_column(request.dataset, features, request.label_column, "label")
    column = (
        _find_column(request.dataset, features, request.image_column, "image")
        if text_column is None
        else find_text_column(request.dataset, features, text_column, names[0])
    )
    for name in names:
        missing = {column, label_column} - set(tables[name].column_names)
        if missing:
            raise DataError(f"the {name} split has no column {sorted(missing)[0]!r}")
    labels, class_names = _encode_labels([tables[name] for name in names], names, label_column)
    found = [
        LabelledTable(name, tables[name], column, codes, _clients(tables[name], request, name))
        for name, codes in zip(names, labels, strict=True)
    ]
    return found, class_names, {o: len(t) for o, t in tables.items() if o not in names}


def find_text_column(dataset: str, columns: Iterable[str], wanted: str, split: str) -> str:
    """The configured column of text, else the first with a common name.

    Args:
        dataset: What the data is called in errors.
        columns: Names of the columns there are.
        wanted: What the configuration says; "" finds one.
        split: Name of the split, for errors.

    Raises:
        DataError: There is none.
    """
    there = list(columns)
    named = [wanted] if wanted else _TEXT_NAMES
    found = [name for name in named if name in there]
    if not found:
        raise DataError(
            f"text {dataset!r}: no column {' or '.join(map(repr, named))} in the {split} "
            f"split; the columns are {', '.join(there)} (text.column)"
        )
    return found[0]


def _clients(table: Any, request: DataRequest, split: str) -> list[str] | None:
    """Who each row belongs to."""
    column = request.client_column
    if not column:
        return None
    if column not in table.column_names:
        raise DataError(
            f"data set {request.dataset!r}: no column {column!r} (data.partition-column) in the "
            f"{split} split; the columns are {', '.join(table.column_names)}"
        )
    values = list(table.with_format(None)[column])
    names = getattr(table.features[column], "names", None)
    codes = range(len(names or ()))
    for row, value in enumerate(values):
        if (
            not isinstance(value, int | str)
            or value == ""
            or (names is not None and value not in codes)
        ):
            raise DataError(
                f"row {row} of the {split} split has {value!r} in column {column!r} "
                "(data.partition-column); text or whole numbers are needed"
            )
    return [str(value) if names is None else names[value] for value in values]


def _purpose(request: DataRequest) -> str:
    if request.folder is None:
        return f"data set {request.dataset!r} from the hub"
    if request.kind == "text":
        return f"a table of text in {request.dataset!r}"
    return (
        f"data folder {request.dataset!r}, which does not hold train/CLASS/*.png and "
        "test/CLASS/*.png (or .jpg, ...) alone,"
    )


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Without the bars and log lines of ``datasets``: progress and errors are reported here."""
    import datasets

    shown, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()


def load_tables(request: DataRequest, arrow_dir: Path) -> dict[str, Any]:
    """Splits of a folder or a name on the hub, by name, as ``datasets.Dataset``."""
    import datasets

    folder = request.folder
    saved = folder is not None and any(
        (folder / name).is_file() for name in ("dataset_dict.json", "state.json")
    )
    try:
        with _quiet_datasets():
            if saved:
                loaded = datasets.load_from_disk(str(folder))
            elif folder is not None:
                _check_links(folder)
                loaded = datasets.load_dataset(str(folder.resolve()), cache_dir=str(arrow_dir))
            else:
                loaded = datasets.load_dataset(request.dataset)
    except DataError:
        raise
    except Exception as error:  # any reader of any format may fail in its own way
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        if folder is not None:
            raise DataError(f"data folder {request.dataset!r} cannot be read: {reason}") from error
        raise DataError(
            f"data set {request.dataset!r} is not a local folder and cannot be loaded from the "
            f"hub: {reason}"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {request.train_split: loaded}


def _check_links(folder: Path) -> None:
    """Refuse links to folders, which ``datasets`` would pass over in silence."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            if Path(parent, name).is_symlink():
                raise DataError(
                    f"{Path(parent, name)} is a link to a folder, which `datasets` does not "
                    "follow: put the folder itself there, or links to its files"
                )


def _find_column(dataset: str, features: Any, wanted: str, kind: str) -> str:
    """The configured column, else the one of the right type, else one with a common name."""
    import datasets

    columns: list[str] = list(features)
    found = ", ".join(columns)
    begin, hint = f"data set {dataset!r}:", f"set data.{kind}-column ({kind}_column)"
    if wanted:
        if wanted not in columns:
            raise DataError(f"{begin} no {kind} column {wanted!r}; the columns are {found}")
        return wanted
    feature = datasets.Image if kind == "image" else datasets.ClassLabel
    typed = [name for name in columns if isinstance(features[name], feature)]
    for name in _IMAGE_NAMES if kind == "image" else LABEL_NAMES:
        if name in (typed or columns):
            return name
    if len(typed) > 1:
        raise DataError(f"{begin} several {kind} columns: {', '.join(typed)}; {hint} to one")
    if not typed and kind == "label" and columns == ["image"]:
        raise DataError(
            f"{begin} there are images and no labels; of image files the folders say the class: "
            "train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png, with no image elsewhere"
        )
    if not typed and columns == ["text"]:
        raise DataError(
            f"{begin} there is text and no image; of image files the folders say the class, as in "
            "CLASS/*.png; text is for run.system = language"
        )
    if not typed:
        raise DataError(f"{begin} no {kind} column found; {hint} to one of {found}")
    return typed[0]


def _encode_labels(
    tables: Sequence[Any], names: Sequence[str], column: str
) -> tuple[list[npt.NDArray[np.int64]], list[str]]:
    """Class codes of every split, and the class names (sorted unless the data orders them)."""
    values = [list(table.with_format(None)[column]) for table in tables]
    known = [getattr(table.features[column], "names", None) for table in tables]
    if known[-1] != known[0]:
        raise DataError(
            f"class names of column {column!r} differ: {known[0]} in the {names[0]} split, "
            f"{known[-1]} in the {names[-1]} split"
        )
    for name, split in zip(names, values, strict=True):
        for row, value in enumerate(split):
            if wrong := _wrong_label(value, known[0]):
                raise DataError(f"row {row} of the {name} split has {wrong} in column {column!r}")
    if known[0] is not None:
        return [np.array(split, dtype=np.int64) for split in values], list(known[0])
    classes = sorted(set().union(*values))
    codes = {value: code for code, value in enumerate(classes)}
    arrays = [np.array([codes[value] for value in split], dtype=np.int64) for split in values]
    return arrays, [str(value) for value in classes]


def _wrong_label(value: Any, names: Sequence[str] | None) -> str:
    """What is wrong with a label, or nothing."""
    if value is None or value == "" or (names is not None and value == -1):
        return "no label"
    if not isinstance(value, int | str):
        return (
            f"the label {repr(value)[:60]} of type {type(value).__name__}; whole numbers, "
            "text or class labels are needed,"
        )
    if names is not None and isinstance(value, int) and not 0 <= value < len(names):
        return (
            f"the label {value}, but there are {len(names)} class names (0 to {len(names) - 1}: "
            f"{', '.join(names)})"
        )
    return ""


def _reader(
    table: Any, column: str, split: str
) -> Callable[[str], Iterator[npt.NDArray[np.uint8]]]:
    """A function that decodes a split's images in order."""
    import datasets

    feature = datasets.Image(decode=False)
    try:
        cells = table.select_columns([column]).cast_column(column, feature).with_format(None)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"image column {column!r} holds {table.features[column]}, which are not images"
        ) from error

    def read(mode: str) -> Iterator[npt.NDArray[np.uint8]]:
        for row, cell in enumerate(cells):
            place = f"row {row} of the {split} split"
            picture = open_picture(_source(cell[column], place), place)
            if mode == "L" and has_colour(picture):
                raise ColourFoundError
            yield to_pixels(picture, mode, place)

    return read


def _source(cell: Mapping[str, Any] | None, place: str) -> Path | io.BytesIO:
    """The bytes of an image, or the file that holds them."""
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise DataError(f"{place} has no image")
    if cell["bytes"] is not None:
        return io.BytesIO(cell["bytes"])
    if "://" not in cell["path"]:
        return Path(cell["path"])
    import fsspec

    try:
        with fsspec.open(cell["path"], "rb") as file:  # inside an archive, or on the hub
            return io.BytesIO(file.read())
    except Exception as error:  # any file system may fail in its own way
        raise DataError(f"{place} ({cell['path']}) cannot be read: {error}") from error


def import_extra(name: str, purpose: str) -> Any:
    """Import ``datasets`` or ``flwr_datasets``, which a device with images of its own lacks.

    Raises:
        DataError: It is not installed; says what needs it and how to get it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise DataError(f"{purpose} needs {error.name or name}: {install_hint('data')}") from error
