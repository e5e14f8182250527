"""Arrays between processes: ArrayRecords in shared memory, everything small in a frame.

A packed record is its layout (names, dtypes, shapes, lengths) followed by the bytes of its arrays.
All segments belong to the parent process, which alone creates and unlinks them; workers attach by
name. So a worker may die at any moment and nothing leaks.
"""

import os
import pickle
from collections import OrderedDict
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from nmoe_flower.engine import flower
from nmoe_flower.errors import EngineError

__all__ = ["Arena", "Attachments", "Packed", "buffer_of", "own", "plain", "rebuild", "unpack"]

_GRANULE = 1 << 16
_KEEP_FREE = 4
_KEEP_ATTACHED = 8

_BUILTIN = (bool, int, float, str, bytes)

Item = tuple[str, str, Any]


class Packed(NamedTuple):
    """An ArrayRecord ready to be written: its layout and its arrays' bytes."""

    layout: bytes
    payloads: list[bytes]
    size: int

    @classmethod
    def of(cls, record: ArrayRecord) -> "Packed":
        """Describe ``record``; no array is copied."""
        entries = [
            (name, array.dtype, array.shape, array.stype, len(array.data))
            for name, array in record.items()
        ]
        layout = pickle.dumps(entries, pickle.HIGHEST_PROTOCOL)
        payloads = [array.data for array in record.values()]
        return cls(layout, payloads, len(layout) + sum(map(len, payloads)))

    def write(self, buffer: memoryview, offset: int = 0) -> int:
        """Copy into ``buffer`` from ``offset`` on; returns where it ends."""
        for payload in (self.layout, *self.payloads):
            end = offset + len(payload)
            buffer[offset:end] = payload
            offset = end
        return offset

    def joined(self) -> bytes:
        """The same bytes on their own."""
        return b"".join((self.layout, *self.payloads))


def unpack(buffer: memoryview, offset: int, layout_size: int) -> ArrayRecord:
    """Read a packed record back: one copy of each array."""
    entries, start = [], offset + layout_size
    for name, dtype, shape, stype, size in pickle.loads(buffer[offset:start]):
        end = start + size
        entries.append((name, dtype, shape, stype, bytes(buffer[start:end])))
        start = end
    return flower.array_record(entries)


def own(record: ArrayRecord) -> ArrayRecord:
    """A record of one's own: its arrays can be edited, the bytes they share cannot."""
    return flower.array_record(
        (name, array.dtype, array.shape, array.stype, array.data) for name, array in record.items()
    )


def plain(content: RecordDict) -> tuple[list[Item], list[ArrayRecord]]:
    """Split a RecordDict into small items ``(name, kind, value)`` and its ArrayRecords.

    The value of an item of kind ``"arrays"`` is the position of its record in the list. All others
    are plain Python: a class of the client's own, such as an ``IntEnum``, need not exist elsewhere.
    """
    items: list[Item] = []
    records: list[ArrayRecord] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            items.append((name, "arrays", len(records)))
            records.append(record)
        else:
            kind = "metrics" if isinstance(record, MetricRecord) else "config"
            items.append((name, kind, {key: _builtin(value) for key, value in record.items()}))
    return items, records


def _builtin(value: Any) -> Any:
    """The same value of a built-in type."""
    if type(value) in _BUILTIN:
        return value
    if isinstance(value, list):
        return [_builtin(entry) for entry in value]
    kind = next(kind for kind in _BUILTIN if isinstance(value, kind))
    return str.__str__(value) if kind is str else kind(value)


def rebuild(items: list[Item], records: list[ArrayRecord]) -> RecordDict:
    """The inverse of :func:`plain`."""
    content = RecordDict()
    for name, kind, value in items:
        if kind == "arrays":
            content[name] = records[value]
        elif kind == "metrics":
            content[name] = MetricRecord(value)
        else:
            content[name] = ConfigRecord(value)
    return content


class Arena:
    """The parent's shared-memory segments; a free one is used again before a new one is made."""

    def __init__(self) -> None:
        self._free: list[SharedMemory] = []
        self._owned: dict[str, SharedMemory] = {}

    def take(self, size: int) -> SharedMemory:
        """A segment of at least ``size`` bytes, with old contents.

        Raises:
            EngineError: The machine has no shared memory left.
        """
        fitting = [segment for segment in self._free if segment.size >= size]
        if fitting:
            best = min(fitting, key=lambda segment: segment.size)
            self._free.remove(best)
            return best
        if self._free:
            self._retire(self._free.pop())
        segment = _create(max(size, 1))
        self._owned[segment.name] = segment
        return segment

    def give(self, segment: SharedMemory) -> None:
        """Hand a segment back for reuse."""
        self._free.append(segment)
        if len(self._free) > _KEEP_FREE:
            self._retire(self._free.pop(0))

    def close(self) -> None:
        """Unlink every segment; safe to call twice."""
        self._free.clear()
        for segment in list(self._owned.values()):
            self._retire(segment)

    def _retire(self, segment: SharedMemory) -> None:
        del self._owned[segment.name]
        segment.close()
        segment.unlink()


def _create(size: int) -> SharedMemory:
    """Memory is reserved at once: writing to a full ``/dev/shm`` would kill the process."""
    rounded = -(-size // _GRANULE) * _GRANULE
    try:
        segment = SharedMemory(create=True, size=rounded)
        descriptor = getattr(segment, "_fd", -1)
        if hasattr(os, "posix_fallocate") and descriptor >= 0:
            try:
                os.posix_fallocate(descriptor, 0, rounded)
            except OSError:
                segment.close()
                segment.unlink()
                raise
    except OSError as error:
        raise EngineError(
            f"no shared memory left for {rounded} bytes ({error}); free some of /dev/shm, start "
            f"the container with a larger --shm-size, or run with fewer workers"
        ) from error
    return segment


class Attachments:
    """A worker's views of the parent's segments, the last few kept open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, SharedMemory] = OrderedDict()

    def buffer(self, name: str) -> memoryview:
        """The bytes of segment ``name``."""
        segment = self._open.pop(name, None) or SharedMemory(name)
        self._open[name] = segment
        if len(self._open) > _KEEP_ATTACHED:
            self._open.popitem(last=False)[1].close()
        return buffer_of(segment)


def buffer_of(segment: SharedMemory) -> memoryview:
    """The bytes of an open segment."""
    buffer = segment.buf
    if buffer is None:
        raise EngineError(f"shared memory segment {segment.name} is closed")
    return buffer
