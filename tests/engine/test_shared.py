import errno
import os
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from nmoe_flower.engine import shared
from nmoe_flower.engine.shared import Arena, Attachments, Packed, plain, rebuild, unpack
from nmoe_flower.errors import EngineError

ARRAYS = npst.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.bool_]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(values=st.lists(ARRAYS, max_size=4), offset=st.integers(0, 9))
def test_a_record_comes_back_as_flower_itself_would_build_it(
    values: list[np.ndarray], offset: int
) -> None:
    record = ArrayRecord(values)
    packed = Packed.of(record)
    buffer = memoryview(bytearray(offset + packed.size))
    assert packed.write(buffer, offset) == len(buffer)
    assert packed.joined() == bytes(buffer[offset:])
    back = unpack(buffer, offset, len(packed.layout))
    assert back == record
    # The object id is a hash of everything Flower sends, and is computed by its own code.
    assert back.object_id == record.object_id
    assert back.is_dirty is record.is_dirty


def test_content_is_split_and_put_together_again() -> None:
    content = RecordDict(
        {
            "a": ArrayRecord([np.ones(2)]),
            "m": MetricRecord({"x": 1, "y": [0.5, 2.0]}),
            "c": ConfigRecord({"s": "t", "b": b"u", "flag": True}),
            "b": ArrayRecord([np.zeros(3)]),
        }
    )
    items, records = plain(content)
    assert records == [content["a"], content["b"]]
    back = rebuild(items, records)
    assert back == content
    assert list(back) == list(content)
    assert [type(record) for record in back.values()] == [type(r) for r in content.values()]


def test_a_free_segment_is_used_again_and_a_small_one_replaced() -> None:
    arena = Arena()
    try:
        small = arena.take(10)
        other = arena.take(10)
        assert small.name != other.name
        arena.give(small)
        assert arena.take(small.size) is small
        arena.give(small)
        large = arena.take(small.size + 1)
        assert large.size > small.size
        with pytest.raises(FileNotFoundError):
            Attachments().buffer(small.name)  # too small for the model: gone, not hoarded
    finally:
        arena.close()
        arena.close()


def test_both_sides_see_the_same_bytes() -> None:
    arena, attachments = Arena(), Attachments()
    try:
        for number in range(20):  # more than stay attached
            segment = arena.take(4)
            segment.buf[:4] = bytes([number] * 4)
            assert bytes(attachments.buffer(segment.name)[:4]) == bytes([number] * 4)
    finally:
        arena.close()


def test_full_shared_memory_is_an_error_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker gives 64 MiB by default; writing beyond what is there would be a SIGBUS."""
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system reserves memory when a segment is made")

    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made = []

    def recording(*, create: bool, size: int) -> SharedMemory:
        made.append(SharedMemory(create=create, size=size))
        return made[-1]

    monkeypatch.setattr(shared, "SharedMemory", recording)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(EngineError, match=r"no shared memory left for 65536 bytes.*--shm-size"):
        Arena().take(10)
    with pytest.raises(FileNotFoundError):
        SharedMemory(made[0].name)
