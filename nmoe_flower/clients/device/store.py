"""What a client keeps on its own disk: its expert, its latents, the answers of its peers.

Some of it round by round, as a resumed run wants it back.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nmoe_flower.errors import CheckpointError
from nmoe_flower.files import load_arrays, pack_arrays, safe_child, write_bytes, write_json

__all__ = ["Store", "Versions"]


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
        return _read(*self._stamped(name))

    def tensor(
        self,
        name: str,
        part: str,
        device: torch.device,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """One array of the group ``name`` where it is computed with, half precision as float32.

        It is there once: round after round trains on it. On a CPU it is the array that `load`
        returns, so do not write to it.

        Args:
            name: The group.
            part: Name of the array.
            device: Where it is computed with.
            change: What is done to it before; the same function is not called again.

        Raises:
            CheckpointError: The client never saved the group, or the file is damaged.
        """
        return _as_tensor(*self._stamped(name), part, device, change)

    def _stamped(self, name: str) -> tuple[Path, int, int]:
        """Where a group is, and the time and size of the file: it is another if they are."""
        path = safe_child(self.folder, f"{name}.safetensors")
        try:
            stat = path.stat()
        except OSError:
            raise CheckpointError(f"this client has no {name!r} in {self.folder}") from None
        return path, stat.st_mtime_ns, stat.st_size

    def note(self, name: str, values: Mapping[str, Any]) -> None:
        """Write plain values as ``<name>.json``."""
        write_json(safe_child(self.folder, f"{name}.json"), values)

    def has(self, name: str) -> bool:
        """Whether the group ``name`` was saved."""
        return safe_child(self.folder, f"{name}.safetensors").is_file()

    def drop(self, name: str) -> None:
        """Forget the group ``name``."""
        safe_child(self.folder, f"{name}.safetensors").unlink(missing_ok=True)


class Versions:
    """The group ``name`` of a store after each of certain rounds: a resumed run finds its own.

    Args:
        store: Store that holds the versions.
        name: The group; a version of it is ``<name>-<round>``, the round in six digits.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    def rounds(self) -> list[int]:
        """The rounds there is a version of, in order."""
        before, after = f"{self.name}-", ".safetensors"
        try:
            names = [path.name for path in self.store.folder.iterdir()]  # sooner than by glob
        except OSError:  # nothing was ever kept
            return []
        own = (name for name in names if name.startswith(before) and name.endswith(after))
        return sorted(int(name.removeprefix(before).removesuffix(after)) for name in own)

    def save(self, server_round: int, arrays: dict[str, np.ndarray], *, sync: bool = False) -> None:
        """Keep arrays as the version of this round; with ``sync``, in spite of a power cut."""
        self.store.save(self._file(server_round), arrays, sync=sync)

    def load(self, server_round: int) -> dict[str, np.ndarray] | None:
        """The version of this round; None if there is none."""
        if not self.store.has(self._file(server_round)):
            return None
        return self.store.load(self._file(server_round))

    def prune(self, server_round: int, kept: Iterable[int]) -> None:
        """Drop versions older than this round, but those a run resumed after ``kept`` needs."""
        older = [r for r in self.rounds() if r < server_round]
        needed = {max((r for r in older if r <= last), default=0) for last in kept}
        for old in older:
            if old not in needed:
                self.store.drop(self._file(old))

    def _file(self, server_round: int) -> str:
        return f"{self.name}-{server_round:06d}"


@lru_cache(maxsize=128)
def _read(path: Path, mtime_ns: int, size: int) -> dict[str, np.ndarray]:
    return load_arrays(path)


@lru_cache(maxsize=128)
def _as_tensor(
    path: Path,
    mtime_ns: int,
    size: int,
    part: str,
    device: torch.device,
    change: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    array = _read(path, mtime_ns, size)[part]
    with torch.inference_mode(mode=False):  # whoever asks first, others train on it
        rows = torch.from_numpy(np.require(array, requirements=["W"])).to(device)
        rows = rows.float() if rows.dtype == torch.float16 else rows
        return rows if change is None else change(rows)
