"""Each ArrayRecord of a round is written to shared memory once, however many clients read it."""

from dataclasses import dataclass
from itertools import count
from multiprocessing.shared_memory import SharedMemory

from flwr.app import ArrayRecord

from nmoe_flower.engine.client_process import PackedAt
from nmoe_flower.engine.shared import Arena, Packed, buffer_of

__all__ = ["Broadcast", "Broadcasts"]


@dataclass(eq=False)
class Broadcast:
    """An ArrayRecord that lies in shared memory until its last message is answered."""

    record: ArrayRecord
    segment: SharedMemory
    at: PackedAt
    size: int
    users: int = 0


class Broadcasts:
    """The records under way, known by identity: the reference held here keeps it unique."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._writings = count()
        self._under_way: dict[int, Broadcast] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def use(self, record: ArrayRecord) -> Broadcast:
        """The place of ``record``; one more message reads it.

        Raises:
            EngineError: The machine has no shared memory left.
        """
        known = self._under_way.get(id(record))
        if known is None:
            packed = Packed.of(record)
            segment = self._arena.take(packed.size)
            packed.write(buffer_of(segment))
            at = PackedAt(segment.name, next(self._writings), len(packed.layout))
            known = self._under_way[id(record)] = Broadcast(record, segment, at, packed.size)
        known.users += 1
        return known

    def release(self, broadcast: Broadcast) -> None:
        """One message less reads it; the last one frees the segment."""
        broadcast.users -= 1
        if not broadcast.users:
            del self._under_way[id(broadcast.record)]
            self._arena.give(broadcast.segment)
