"""The files below a folder, links followed: what is read, and what the cache's key is made of."""

import os
from collections.abc import Iterator
from pathlib import Path

from nmoe_flower.errors import DataError

__all__ = ["walk_files"]


def walk_files(folder: Path) -> Iterator[str]:
    """All files below ``folder`` but hidden ones, relative to it (``cat/1.png``), in no order.

    Raises:
        DataError: A folder cannot be listed, or is a link to one that it lies in.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            _check_link(Path(parent, name))
        below = Path(parent).relative_to(folder).as_posix()
        start = "" if below == "." else f"{below}/"
        yield from (f"{start}{name}" for name in names if not name.startswith("."))


def _check_link(path: Path) -> None:
    """Refuse a link that a walk would never come out of."""
    if path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve()):
        raise DataError(f"{path} is a link to a folder that it lies in: {path.resolve()}")
