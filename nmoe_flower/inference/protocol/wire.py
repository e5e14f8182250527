"""The service ``nmoe.v1.Peer`` on the wire: its methods, and matrices as bytes.

A matrix is float32, float16 or int8 with a scale per row. Nothing a peer sent is trusted: its
claims about size are compared with the bytes that are there and with what is allowed, before any
array is made. A float32 matrix is read without a copy.

Requests reach the server as bytes: what cannot be read is then an error of ours, with a status and
a counter, and not one of gRPC's.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from nmoe_flower.errors import ConfigError, WireError
from nmoe_flower.inference.protocol.peer_pb2 import (
    Description,
    GenerateReply,
    PeerList,
    PredictReply,
    ScoreReply,
    Tensor,
)

__all__ = [
    "ENCODINGS",
    "MAX_ID",
    "MAX_MESSAGE_BYTES",
    "PROTOCOL",
    "SERVICE",
    "Encoding",
    "check_encoding",
    "decode_tensor",
    "decode_tokens",
    "encode_hidden",
    "encode_tensor",
    "encode_tokens",
    "parse",
    "peer_handlers",
    "unfit",
]

SERVICE = "nmoe.v1.Peer"
PROTOCOL = 1
MAX_MESSAGE_BYTES = 4 << 20
MAX_ID = 128

Encoding = Literal["float32", "float16", "int8"]
Floats = npt.NDArray[np.float32]
M = TypeVar("M", bound=Message)

ENCODINGS: tuple[Encoding, ...] = ("float32", "float16", "int8")
_CODES = {"float32": Tensor.FLOAT32, "float16": Tensor.FLOAT16, "int8": Tensor.INT8}
_TYPES: dict[int, np.dtype[Any]] = {
    Tensor.FLOAT32: np.dtype("<f4"),
    Tensor.FLOAT16: np.dtype("<f2"),
    Tensor.INT8: np.dtype("i1"),
}
_LARGEST_BYTE = 127
_LARGEST_HALF = float(np.finfo(np.float16).max)
_HALF_EXPONENT = np.uint16(0x7C00)  # all of it set: infinite, or no number

PeerHandler = Callable[[bytes, Any], Awaitable[Any]]
StreamHandler = Callable[[Any, Any], Awaitable[None]]


def check_encoding(encoding: str) -> None:
    """Refuse what no latent can travel as.

    Raises:
        ConfigError: It is none of ``ENCODINGS``.
    """
    if encoding not in ENCODINGS:
        raise ConfigError(f"encoding is {encoding!r}; allowed: {', '.join(ENCODINGS)}")


def encode_tensor(array: npt.NDArray[Any], dtype: Encoding = "float32") -> Tensor:
    """Pack a matrix [rows, columns] of numbers.

    ``int8`` is symmetric: value = scale of its row x byte, the largest magnitude of a row is 127.

    Raises:
        WireError: It is no matrix, or a value is not finite (``float16`` ends at 65504).

    >>> tensor = encode_tensor(np.array([[1.0, -0.5]]), "int8")
    >>> decode_tensor(tensor, max_rows=1, columns=2).round(2).tolist()
    [[1.0, -0.5]]
    """
    if array.ndim != 2:
        raise WireError("shape", f"only matrices travel, got shape {array.shape}")
    code = _CODES[dtype]
    scales: list[float] = []
    if dtype == "int8":
        rows = np.asarray(array, np.float32)
        peaks = np.abs(rows).max(axis=1, initial=0.0) / _LARGEST_BYTE
        _check_finite(peaks)
        # A row of zeros, or one too small for a scale, becomes zeros.
        divisors = np.where(peaks >= np.finfo(np.float32).tiny, peaks, np.inf)
        packed = np.rint(rows / divisors[:, None].astype(np.float32)).astype(np.int8)
        scales = peaks.tolist()
    else:
        with np.errstate(over="ignore"):
            packed = np.asarray(array, _TYPES[code], order="C")
        _check_finite(packed)
    rows, columns = array.shape
    return Tensor(dtype=code, rows=rows, columns=columns, data=packed.tobytes(), scales=scales)


def decode_tensor(tensor: Tensor, *, max_rows: int, columns: int) -> Floats:
    """Unpack a matrix [rows, columns] as float32; of FLOAT32 it is a read-only view.

    Args:
        tensor: The message that a peer sent.
        max_rows: The most rows that are allowed; one is the least.
        columns: The columns it must have.

    Raises:
        WireError: The type is unknown, the shape is not allowed, the bytes or the scales do not
            fit the shape, or a value is not finite.
    """
    kind = _TYPES.get(tensor.dtype)
    if kind is None:
        raise WireError("dtype", f"unknown tensor type {tensor.dtype}; allowed: 1, 2, 3")
    rows = tensor.rows
    if not 1 <= rows <= max_rows or tensor.columns != columns:
        raise WireError(
            "shape",
            f"a tensor of {rows} x {tensor.columns}; allowed: 1 to {max_rows} rows x {columns}",
        )
    if len(tensor.data) != rows * columns * kind.itemsize:
        raise WireError(
            "size",
            f"{len(tensor.data)} bytes for {rows} x {columns} of {kind.itemsize} bytes each",
        )
    if len(tensor.scales) != (rows if tensor.dtype == Tensor.INT8 else 0):
        raise WireError("scales", f"{len(tensor.scales)} scales for {rows} rows of {kind.name}")
    values: npt.NDArray[Any] = np.frombuffer(tensor.data, kind).reshape(rows, columns)
    if tensor.dtype == Tensor.INT8:
        scales = np.fromiter(tensor.scales, np.float32, rows)
        _check_finite(scales)
        with np.errstate(over="ignore"):
            values = values * scales[:, None]
    result: Floats = values.astype(np.float32, copy=False)
    _check_finite(result)
    return result


def unfit(latents: Floats, encoding: Encoding) -> npt.NDArray[np.bool_]:
    """Rows [B] of latents [B, D] that no message can hold: NaN, infinite, too large for float16.

    >>> unfit(np.array([[1.0], [np.nan], [1e6]], np.float32), "float16").tolist()
    [False, True, True]
    """
    with np.errstate(over="ignore"):
        sent = latents.astype(np.float16) if encoding == "float16" else latents
    return np.asarray(~np.isfinite(sent).all(axis=1))


def parse(kind: type[M], data: bytes) -> M:
    """Read a message.

    Raises:
        WireError: The bytes are no such message.
    """
    try:
        message: M = kind.FromString(data)
    except (DecodeError, UnicodeDecodeError):
        raise WireError("garbage", f"{len(data)} bytes are no {kind.DESCRIPTOR.name}") from None
    return message


def _check_finite(values: npt.NDArray[Any]) -> None:
    if values.dtype == np.float16:  # bits tell it five times as fast
        finite = not ((values.view(np.uint16) & _HALF_EXPONENT) == _HALF_EXPONENT).any()
    else:
        finite = bool(np.isfinite(values).all())
    if not finite:
        raise WireError("not-finite", "a value is NaN, infinite or too large for its type")


def encode_hidden(rows: npt.NDArray[np.float32], dtype: Encoding) -> Tensor:
    """Pack hidden states [n, d]; as float32 where float16 cannot hold one of them.

    Some models give the first token of a text states of that size.

    Args:
        rows: A row per token.
        dtype: How they travel otherwise.

    Raises:
        WireError: A number is not finite.

    >>> encode_hidden(np.array([[7e4]], np.float32), "float16").dtype == Tensor.FLOAT32
    True
    """
    fits = dtype != "float16" or not np.abs(rows).max(initial=0) > _LARGEST_HALF
    return encode_tensor(rows, dtype if fits else "float32")


def encode_tokens(tokens: npt.ArrayLike) -> bytes:
    """Pack whole numbers of at least 0, four bytes each.

    >>> decode_tokens(encode_tokens([7, 300]), most=2, vocab_size=301).tolist()
    [7, 300]
    """
    return np.asarray(tokens, "<u4").tobytes()


def decode_tokens(data: bytes, *, most: int, vocab_size: int) -> npt.NDArray[np.int64]:
    """Unpack tokens [n].

    Args:
        data: What a peer sent.
        most: The most tokens that are allowed; one is the least.
        vocab_size: How many tokens there are; all are below it.

    Raises:
        WireError: There are too many or too few bytes, or a token is unknown.
    """
    if len(data) % 4 or not 4 <= len(data) <= 4 * most:
        raise WireError("size", f"{len(data)} bytes of tokens; allowed: 4 each, 1 to {most} tokens")
    tokens = np.frombuffer(data, "<u4").astype(np.int64)
    if int(tokens.max()) >= vocab_size:
        raise WireError("token", f"token {tokens.max()}; allowed: 0 to {vocab_size - 1}")
    return tokens


def peer_handlers(
    *,
    describe: PeerHandler,
    predict: PeerHandler,
    peers: PeerHandler,
    score: PeerHandler | None = None,
    generate: StreamHandler | None = None,
) -> Any:
    """The service for ``server.add_generic_rpc_handlers``; requests come as bytes.

    Methods that are left out are unknown to whoever asks: of a peer that serves no text.
    """
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            handler, response_serializer=reply.SerializeToString
        )
        for name, handler, reply in (
            ("Describe", describe, Description),
            ("Predict", predict, PredictReply),
            ("Peers", peers, PeerList),
            ("Score", score, ScoreReply),
        )
        if handler is not None
    }
    if generate is not None:
        handlers["Generate"] = grpc.stream_stream_rpc_method_handler(
            generate, response_serializer=GenerateReply.SerializeToString
        )
    return grpc.method_handlers_generic_handler(SERVICE, handlers)
