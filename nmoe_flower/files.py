"""Files that are whole or not there: atomic writes, safetensors, JSON, appended lines.

A write goes to a temporary file in the same folder, reaches the disk, and only then takes the
name. Whatever happens in between (a full disk, ``kill -9``), the old file stays as it was.
"""

import contextlib
import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from nmoe_flower.errors import CheckpointError, NMoEError

__all__ = [
    "append_line",
    "load_arrays",
    "pack_arrays",
    "read_arrays",
    "safe_child",
    "save_arrays",
    "to_json",
    "write_bytes",
    "write_json",
    "write_text",
]


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` to ``path`` atomically; folders on the way are made.

    Args:
        path: The file. If it exists, readers see the old content or the new, nothing else.
        data: The whole content.
        sync: Wait until the disk has it. Without, a killed process loses nothing, but a power
            cut may: only for files that carry a check sum of their own.

    Raises:
        NMoEError: The disk is full, or a permission is missing; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        raise NMoEError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where the system can open folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, line ends as they are."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write ``value`` as JSON, atomically. See `to_json` for what it takes."""
    write_text(path, to_json(value, indent=indent) + "\n")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON of plain values, NumPy values and paths.

    JSON has no NaN and no infinity, and other readers refuse them: they become ``null``.

    >>> to_json({"auc": float("nan"), "hits": np.array([1, 2])})
    '{"auc": null, "hits": [1, 2]}'
    """
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def append_line(path: Path, text: str) -> None:
    """Append one line with one write call, so that two writers never mix.

    If the last line of the file was cut (a process killed while it wrote), a new line is begun.

    Raises:
        NMoEError: The line cannot be written whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else f"\n{text}"
            data = f"{text}\n".encode()
            if file.write(data) != len(data):
                raise OSError("only a part of the line was written")
    except OSError as error:
        raise NMoEError(f"cannot append to {path}: {error.strerror or error}") from error


def pack_arrays(
    arrays: Mapping[str, np.ndarray[Any, Any]], *, metadata: Mapping[str, str] | None = None
) -> bytes:
    """The bytes of a safetensors file.

    Raises:
        NMoEError: An array has a type safetensors does not know (objects, text), or is named
            ``__metadata__``, which the format keeps for itself.
    """
    for name, array in arrays.items():
        if name == "__metadata__" or array.dtype.kind not in "biufc":
            raise NMoEError(f"cannot store the array {name!r} of type {array.dtype} as safetensors")
    # safetensors writes a strided array's memory as it lies, which is not its content.
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        return safetensors.numpy.save(whole, metadata=dict(metadata) if metadata else None)
    except (KeyError, safetensors.SafetensorError) as error:
        raise NMoEError(f"cannot store arrays as safetensors: {error}") from error


def save_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays as safetensors, atomically. Names may hold any characters.

    Raises:
        NMoEError: See `pack_arrays` and `write_bytes`.
    """
    write_bytes(path, pack_arrays(arrays, metadata=metadata))


def load_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a safetensors file.

    Raises:
        CheckpointError: The file is missing, cut or not safetensors.
    """
    return read_arrays(path)[0]


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """The arrays and the metadata of a safetensors file.

    Raises:
        CheckpointError: The file is missing, cut, not safetensors, or holds bfloat16 or float8.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, dict(file.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} holds a type NumPy does not know: {error}") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def safe_child(folder: Path, name: str) -> Path:
    """The path of ``name`` inside ``folder``, for names that come from outside.

    Raises:
        NMoEError: The name is empty or leads out of the folder.

    >>> safe_child(Path("weights"), "../secret")
    Traceback (most recent call last):
    ...
    nmoe_flower.errors.NMoEError: the name '../secret' leads out of the folder weights
    """
    outside = NMoEError(f"the name {name!r} leads out of the folder {folder}")
    if not name or "\0" in name or "\\" in name:
        raise outside
    root, path = folder.resolve(), (folder / name).resolve()
    if path == root or not path.is_relative_to(root):
        raise outside
    return folder / name
