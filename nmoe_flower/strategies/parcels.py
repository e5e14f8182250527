"""What one client gets of a mixture: the shared arrays and those of its experts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, RecordDict

from nmoe_flower import records
from nmoe_flower.errors import RoundError
from nmoe_flower.strategies.base import StreamingFedAvg
from nmoe_flower.strategies.replies import Exchange

__all__ = ["ExpertNames", "exchange_of", "parcel"]

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


def exchange_of(sizes: Mapping[int, int], *, before: Mapping[int, int]) -> Exchange:
    """The round's exchange, with the bytes that probes cost before it."""
    return Exchange(bytes_down=sum(sizes.values()) + sum(before.values()))
