"""Folders of images named after their classes, read with Pillow alone.

What a device with images of its own has. ``datasets``, which reads many other things, brings pandas
and more along.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.pixels import read_pixels
from nmoe_flower.data.request import Request
from nmoe_flower.data.sources import RawSplit

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_class_folders"]

_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_SPLITS = ("train", "test")
_SPLIT_WORDS = frozenset(
    {"train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval",
     "evaluation"}
)  # fmt: skip

File = tuple[str, ...]  # the parts of its path below the folder


def read_class_folders(request: Request) -> tuple[list[RawSplit], list[str]] | None:
    """Read ``train/CLASS/*.png`` and ``test/CLASS/*.png``, or ``CLASS/*.png``.

    Rows are in the order of the paths, classes in that of their names: as ``datasets`` has them.

    Returns:
        Splits and class names; None if this is no such folder, or other splits are asked for.
    """
    folder = request.folder
    if folder is None or request.train_split != "train" or request.test_split not in ("", "test"):
        return None
    files = _files(folder)
    if not files or any(Path(name).suffix.lower() not in _SUFFIXES for *_, name in files):
        return None
    if {len(file) for file in files} == {3} and {file[0] for file in files} <= set(_SPLITS):
        found = {split: [file for file in files if file[0] == split] for split in _SPLITS}
    elif {len(file) for file in files} == {2} and not _name_splits({file[0] for file in files}):
        found = {"train": files}
    else:
        return None
    if not found["train"]:
        return None
    classes = sorted({file[-2] for file in files})
    wanted = [name for name in ("train", request.test_split) if found.get(name)]
    return [_split(folder, name, found[name], classes) for name in wanted], classes


def _files(folder: Path) -> list[File]:
    """All files below ``folder`` but hidden ones, in the order of their paths."""
    found: list[str] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        found += [(below / name).as_posix() for name in names if not name.startswith(".")]
    return [tuple(path.split("/")) for path in sorted(found)]


def _name_splits(folders: set[str]) -> bool:
    """Whether a folder's name speaks of a split: ``datasets`` would not take it for a class."""
    return any(_SPLIT_WORDS & set(re.split(r"[-._ 0-9]+", name)) for name in folders)


def _split(folder: Path, name: str, files: Sequence[File], classes: Sequence[str]) -> RawSplit:
    codes = {cls: code for code, cls in enumerate(classes)}
    labels = np.array([codes[file[-2]] for file in files], dtype=np.int64)
    return RawSplit(name, labels, _reader(folder, name, files))


def _reader(
    folder: Path, split: str, files: Sequence[File]
) -> Callable[[str], Iterator[npt.NDArray[np.uint8]]]:
    def read(mode: str) -> Iterator[npt.NDArray[np.uint8]]:
        for row, file in enumerate(files):
            path = folder.joinpath(*file)
            place = f"row {row} of the {split} split ({'/'.join(file)})"
            yield read_pixels(partial(_open, path), mode, place)

    return read


def _open(path: Path) -> "Image":
    """The image as it is meant to be looked at, turned as its EXIF data say."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image.load()
        return ImageOps.exif_transpose(image)
