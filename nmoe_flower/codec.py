"""One array to and from the wire, in NumPy's ``.npy`` format, as Flower writes it; and JSON in one.

Headers are cached and arrays read as views, which is several times faster than a ``BytesIO`` per
array; the bytes are the same.
"""

import io
import json
import math
import re
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array

from nmoe_flower.errors import ReplyError

__all__ = ["array_of_json", "decode", "encode", "json_of_array"]

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([<>|][biufc]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(([\d, ]*)\), \} *\n"
)
_MAX_HEADER = 1024
_MAX_DIMENSIONS = 32


@lru_cache(maxsize=4096)
def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue()


@lru_cache(maxsize=4096)
def _parse_npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
    """Shape, Fortran order and dtype; None for anything but plain numbers, written as NumPy does.

    NumPy's own reader evaluates the text, and bad text raises half a dozen kinds of errors there.
    """
    match = _HEADER.fullmatch(header)
    if match is None:
        return None
    descr, fortran, dimensions = (group.decode() for group in match.groups())
    try:
        shape = tuple(int(number) for number in dimensions.split(",") if number.strip())
        dtype = np.dtype(descr)
    except (TypeError, ValueError):
        return None
    return (shape, fortran == "True", dtype) if len(shape) <= _MAX_DIMENSIONS else None


def encode(array: np.ndarray) -> Array:
    """Wrap an array of any numeric dtype for the wire: one copy."""
    if array.dtype.hasobject:
        raise TypeError(f"an array of dtype {array.dtype} cannot travel: it would need pickle")
    header = _npy_header(array.dtype.str, array.shape)
    contiguous = np.ascontiguousarray(array)
    payload = contiguous.data if contiguous.size else b""
    return Array(
        dtype=str(array.dtype),
        shape=array.shape,
        stype="numpy.ndarray",
        data=b"".join((header, payload)),
    )


def decode(array: Array) -> np.ndarray:
    """Read an array from the wire: a read-only view of its bytes.

    Raises:
        ReplyError: The bytes are not an ``.npy`` array, hold objects, are cut off, or are said to
            have a shape that no array has.
    """
    data = array.data
    if not isinstance(data, bytes):
        raise ReplyError(f"an array has no bytes but a {type(data).__name__}")
    if array.stype != "numpy.ndarray" or data[:8] != _MAGIC:
        raise ReplyError(f"an array of type {array.stype!r} is not in .npy format 1.0")
    offset = 10 + int.from_bytes(data[8:10], "little")
    header = data[10 : min(offset, _MAX_HEADER)]
    parsed = _parse_npy_header(header)
    if parsed is None:
        raise ReplyError(
            "an array has a malformed .npy header, or one of something else than plain numbers "
            f"(objects are never unpickled): {header[:80]!r}"
        )
    shape, fortran, dtype = parsed
    count = math.prod(shape)
    if count * dtype.itemsize != len(data) - offset:
        raise ReplyError(
            f"an array of shape {shape} and dtype {dtype} needs {count * dtype.itemsize} bytes, "
            f"got {len(data) - offset}"
        )
    flat: np.ndarray = np.frombuffer(data, dtype, count=count, offset=offset)
    try:
        return flat.reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # an empty one may claim any size beside its 0
        raise ReplyError(f"no array has the shape {shape}: {error}") from None


def array_of_json(value: Any) -> npt.NDArray[np.uint8]:
    """Plain values among arrays, for records and checkpoints that hold nothing else.

    Args:
        value: What ``json`` can write; tuples come back as lists, keys as text.

    >>> json_of_array(array_of_json({"spent": [1.5]}))
    {'spent': [1.5]}
    """
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def json_of_array(array: np.ndarray) -> Any:
    """The values that ``array_of_json`` put into an array.

    Raises:
        ValueError: The bytes are not JSON.
    """
    return json.loads(array.tobytes())
