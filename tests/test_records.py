import contextlib
import gc
import io
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nmoe_flower import records
from nmoe_flower.client_app import app
from nmoe_flower.codec import array_of_json, json_of_array
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ReplyError
from nmoe_flower.pipeline import ask
from nmoe_flower.records import Action
from nmoe_flower.strategies import replies

pytestmark = pytest.mark.flower

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="=", sizes=(64, 128)),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


def wire(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="float32", shape=(1,), stype=stype, data=data)


def npy(header: str, payload: bytes = b"") -> Array:
    """An .npy file with this header text, padded as NumPy does."""
    text = header.encode().ljust(117) + b"\n"
    return wire(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + payload)


# --- one array ---


@given(ARRAYS)
def test_the_bytes_are_those_numpy_saves(array: np.ndarray) -> None:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    encoded = records.encode(array)
    assert encoded.data == out.getvalue()
    flower = Array(array)
    assert encoded.data == flower.data
    assert (encoded.dtype, encoded.shape) == (flower.dtype, flower.shape)
    assert encoded.stype == flower.stype


@given(ARRAYS, st.sampled_from(["C", "F", "strided", "reversed"]))
def test_what_flower_made_is_read_and_what_we_made_flower_reads(
    array: np.ndarray, order: str
) -> None:
    if order == "strided":
        wide = np.zeros((*array.shape, 2), array.dtype)
        wide[..., 0] = array
        given_array = wide[..., 0]
    elif order == "reversed":
        given_array = array[..., ::-1] if array.ndim else array
    else:
        given_array = np.asarray(array, order=order)
    read = records.decode(Array(given_array))
    ours = records.decode(records.encode(given_array))
    flowers = records.encode(given_array).numpy()
    for value in (read, ours, flowers):
        assert value.dtype == given_array.dtype
        np.testing.assert_array_equal(value, given_array)


def test_fortran_order_travels_both_ways() -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3))
    flower = Array(array)
    assert b"'fortran_order': True" in flower.data
    np.testing.assert_array_equal(records.decode(flower), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(records.encode(array).numpy(), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_arrays_keep_their_shape(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 7, np.int64)
    assert records.decode(records.encode(array)).shape == shape


@pytest.mark.parametrize("size", [2**63 - 1, 10**29])
def test_an_empty_array_of_impossible_shape_is_refused(size: int) -> None:
    """0 times anything is 0 bytes, so the length alone does not show it."""
    encoded = records.encode(np.zeros((0, 10), np.float32))
    header = encoded.data.replace(b"(0, 10)", f"(0, {size})".encode())
    encoded.data = header[:8] + (len(header) - 10).to_bytes(2, "little") + header[10:]
    with pytest.raises(ReplyError, match=rf"no array has the shape \(0, {size}\)"):
        records.decode(encoded)


def test_what_is_read_is_a_view_nobody_can_write_to() -> None:
    encoded = records.encode(np.zeros(3, np.float32))
    decoded = records.decode(encoded)
    with pytest.raises(ValueError, match="read-only"):
        decoded[0] = 1.0
    assert np.shares_memory(decoded, np.frombuffer(encoded.data, np.uint8))


def test_objects_are_never_sent() -> None:
    with pytest.raises(TypeError, match="dtype object cannot travel: it would need pickle"):
        records.encode(np.array([{}], dtype=object))


GOOD = records.encode(np.arange(4, dtype=np.float32)).data
HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (wire(GOOD[:-1]), r"shape \(4,\) and dtype float32 needs 16 bytes, got 15"),
        (wire(GOOD + b"x"), "needs 16 bytes, got 17"),
        (wire(GOOD[:20]), "malformed"),
        (wire(GOOD[:9]), "malformed"),
        (wire(b""), "not in .npy format"),
        (wire(b"\x93NUMPY\x02\x00" + GOOD[8:]), "not in .npy format 1.0"),
        (wire(GOOD, "torch.tensor"), "'torch.tensor' is not in .npy format"),
        (npy(HEADER % ("|O", "(1,)"), b"\x80\x04N."), "never unpickled"),
        (npy(HEADER % ("<f4", "(10000000000000, )")), "needs 40000000000000 bytes, got 0"),
        (npy(HEADER % ("<f4", "(-1, -1)"), bytes(4)), "malformed"),
        (npy(HEADER % ("|V0", "(2,)")), "plain numbers"),
        (npy(HEADER % ("<f3", "(2,)")), "plain numbers"),
        (npy(HEADER % ("<f4", "(1 2)")), "malformed"),
        (npy(HEADER % ("<f4", "(" + "1, " * 33 + ")"), bytes(4)), "malformed"),
        (npy(HEADER % ("<f4", "'x'")), "malformed"),
        (npy("((((("), "malformed"),
        (npy("{"), "malformed"),
        (npy("  x = 1\n y"), "malformed"),
        (npy(HEADER % ("no such", "(1,)")), "malformed"),
    ],
)
def test_bad_bytes_are_refused_before_anything_is_allocated(array: Array, text: str) -> None:
    with pytest.raises(ReplyError, match=text):
        records.decode(array)
    with pytest.raises(ReplyError, match=f"^layer.weight: .*{text}"):
        records.to_numpy(ArrayRecord({"layer.weight": array}))


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_any_flipped_byte_is_refused_or_read(position: int, value: int) -> None:
    """Whatever arrives, nothing but a ReplyError leaves."""
    data = bytearray(GOOD)
    data[position] = value
    with contextlib.suppress(ReplyError):
        assert records.decode(wire(bytes(data))).nbytes <= len(GOOD)


# --- many arrays ---


def test_names_and_values_survive() -> None:
    arrays = {"b": np.arange(3, dtype=np.int64), "a": np.float32([[1.5]])}
    record = records.from_numpy(arrays)
    assert list(record) == ["b", "a"]
    assert records.to_numpy(record).keys() == arrays.keys()
    np.testing.assert_array_equal(records.to_numpy(record)["b"], arrays["b"])
    assert records.array_bytes(RecordDict({"x": record, "m": MetricRecord({"n": 1})})) == (
        128 + 3 * 8 + 128 + 4  # an .npy header takes 128 bytes
    )


def test_arrays_of_several_owners_travel_as_one_and_are_told_apart_again() -> None:
    parts = {7: {"w": np.float32([1]), "layers/0": np.float32([2])}, 10: {"w": np.float32([3])}}
    encoded = {owner: records.from_numpy(arrays) for owner, arrays in parts.items()}
    joined = records.together(encoded)
    assert joined["7/w"].data is encoded[7]["w"].data, "nothing is copied"
    told = records.by_owner(records.to_numpy(joined))
    assert list(told) == ["7", "10"]
    assert {name: value.tolist() for name, value in told["7"].items()} == {
        "w": [1],
        "layers/0": [2],
    }
    assert records.by_owner({}) == {}


def test_what_comes_from_elsewhere_is_sent_as_it_is_now() -> None:
    encoded = records.Encoded(records.from_numpy({"a": np.float32([1])}))
    for value in range(100):  # the memory of one is soon that of another
        sent = encoded.record({**encoded.arrays, "own": np.float32([value])})
        assert records.to_numpy(sent)["own"] == value
    again = encoded.record({"b": encoded.arrays["a"]})
    assert list(again) == ["b"], "another name is another record"
    assert encoded.record({"b": encoded.arrays["a"]}) is again


def state() -> dict[str, torch.Tensor]:
    norm = torch.nn.BatchNorm2d(3)
    norm(torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    conv = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return {
        **norm.state_dict(),
        "conv": conv.to(memory_format=torch.channels_last),
        "half": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int32),
    }


def test_a_state_dict_comes_back_with_its_dtypes_and_memory_formats() -> None:
    sent = state()
    received = {name: torch.zeros_like(tensor) for name, tensor in sent.items()}
    records.load_into(received, records.to_numpy(records.pack(sent)))
    for name, tensor in sent.items():
        assert received[name].dtype == tensor.dtype
        assert torch.equal(received[name], tensor), name
    assert received["conv"].is_contiguous(memory_format=torch.channels_last)
    assert received["num_batches_tracked"].dtype == torch.int64


def test_a_float_counter_fills_an_int64_tensor() -> None:
    """Stock FedAvg turns BatchNorm's counter into a float64."""
    counter = torch.tensor(0)
    records.load_into({"n": counter}, {"n": np.array(4.0)})
    assert (counter.item(), counter.dtype) == (4, torch.int64)


def test_loading_writes_in_place_and_strips_the_prefix() -> None:
    module = torch.nn.Linear(2, 1)
    pointer = module.weight.data_ptr()
    arrays = {
        "head/weight": np.float32([[1, 2]]),
        "head/bias": np.float32([3]),
        "other": np.ones(1),
    }
    records.load_into(module.state_dict(), arrays, prefix="head/")
    assert module.weight.tolist() == [[1.0, 2.0]]
    assert module.weight.data_ptr() == pointer
    assert module.weight.requires_grad


def test_loading_refuses_what_does_not_fit() -> None:
    with pytest.raises(ReplyError, match="array 'x/w' is missing"):
        records.load_into({"w": torch.zeros(2)}, {"w": np.zeros(2)}, prefix="x/")
    with pytest.raises(ReplyError, match=r"w: shape \(1,\), wanted \(2,\)"):
        records.load_into({"w": torch.zeros(2)}, {"w": np.zeros(1)})


LIKE = {"w": np.zeros(2, np.float32), "n": np.zeros((), np.int64)}


def restored(arrays: Mapping[str, np.ndarray], like: Any = LIKE) -> dict[str, np.ndarray]:
    """As a reply is read."""
    records.require_finite(arrays)
    return records.restored(arrays, like)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"w": np.float32([1, np.nan])}, "w: has NaN or infinite entries"),
        ({"w": np.float32([np.inf, 1])}, "w: has NaN or infinite entries"),
        ({"w": np.float32([np.inf, -np.inf])}, "w: has NaN or infinite entries"),
        ({"w": np.zeros((2, 1), np.float32)}, r"w: shape \(2, 1\), wanted \(2,\)"),
        ({"w": np.zeros(2, np.complex64)}, "w: dtype complex64 is not numeric"),
        ({"w": np.array(["a", "b"])}, "w: dtype <U1 is not numeric"),
        ({"v": np.zeros(2)}, r"missing \[\], unknown \['v'\]"),
        ({"w": None}, r"missing \['w'\], unknown \[\]"),
    ],
)
def test_comparing_names_what_does_not_fit(change: dict[str, Any], text: str) -> None:
    arrays = {k: v for k, v in {**LIKE, **change}.items() if v is not None}
    with pytest.raises(ReplyError, match=text):
        restored(arrays)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_finite_arrays_whose_sum_overflows_are_fine(dtype: type[np.floating]) -> None:
    largest = np.full(2, np.finfo(dtype).max, dtype)
    assert records.is_finite(largest)
    records.require_finite({"w": largest})


def test_order_and_dtypes_are_those_sent() -> None:
    back = restored({"n": np.array(7.0), "w": np.array([1, 2])})
    assert list(back) == ["w", "n"]
    assert (back["w"].dtype, back["w"].tolist()) == (np.float32, [1.0, 2.0])
    assert (back["n"].dtype, back["n"]) == (np.int64, 7)


def test_an_array_of_the_right_dtype_is_handed_on() -> None:
    right = np.float32([1, 2])
    assert restored({"w": right, "n": LIKE["n"]})["w"] is right


FITS: list[tuple[Any, Any]] = [
    (np.array([0.1], np.float64), np.float32),
    (np.array([60000.0], np.float64), np.float16),
    (np.array([True, False]), np.float32),
    (np.array([2**62 + 1]), np.float64),  # to the nearest
    (np.array([3.0, -3.0], np.float16), np.int64),
    (np.array([0.0, 1.0]), np.bool_),
    (np.array([2**63, 2**64 - 1], np.uint64), np.uint64),
    (np.array([2**63 - 1], np.uint64), np.int64),
    (np.array([255], np.int64), np.uint8),
    (np.array([2.0**63]), np.uint64),
    (np.array([1.5], ">f4"), np.float32),
    (np.zeros((0, 3)), np.int8),
]


@pytest.mark.parametrize(("value", "dtype"), FITS, ids=str)
def test_a_number_that_the_dtype_sent_can_hold_is_converted(value: np.ndarray, dtype: Any) -> None:
    (back,) = restored({"x": value}, {"x": np.zeros(value.shape, dtype)}).values()
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, value.astype(dtype))


REFUSED: list[tuple[Any, Any, str]] = [
    ([1e300], np.float32, "x: float64 values up to 1e+300 exceed float32"),
    ([65520.0], np.float16, "x: float64 values up to 65520 exceed float16"),
    ([10**6], np.float16, "x: int64 values up to 1e+06 exceed float16"),
    ([0.5], np.int64, "x: float64 values are not whole, wanted int64"),
    ([2.0**63], np.int64, "x: float64 values exceed int64"),
    ([-1], np.uint8, r"x: int64 values exceed uint8 (0 to 255)"),
    ([2], np.bool_, "x: int64 values exceed bool (0 to 1)"),
]


@pytest.mark.parametrize(("value", "dtype", "text"), REFUSED, ids=str)
def test_one_that_it_cannot_hold_is_refused(value: list[Any], dtype: Any, text: str) -> None:
    with pytest.raises(ReplyError, match=re.escape(text)):
        restored({"x": np.array(value)}, {"x": np.zeros(1, dtype)})


# --- messages ---


def test_replies_hold_plain_numbers() -> None:
    client = ClientApp()

    @client.query()
    def query(message: Message, context: object) -> Message:
        assert records.config_of(message) == {"k": 1}
        return records.reply(
            message,
            metrics={"a": np.int64(3), "b": np.float32(0.5), "c": [1.0, 2.0], "d": 2},
            arrays={"extra": records.from_numpy({"w": np.zeros(1)})},
            config={"name": "x"},
        )

    with InProcessGrid(client, 1) as grid:
        message = Message(RecordDict({"config": ConfigRecord({"k": 1})}), 1, "query")
        (reply,) = grid.send_and_receive([message])
    metrics = records.metrics_of(reply.content)
    assert dict(metrics) == {"a": 3, "b": 0.5, "c": [1.0, 2.0], "d": 2}
    assert [type(metrics[name]) for name in "abd"] == [int, float, int]
    assert dict(records.config_of(reply)) == {"name": "x"}
    assert list(reply.content.array_records) == ["extra"]


def test_a_message_without_a_config_reads_as_empty() -> None:
    with InProcessGrid(ClientApp(), 1):
        assert records.config_of(Message(RecordDict(), 1, "query")) == {}


def test_every_action_is_answered_by_the_client_app() -> None:
    """An action nobody registered would answer 'No ... function registered'."""
    with InProcessGrid(app, 1) as grid:
        messages = [Message(RecordDict(), 1, action) for action in Action]
        reasons = [
            reply.error.reason if reply.has_error() else ""
            for reply in grid.send_and_receive(messages)
        ]
    assert len(reasons) == len(Action)
    assert not [reason for reason in reasons if "registered" in (reason or "")]
    assert Action.FEDCE.verb == "extractor"
    assert Action.ROUTE == "evaluate.route"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_plain_values_come_back_from_an_array(value: object) -> None:
    array = array_of_json(value)
    assert (array.dtype, array.ndim) == (np.uint8, 1)
    assert json_of_array(array) == value


def test_plain_values_are_the_bytes_that_older_checkpoints_hold() -> None:
    assert array_of_json({"a": [1, 0.5]}).tobytes() == b'{"a": [1, 0.5]}'


def test_a_key_shows_as_the_text_it_stands_for() -> None:
    """Error texts quote keys; a StrEnum of Python's own would show its class."""
    key = records.FeedbackKey.SECONDS
    assert (f"{key}", f"{key!r}", f"{[key]}") == ("seconds", "'seconds'", "['seconds']")


def test_records_of_a_kind_are_those_that_flower_names() -> None:
    content = RecordDict(
        {
            "arrays": ArrayRecord([np.ones(3)]),
            "metrics": MetricRecord({"loss": 1.0}),
            "more": ArrayRecord([np.zeros(2)]),
            "config": ConfigRecord({"a": 1}),
        }
    )
    assert records.of_kind(content, ArrayRecord) == dict(content.array_records)
    assert records.of_kind(content, MetricRecord) == dict(content.metric_records)
    assert records.of_kind(content, ConfigRecord) == dict(content.config_records)
    assert list(records.of_kind(content, ArrayRecord)) == ["arrays", "more"]


def _read_by_a_strategy(reply: Message) -> None:
    like = records.to_numpy(reply.content["arrays"])
    replies.read_reply(reply, weighted_by_key="num-examples", arrayrecord_key="arrays", like=like)


def _read_by_a_stage(reply: Message) -> None:
    ask._sound(reply, ["arrays"], records.metrics_of)


@pytest.mark.parametrize(
    "read",
    [
        _read_by_a_strategy,
        _read_by_a_stage,
        lambda reply: records.array_bytes(reply.content),
        lambda reply: records.metrics_of(reply.content),
        lambda reply: records.of_kind(reply.content, ArrayRecord),
    ],
)
def test_the_arrays_of_a_reply_that_was_read_are_gone_with_it(read: Any) -> None:
    """At once: a server that waited for the collection of cycles would hold dozens of models."""
    with InProcessGrid(ClientApp(), 1):
        message = Message(RecordDict(), 1, "train")
    arrays = ArrayRecord({"w": records.encode(np.ones(3, np.float32))})
    gone = weakref.ref(arrays["w"])
    metrics = MetricRecord({"num-examples": 3})
    reply = Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
    gc.disable()
    try:
        read(reply)
        del arrays, reply
        assert gone() is None
    finally:
        gc.enable()


def test_nobody_reads_a_message_through_what_refers_to_itself() -> None:
    """Flower's properties make a cycle for each look; see `records.of_kind`."""
    package = Path(records.__file__).parent
    looks = re.compile(r"\.(array|metric|config)_records\b(?!`)")
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if looks.search(line)
    ]
    assert found == []
