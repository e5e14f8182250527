"""What a client keeps on its own disk: its expert, its latents, the answers of its peers."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nmoe_flower.errors import CheckpointError
from nmoe_flower.files import load_arrays, pack_arrays, safe_child, write_bytes, write_json

__all__ = ["Store"]


class Store:
    """Named groups of arrays in one folder, written whole or not at all.

    Files survive the process: a client that is killed and comes back still has its expert. Reads
    are cached in memory by the file's time and size, so stages 2 and 3 read the disk once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, name: str, arrays: dict[str, np.ndarray], *, sync: bool = False) -> None:
        """Replace the group ``name``; with ``sync`` it outlives a power cut too."""
        path = safe_child(self.folder, f"{name}.safetensors")
        write_bytes(path, pack_arrays(arrays), sync=sync)

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Read the group ``name``; the arrays are shared, do not write to them.

        Raises:
            CheckpointError: The client never saved it, or the file is damaged.
        """
        path = safe_child(self.folder, f"{name}.safetensors")
        try:
            stat = path.stat()
        except OSError:
            raise CheckpointError(f"this client has no {name!r} in {self.folder}") from None
        return _read(path, stat.st_mtime_ns, stat.st_size)

    def note(self, name: str, values: Mapping[str, Any]) -> None:
        """Write plain values as ``<name>.json``."""
        write_json(safe_child(self.folder, f"{name}.json"), values)

    def has(self, name: str) -> bool:
        """Whether the group ``name`` was saved."""
        return safe_child(self.folder, f"{name}.safetensors").is_file()

    def drop(self, name: str) -> None:
        """Forget the group ``name``."""
        safe_child(self.folder, f"{name}.safetensors").unlink(missing_ok=True)


@lru_cache(maxsize=128)
def _read(path: Path, mtime_ns: int, size: int) -> dict[str, np.ndarray]:
    return load_arrays(path)
