"""Folders of images named after their classes, read with Pillow alone.

What a device with images of its own has. ``datasets``, which reads many other things, brings pandas
and more along.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.pixels import SUFFIXES, has_colour, open_picture, to_pixels
from nmoe_flower.data.request import ColourFoundError, DataRequest, RawSplit, walk_files

__all__ = ["files_by_split", "owner_of", "read_class_folders"]

_SPLITS = ("train", "test")
_SPLIT_WORDS = frozenset(
    {"train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval",
     "evaluation"}
)  # fmt: skip

File = tuple[str, ...]  # the parts of its path below the folder


def read_class_folders(request: DataRequest) -> tuple[list[RawSplit], list[str]] | None:
    """Read ``train/CLASS/*.png`` and ``test/CLASS/*.png``, or ``CLASS/*.png``.

    If the clients are asked for, ``CLIENT`` comes before ``CLASS``: ``train/CLIENT/CLASS/*.png``,
    ``CLIENT/train/CLASS/*.png`` or ``CLIENT/CLASS/*.png``.

    Rows are in the order of the paths, classes in that of their names: as ``datasets`` has them.

    Returns:
        Splits and class names; None if this is no such folder, or other splits are asked for.
    """
    folder = request.folder
    if folder is None or request.train_split != "train" or request.test_split not in ("", "test"):
        return None
    files = [tuple(path.split("/")) for path in walk_files(folder)]
    files.sort(key="/".join)
    if not files or any(Path(file[-1]).suffix.lower() not in SUFFIXES for file in files):
        return None
    found = files_by_split(files, clients=request.by_client)
    if not found.get("train"):
        return None
    classes = sorted({file[-2] for file in files})
    wanted = [name for name in ("train", request.test_split) if found.get(name)]
    return [_split(folder, name, found[name], classes, request) for name in wanted], classes


def files_by_split(files: Sequence[File], *, clients: bool) -> dict[str, list[File]]:
    """The files of each split; empty if the folders are not of a kind that is known here.

    Args:
        files: The parts of every file's path below the folder.
        clients: Whether a client's folder comes before that of the class.
    """
    depths = {len(file) for file in files}
    if len(depths) > 1:
        return {}
    below = depths.pop() - 2 - clients  # folders above the class and the client
    if below == 0 and not _name_splits({file[0] for file in files}):
        return {"train": list(files)}
    for place in (0, 1)[: 1 + clients] if below == 1 else ():
        if {file[place] for file in files} <= set(_SPLITS):
            return {split: [file for file in files if file[place] == split] for split in _SPLITS}
    return {}


def _name_splits(folders: set[str]) -> bool:
    """Whether a folder's name speaks of a split: ``datasets`` would not take it for a class."""
    return any(_SPLIT_WORDS & set(re.split(r"[-._ 0-9]+", name)) for name in folders)


def _split(
    folder: Path, name: str, files: Sequence[File], classes: Sequence[str], request: DataRequest
) -> RawSplit:
    codes = {cls: code for code, cls in enumerate(classes)}
    labels = np.array([codes[file[-2]] for file in files], dtype=np.int64)
    clients = [owner_of(file) for file in files] if request.by_client else None

    def place(row: int) -> str:
        return f"row {row} of the {name} split ({'/'.join(files[row])})"

    return RawSplit(name, labels, _reader(folder, files, place), place, clients)


def owner_of(file: File) -> str:
    """The client's folder: the one above the class that names no split.

    Args:
        file: The parts of a file's path below the folder.
    """
    return next((part for part in file[-3::-1] if part not in _SPLITS), file[-3])


def _reader(
    folder: Path, files: Sequence[File], place: Callable[[int], str]
) -> Callable[[str], Iterator[npt.NDArray[np.uint8]]]:
    def read(mode: str) -> Iterator[npt.NDArray[np.uint8]]:
        for row, file in enumerate(files):
            picture = open_picture(folder.joinpath(*file), place(row))
            if mode == "L" and has_colour(picture):
                raise ColourFoundError
            yield to_pixels(picture, mode, place(row))

    return read
