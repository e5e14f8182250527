"""Checkpoints: numbered files that tell whether they are whole.

One safetensors file per checkpoint holds the arrays, and in its metadata the rest of the state as
JSON and a SHA-256 over everything. A file torn by ``kill -9`` or a power cut, or with one flipped
bit, is found out, named in the log and skipped; the one before it is used.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmoe_flower.errors import CheckpointError, NMoEError
from nmoe_flower.files import pack_arrays, read_arrays, read_metadata, sync_folder, write_bytes

__all__ = ["Checkpoint", "Checkpoints"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """One saved state.

    Attributes:
        step: The number it was saved under.
        arrays: Weights and random streams, with their types and shapes restored.
        state: Everything else, as JSON gives it back (tuples are lists, keys are text).
    """

    step: int
    arrays: dict[str, np.ndarray[Any, Any]]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints in one folder, with one writer.

    The newest file is not waited for, but the oldest one kept is on the disk for certain before
    anything older goes. So saving does not pause for the disk, and a power cut costs at most the
    last ``keep - 1`` checkpoints.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        """Keep the last ``keep`` checkpoints in ``folder``, which need not exist yet."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = folder
        self.keep = keep

    def save(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        state: Mapping[str, Any],
    ) -> Path:
        """Save one checkpoint and drop those no longer kept.

        Checkpoints of later steps go too: they belong to a future that was given up.

        Args:
            step: Number of it, at least 0; a second of the same number replaces the first.
            arrays: Any names, any numeric types.
            state: JSON values. Floats come back bit-equal, NaN included.

        Raises:
            NMoEError: The state is not JSON, or the disk refuses.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        try:
            text = json.dumps(dict(state))
        except (TypeError, ValueError) as error:
            raise NMoEError(f"the state of checkpoint {step} is not JSON: {error}") from error
        digest = _digest(step, arrays, text)
        data = pack_arrays(arrays, metadata={"step": str(step), "state": text, "sha256": digest})
        path = self.folder / f"step-{step:06d}.safetensors"
        write_bytes(path, data, sync=False)
        self._drop_others(step)
        return path

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None. Damaged ones are logged and skipped."""
        for step, path in sorted(self._files(), reverse=True):
            try:
                return _read(step, path)
            except CheckpointError as error:
                _log.warning("skipping a damaged checkpoint: %s", error)
        return None

    def newest_state(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint, without its arrays; None if it cannot be read.

        For a look from outside: whether the file is whole is not checked.
        """
        for _, path in sorted(self._files(), reverse=True):
            with contextlib.suppress(CheckpointError, ValueError):
                state = json.loads(read_metadata(path).get("state", ""))
                if isinstance(state, dict):
                    return state
        return None

    def _files(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        named = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return [(int(match[1]), path) for match, path in named if match]

    def _drop_others(self, step: int) -> None:
        files = sorted(self._files(), reverse=True)
        kept = [path for number, path in files if number <= step][: self.keep]
        gone = [path for _, path in files if path not in kept]
        if gone or len(kept) == self.keep:
            _sync(kept[-1])
        gone += self.folder.glob(".step-*.tmp")
        for path in gone:
            with contextlib.suppress(OSError):
                path.unlink()


def _sync(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("rb+") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _digest(step: int, arrays: Mapping[str, np.ndarray[Any, Any]], state: str) -> str:
    """SHA-256 over the step, the state and every array's name, type, shape and bytes.

    Bytes are those of little-endian numbers, as the file has them.
    """
    digest = hashlib.sha256(json.dumps([step, state]).encode())
    for name in sorted(arrays):
        little = arrays[name].dtype.newbyteorder("<")
        array = np.ascontiguousarray(arrays[name].astype(little, copy=False))
        digest.update(json.dumps([name, array.dtype.str, arrays[name].shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _read(step: int, path: Path) -> Checkpoint:
    arrays, metadata = read_arrays(path)
    state = metadata.get("state", "")
    if metadata.get("sha256") != _digest(step, arrays, state):
        raise CheckpointError(f"{path}: the check sum does not match its content")
    return Checkpoint(step, arrays, json.loads(state))
