"""What one client gets of a mixture: the shared arrays and those of its experts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.alignment.feedback import SHARES
from nmoe_flower.errors import ReplyError, RoundError
from nmoe_flower.strategies.base import StreamingFedAvg
from nmoe_flower.strategies.replies import read_reply

__all__ = ["ExpertNames", "parcel", "probed"]

Arrays = Mapping[str, np.ndarray]
Which = Sequence[int] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class ExpertNames:
    """Which arrays belong to which expert, told by the start of their names.

    Attributes:
        names: Of the experts, in the order of their ids.
        prefix: Arrays named ``<prefix><name>.<...>`` are the expert's; all others are shared.
    """

    names: tuple[str, ...]
    prefix: str = "experts."

    @classmethod
    def found_in(cls, arrays: Arrays, prefix: str = "experts.") -> Self:
        """The experts of a mixture, in the order of its arrays.

        Raises:
            RoundError: There is none.

        >>> ExpertNames.found_in({"gate.weight": 0, "experts.cats.bias": 0}).names
        ('cats',)
        """
        rest = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
        found = tuple(dict.fromkeys(name.partition(".")[0] for name in rest))
        if not found:
            raise RoundError(f"no array's name starts with {prefix!r}: there are no experts")
        return cls(found, prefix)

    def __len__(self) -> int:
        return len(self.names)

    def named(self, experts: Which) -> list[str]:
        """The names of experts."""
        return [self.names[int(expert)] for expert in experts]

    def owner(self, name: str) -> int | None:
        """The expert an array belongs to; None if it is shared."""
        if not name.startswith(self.prefix):
            return None
        return self.names.index(name.removeprefix(self.prefix).partition(".")[0])

    def subset(self, arrays: Arrays, experts: Which) -> dict[str, np.ndarray]:
        """The shared arrays and those of ``experts``."""
        wanted = {None, *(int(expert) for expert in experts)}
        return {name: value for name, value in arrays.items() if self.owner(name) in wanted}

    def allowance(self, arrays: Arrays, experts: int) -> int:
        """Bytes of the shared arrays and of so many experts: what a client's part may weigh."""
        sizes = dict.fromkeys((None, *range(len(self.names))), 0)
        for name, value in arrays.items():
            sizes[self.owner(name)] += value.nbytes
        shared = sizes.pop(None)
        return shared + experts * max(sizes.values())

    def parts(self, arrays: Arrays) -> dict[int | None, dict[str, np.ndarray]]:
        """Arrays by expert; the shared ones under None."""
        found: dict[int | None, dict[str, np.ndarray]] = {}
        for name, value in arrays.items():
            found.setdefault(self.owner(name), {})[name] = value
        return found


def parcel(
    strategy: StreamingFedAvg,
    node: int,
    arrays: Arrays,
    told: Mapping[str, Any],
    action: str | None = None,
) -> Message:
    """A message to one node."""
    content = RecordDict(
        {
            strategy.arrayrecord_key: records.from_numpy(arrays),
            strategy.configrecord_key: ConfigRecord(dict(told)),
        }
    )
    return Message(content, node, action or strategy.action or "train")


def probed(
    strategy: StreamingFedAvg, questions: Sequence[Message], grid: Grid
) -> Iterator[tuple[int, list[float], int]]:
    """Ask newcomers for the gate's shares: partition, shares, bytes sent; bad replies are named."""
    if not questions:
        return
    replies = grid.send_and_receive(questions, timeout=strategy.connect_timeout)
    for question, reply in zip(questions, replies, strict=True):
        partition, size = strategy.partition_of(reply), records.array_bytes(question.content)
        try:
            answer = read_reply(
                reply, weighted_by_key=strategy.weighted_by_key, arrayrecord_key=None, like={}
            )
            shares = np.asarray(answer.metrics.get(SHARES, ()), dtype=np.float64)
        except (ReplyError, OverflowError) as error:  # the latter: an integer that no float holds
            strategy.last_exchange.fail(partition, f"probe: {error}")
            continue
        yield partition, np.atleast_1d(shares).tolist(), size
