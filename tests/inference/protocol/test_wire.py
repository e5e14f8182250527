import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from nmoe_flower.errors import WireError
from nmoe_flower.inference import decode_tensor, encode_tensor, parse
from nmoe_flower.inference.protocol.peer_pb2 import PredictReply, PredictRequest, Tensor
from nmoe_flower.inference.protocol.wire import ENCODINGS

FRAMES = int(os.environ.get("NMOE_FUZZ_FRAMES", "20000"))

matrices = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
    elements=st.floats(-1000, 1000, width=32),
)


def reason(tensor: Tensor, *, max_rows: int = 4, columns: int = 2) -> str:
    with pytest.raises(WireError) as caught:
        decode_tensor(tensor, max_rows=max_rows, columns=columns)
    return caught.value.reason


@given(matrices)
def test_what_was_packed_comes_back(matrix: np.ndarray[Any, Any]) -> None:
    rows, columns = matrix.shape
    back = {
        kind: decode_tensor(encode_tensor(matrix, kind), max_rows=rows, columns=columns)
        for kind in ENCODINGS
    }
    assert all(one.dtype == np.float32 for one in back.values())
    np.testing.assert_array_equal(back["float32"], matrix)
    # Half of the last place of an 11-bit mantissa; below 2^-14 the step is 2^-24.
    assert (abs(back["float16"] - matrix) <= abs(matrix) * 2**-11 + 2**-25).all()
    # Half a step, the step being a 127th of the row's largest magnitude.
    step = abs(matrix).max(axis=1, keepdims=True) / 127
    assert (abs(back["int8"] - matrix) <= step * 0.5001 + 1e-37).all()


def test_bytes_by_hand() -> None:
    """float32 1.0 is 3f800000, float16 1.0 is 3c00, both little-endian; 127 is the row's peak."""
    matrix = np.array([[1.0, -2.0]])
    assert encode_tensor(matrix).data == bytes.fromhex("0000803f000000c0")
    assert encode_tensor(matrix, "float16").data == bytes.fromhex("003c00c0")
    packed = encode_tensor(matrix, "int8")
    assert np.frombuffer(packed.data, np.int8).tolist() == [64, -127]  # 1 / (2 / 127) = 63.5
    assert list(packed.scales) == [pytest.approx(2 / 127)]


def test_a_request_by_hand() -> None:
    """Field numbers never change: tags 0x0a, 0x12 and 0x22, then the tensor's 08, 10, 18, 22."""
    request = PredictRequest(
        request_id="r", extractor_version="e", latents=encode_tensor(np.ones((1, 1)))
    )
    by_hand = "0a0172120165220c08011001180122040000803f"
    assert request.SerializeToString() == bytes.fromhex(by_hand)


def test_float32_is_read_without_a_copy() -> None:
    tensor = encode_tensor(np.ones((2, 2)))
    read = decode_tensor(tensor, max_rows=2, columns=2)
    assert not read.flags.owndata
    assert not read.flags.writeable


def test_rows_of_zeros_and_of_tiny_numbers_survive_int8() -> None:
    matrix = np.array([[0.0, 0.0], [1e-42, 0.0], [5.0, 0.0]], np.float32)
    read = decode_tensor(encode_tensor(matrix, "int8"), max_rows=3, columns=2)
    np.testing.assert_allclose(read, matrix, atol=1e-41)


def test_strided_matrices_travel_in_row_order() -> None:
    matrix = np.arange(6.0).reshape(2, 3).T
    read = decode_tensor(encode_tensor(matrix), max_rows=3, columns=2)
    np.testing.assert_array_equal(read, matrix)


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_do_not_leave(kind: Any, value: float) -> None:
    with pytest.raises(WireError, match="NaN, infinite or too large"):
        encode_tensor(np.array([[1.0, value]]), kind)


def test_too_large_for_float16() -> None:
    assert encode_tensor(np.array([[65504.0]]), "float16").rows == 1
    with pytest.raises(WireError, match="too large for its type"):
        encode_tensor(np.array([[65520.0]]), "float16")


def test_only_matrices_travel() -> None:
    for shape in ((3,), (1, 2, 3), ()):
        with pytest.raises(WireError, match="only matrices"):
            encode_tensor(np.zeros(shape))


GOOD = {"dtype": Tensor.FLOAT32, "rows": 1, "columns": 2, "data": bytes(8)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dtype": 0}, "dtype"),
        ({"dtype": 4}, "dtype"),
        ({"dtype": -1}, "dtype"),
        ({"rows": 0}, "shape"),
        ({"rows": 5, "data": bytes(40)}, "shape"),
        ({"rows": 2**32 - 1}, "shape"),
        ({"columns": 0, "data": b""}, "shape"),
        ({"columns": 3, "data": bytes(12)}, "shape"),
        ({"columns": 2**32 - 1}, "shape"),
        ({"data": b""}, "size"),
        ({"data": bytes(7)}, "size"),
        ({"data": bytes(9)}, "size"),
        ({"dtype": Tensor.FLOAT16}, "size"),
        ({"scales": [1.0]}, "scales"),
        ({"dtype": Tensor.INT8, "data": bytes(2)}, "scales"),
        ({"dtype": Tensor.INT8, "data": bytes(2), "scales": [1.0, 1.0]}, "scales"),
        ({"dtype": Tensor.INT8, "data": bytes(2), "scales": [float("nan")]}, "not-finite"),
        ({"dtype": Tensor.INT8, "data": bytes(2), "scales": [float("inf")]}, "not-finite"),
        ({"dtype": Tensor.INT8, "data": b"\x7f\x7f", "scales": [3e38]}, "not-finite"),
        ({"data": np.array([1, np.nan], "<f4").tobytes()}, "not-finite"),
        ({"data": np.array([-np.inf, 1], "<f4").tobytes()}, "not-finite"),
    ],
)
def test_bad_tensors_are_refused_for_what_they_are(change: dict[str, Any], expected: str) -> None:
    assert decode_tensor(Tensor(**GOOD), max_rows=4, columns=2).shape == (1, 2)
    assert reason(Tensor(**GOOD | change)) == expected


def test_a_claim_of_size_costs_nothing() -> None:
    """4 billion rows are refused by the claim alone."""
    tensor = Tensor(dtype=Tensor.INT8, rows=2**32 - 1, columns=2, scales=[1.0])
    tracemalloc.start()
    try:
        assert reason(tensor) == "shape"
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x22\x01\x0a"])
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(WireError, match=f"{len(data)} bytes are no PredictRequest"):
        parse(PredictRequest, data)
    assert parse(PredictReply, b"").logits.rows == 0


def mutated(frame: bytes, rng: np.random.Generator) -> bytes:
    """Flip bytes, cut, repeat or replace: what a broken or hostile peer may send."""
    kind = rng.integers(5)
    if kind == 0:
        return rng.bytes(int(rng.integers(0, 200)))
    if kind == 1:
        return frame[: rng.integers(len(frame))]
    if kind == 2:
        begin = int(rng.integers(len(frame)))
        return frame[:begin] + frame[begin // 2 :]
    changed = bytearray(frame)
    for _ in range(int(rng.integers(1, 4))):
        changed[rng.integers(len(frame))] = rng.integers(256)
    return bytes(changed)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_no_frame_crashes_the_decoder_and_memory_stays_flat() -> None:
    rng = np.random.default_rng(5)
    frames = [
        PredictRequest(
            request_id="0123", extractor_version="ab" * 8, latents=encode_tensor(matrix, kind)
        ).SerializeToString()
        for kind in ENCODINGS
        for matrix in (rng.normal(size=(3, 8)), rng.normal(size=(1, 8)))
    ]
    outcomes: dict[str, int] = {}
    before = 0
    for count in range(FRAMES):
        frame = mutated(frames[count % len(frames)], rng)
        try:
            request = parse(PredictRequest, frame)
            read = decode_tensor(request.latents, max_rows=4, columns=8)
            assert read.dtype == np.float32
            assert read.shape[1] == 8
            assert np.isfinite(read).all()
            outcome = "read"
        except WireError as error:
            outcome = error.reason
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if count == FRAMES // 4:
            before = resident()
    assert set(outcomes) >= {"read", "garbage", "dtype", "shape", "size", "not-finite"}
    assert resident() - before < 8 << 20


def test_each_half_is_known_to_be_finite_or_not() -> None:
    """All 65,536 of them: bits say what NumPy says."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)].astype(np.float32)[None]
    packed = encode_tensor(finite, "float16")
    assert np.array_equal(decode_tensor(packed, max_rows=1, columns=finite.shape[1]), finite)
    for wrong in halves[~np.isfinite(halves)][::31]:
        with pytest.raises(WireError, match="NaN, infinite or too large"):
            encode_tensor(np.array([[1.0, wrong]], np.float16), "float16")
