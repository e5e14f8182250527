"""Files that are whole or not there, and read with care: text, JSON, TOML, safetensors.

A write goes to a temporary file in the same folder, reaches the disk, and only then takes the
name. Whatever happens in between (a full disk, ``kill -9``), the old file stays as it was.

Whatever a person or another program may have written is read by `read_text`, `read_json` or
`read_toml`: a file that is missing, too large, in another encoding or malformed is one error that
names it.
"""

import codecs
import contextlib
import json
import math
import os
import shutil
import stat
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
import safetensors.numpy
import tomli_w

from nmoe_flower.errors import CheckpointError, ConfigError, NMoEError

__all__ = [
    "all_or_none",
    "append_line",
    "lines_of_json",
    "link_or_copy",
    "load_arrays",
    "pack_arrays",
    "parse_json",
    "read_arrays",
    "read_json",
    "read_metadata",
    "read_text",
    "read_toml",
    "rounded",
    "safe_child",
    "save_arrays",
    "to_json",
    "to_toml",
    "write_bytes",
    "write_json",
    "write_text",
]

LARGEST_TEXT = 64 * 2**20  # bytes
DEEPEST = 64  # levels of tables and lists
_LINE = 140  # characters of a value that stands in one
_STREAMS = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))
_OTHER_ENCODINGS = {  # the longer marks first: UTF-32's begins like UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def write_bytes(
    path: Path,
    data: bytes,
    *,
    sync: bool = True,
    mode: int = 0o666,
    raises: type[NMoEError] = NMoEError,
) -> None:
    """Write ``data`` to ``path`` atomically; folders on the way are made.

    A device or a pipe (``/dev/null``, ``/dev/stdout``) is written to, and never replaced.

    Args:
        path: The file. If it exists, readers see the old content or the new, nothing else.
        data: The whole content.
        sync: Wait until the disk has it. Without, a killed process loses nothing, but a power
            cut may: only for files that carry a check sum of their own.
        mode: Who may read and write it, less what the process's umask takes away. At no moment can
            anybody read it who may not: 0o600 is for keys.
        raises: The class of the error.

    Raises:
        NMoEError: The disk is full, or a permission is missing; the old file is untouched. Of the
            class ``raises``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        if _is_stream(path):
            with path.open("wb", buffering=0) as stream:
                stream.write(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # left by a process that was killed
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        raise raises(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _is_stream(path: Path) -> bool:
    """Whether a name is that of a device, a pipe, or what a program of this process was given."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or path.parent in _STREAMS


@contextlib.contextmanager
def all_or_none(folder: Path, *, last: str = "") -> Iterator[Path]:
    """For a command that writes several files: all of them take their places, or none does.

    Write into the folder that is yielded, at the paths the files will have in ``folder``. If the
    block ends well they move there: a folder that is new or empty appears at once, in another one
    each file is replaced atomically, and all are put back if one cannot be. If the block raises,
    ``folder`` is as it was.

    Args:
        folder: Where the files belong; it need not exist.
        last: Files of this name are moved after all others: what tells readers to look again.

    Raises:
        NMoEError: A file cannot be moved, or the folder cannot be written.
    """
    target = folder.expanduser().resolve()
    there = target.is_dir()
    made = [] if there else [one for one in target.parents if not one.exists()]
    scratch = (target if there else target.parent) / f".{target.name}.{os.getpid()}.tmp"
    try:
        try:
            new = scratch / "new"
            new.mkdir(parents=True)
        except OSError as error:
            raise NMoEError(f"cannot write {folder}: {error.strerror or error}") from error
        yield new
        try:
            if there:
                _move_files(new, target, scratch / "old", last)
            else:
                new.rename(target)
                sync_folder(target.parent)
            made = []
        except OSError as error:
            raise NMoEError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for one in made:  # the deepest first
            with contextlib.suppress(OSError):
                one.rmdir()


def _move_files(new: Path, target: Path, old: Path, last: str) -> None:
    """Move every file below ``new`` to its place below ``target``; on an error, put all back."""
    files = sorted(path.relative_to(new) for path in new.rglob("*") if not path.is_dir())
    files.sort(key=lambda path: path.name == last)
    with contextlib.ExitStack() as undo:
        for path in files:
            place, before = target / path, old / path
            missing = [one for one in place.parents if not one.exists()]
            place.parent.mkdir(parents=True, exist_ok=True)
            for one in reversed(missing):
                undo.callback(one.rmdir)
            if place.exists():
                before.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(place, before)
                undo.callback(before.replace, place)
                (new / path).replace(place)
            else:
                (new / path).replace(place)
                undo.callback(place.unlink)
        undo.pop_all()
    for place in {(target / path).parent for path in files}:
        sync_folder(place)


def link_or_copy(path: Path, copy: Path) -> None:
    """Give a file a second name, or make a copy where the file system knows no such names.

    For files that are only ever replaced whole, as all writers of this module do.

    Raises:
        OSError: Neither can be.
    """
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy2(path, copy)


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


def lines_of_json(content: Mapping[str, Any]) -> str:
    """JSON with a line for each value, or for each of its rows and values where it is long.

    >>> print(lines_of_json({"a": [1, 2], "b": ["c" * 70, "d" * 70], "e": {"f": 3}}), end="")
    {
     "a": [1,2],
     "b": [
      "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
      "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
     ],
     "e": {"f":3}
    }
    """
    dumps = partial(json.dumps, separators=(",", ":"))
    parts = []
    for key, value in content.items():
        if len(dumps(value)) <= _LINE:
            text = dumps(value)
        elif isinstance(value, list) and value:
            inner = ",\n".join(f"  {dumps(row)}" for row in value)
            text = f"[\n{inner}\n ]"
        elif isinstance(value, dict) and value:
            inner = ",\n".join(f"  {dumps(k)}: {dumps(v)}" for k, v in value.items())
            text = f"{{\n{inner}\n }}"
        else:
            text = dumps(value)
        parts.append(f" {dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


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


def rounded(value: Any, digits: int) -> Any:
    """Every float with that many significant digits, or more if it is as long before its point.

    >>> rounded({"a": [0.123456, 7, 98765.4]}, 3)
    {'a': [0.123, 7, 98765.0]}
    """
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if abs(value) < 10**digits else float(round(value))
    if isinstance(value, list):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, Mapping):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    return value


def to_toml(value: Mapping[str, Any]) -> str:
    """TOML of plain values; any text in them reads back as it was, and keys may hold anything.

    >>> print(to_toml({"data": {"dataset": "my 'photos'", "flip": True}}), end="")
    [data]
    dataset = "my 'photos'"
    flip = true
    """
    return tomli_w.dumps(value)


def read_text(
    path: Path,
    *,
    what: str = "the file",
    raises: type[NMoEError] = ConfigError,
    most: int = LARGEST_TEXT,
) -> str:
    """The UTF-8 text of a file, without a byte order mark; line ends as they are.

    Args:
        path: The file.
        what: What it is to the reader of an error: "the recipe".
        raises: The class of the error.
        most: Bytes it may have; more are never read.

    Raises:
        NMoEError: It cannot be read, is too large, or is not UTF-8. Of the class ``raises``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # a name with NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise raises(f"cannot read {what} {path}: {reason}") from None
    if len(data) > most:
        raise raises(f"cannot read {what} {path}: it has more than {most:,} bytes")
    return _decoded(data, f"{what} {path}", raises)


def _decoded(data: bytes, name: str, raises: type[NMoEError]) -> str:
    for mark, encoding in _OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise raises(f"{name} is {encoding} text; allowed: UTF-8")
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        wrong = error.object[error.start]
        raise raises(
            f"{name} is not UTF-8 text: byte 0x{wrong:02x} in line {line}; allowed: UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise raises(f"{name} is not UTF-8 text: byte 0x00 in line {line}; allowed: UTF-8")
    return text


def read_json(
    path: Path,
    *,
    what: str = "the file",
    raises: type[NMoEError] = ConfigError,
    most: int = LARGEST_TEXT,
) -> Any:
    """The value of a JSON file; see `read_text` for the arguments, `parse_json` for the rest.

    Raises:
        NMoEError: It cannot be read or is not JSON. Of the class ``raises``.
    """
    return parse_json(
        read_text(path, what=what, raises=raises, most=most), f"{what} {path}", raises
    )


def parse_json(
    text: str | bytes, name: str = "the text", raises: type[NMoEError] = ConfigError
) -> Any:
    """The value of JSON text from outside.

    Numbers are finite, no object has a key twice, and lists and objects are nested up to
    `DEEPEST` levels: later readers may walk them without care.

    Args:
        text: JSON, as text or as UTF-8 with or without a byte order mark.
        name: What an error calls it.
        raises: The class of the error.

    Raises:
        NMoEError: It is something else. Of the class ``raises``.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    >>> parse_json('{"a": 1, "a": 2}', "peers.json")
    Traceback (most recent call last):
    ...
    nmoe_flower.errors.ConfigError: peers.json is not valid JSON: the key 'a' stands there twice
    """
    if isinstance(text, bytes):
        text = _decoded(text, name, raises)
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite
        )
    except RecursionError:
        _too_deep(name, raises)
    except ValueError as error:
        raise raises(f"{name} is not valid JSON: {error}") from None
    _check_depth(value, name, raises)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def read_toml(
    path: Path,
    *,
    what: str = "the file",
    raises: type[NMoEError] = ConfigError,
    most: int = LARGEST_TEXT,
) -> dict[str, Any]:
    """The tables of a TOML file; see `read_text` for the arguments.

    Raises:
        NMoEError: It cannot be read, is not TOML, or is nested deeper than `DEEPEST` levels. Of
            the class ``raises``.
    """
    text = read_text(path, what=what, raises=raises, most=most)
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        _too_deep(f"{what} {path}", raises)
    except ValueError as error:  # of TOML, and of a number with too many digits
        raise raises(f"{what} {path} is not valid TOML: {error}") from None
    _check_depth(tables, f"{what} {path}", raises)
    return tables


def _check_depth(value: Any, name: str, raises: type[NMoEError]) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _nested(outer)]
        if not level:
            return
    _too_deep(name, raises)


def _nested(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value
    return (part for part in inner if isinstance(part, dict | list))


def _too_deep(name: str, raises: type[NMoEError]) -> NoReturn:
    raise raises(f"{name} is nested too deep; allowed: {DEEPEST} levels") from None


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
        NMoEError: The file cannot be written, or an array has a type that files do not take.
    """
    write_bytes(path, pack_arrays(arrays, metadata=metadata))


def load_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a safetensors file.

    Raises:
        CheckpointError: The file is missing, cut or not safetensors.
    """
    return read_arrays(path)[0]


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, whose arrays are not read.

    Raises:
        CheckpointError: The file is missing, cut or not safetensors.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


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
    path = folder / name
    if name not in (".", "..") and Path(name).name == name and not path.is_symlink():
        return path  # plain names, which are most, need no walk through all folders above
    root, found = folder.resolve(), path.resolve()
    if found == root or not found.is_relative_to(root):
        raise outside
    return path
