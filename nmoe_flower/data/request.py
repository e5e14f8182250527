"""What is asked for when a data set is opened, and the name of its cache entry."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmoe_flower.errors import DataError

__all__ = ["Request"]

_FORMAT = 1


@dataclass(frozen=True)
class Request:
    """What the cache key is made of."""

    dataset: str
    image_column: str
    label_column: str
    train_split: str
    test_split: str
    seed: int

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a name on the hub."""
        if not self.dataset.strip():
            raise DataError("the data set has no name; give digits, a folder or a name on the hub")
        path = Path(self.dataset).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise DataError(f"data set {self.dataset!r} is a file; a folder is needed")
        looks_local = self.dataset.startswith((".", "/", "~")) or self.dataset.count("/") > 1
        if looks_local or path.is_absolute():
            raise DataError(f"data folder {self.dataset!r} does not exist")
        return None

    def key(self) -> str:
        """Name of the cache entry: a readable stem and a hash of all that decides its content."""
        identity: list[Any] = [_FORMAT, *vars(self).values()]
        stem = self.dataset
        if self.dataset != "digits" and (folder := self.folder) is not None:
            stem = folder.resolve().name
            identity[1] = _list_files(folder)
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
        readable = "".join(c if c.isalnum() else "-" for c in stem)[:40]
        return f"{readable}-{digest}"


def _list_files(folder: Path) -> list[tuple[str, int, int]]:
    """Relative path, size and time of every file below a folder, sorted."""
    files = []
    try:
        for parent, _, names in os.walk(folder):
            for name in names:
                path = f"{parent}{os.sep}{name}"
                stat = os.stat(path)  # noqa: PTH116 (large image folders: 5 times faster)
                files.append((os.path.relpath(path, folder), stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    if not files:
        raise DataError(f"data folder {str(folder)!r} is empty")
    return sorted(files)
