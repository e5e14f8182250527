"""Strategies whose clients hold some rows of the gate: those of the experts on their shortlists."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from nmoe_flower import records
from nmoe_flower.strategies.base import StreamingFedAvg
from nmoe_flower.strategies.replies import Exchange, Usable, read_reply

__all__ = ["ShortlistedFedAvg"]


class ShortlistedFedAvg(StreamingFedAvg):
    """Sends each client, and expects back, the rows of its shortlist in place of those of all.

    The rows that a client was not sent count as it would have returned them: unchanged, as no
    score of an expert that is not on its list is in its loss.

    Args:
        shortlists: Ids of the experts each client knows, by partition; None: all.
        per_expert: Names of the arrays with a row per expert.
        **options: What the next class takes.
    """

    def __init__(
        self,
        *,
        shortlists: Mapping[int, np.ndarray] | None = None,
        per_expert: Iterable[str] = ("head.weight", "head.bias", "noise.weight"),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.shortlists = shortlists
        self.per_expert = frozenset(per_expert)

    def broadcast(
        self, nodes: list[int], arrays: ArrayRecord, config: Mapping[str, Any]
    ) -> list[Message]:
        """One train message per node, with its rows."""
        if self.shortlists is None:
            return super().broadcast(nodes, arrays, config)
        self.sent = records.to_numpy(arrays)
        settings = ConfigRecord(dict(config))
        self.last_exchange = Exchange()
        messages = []
        for node in nodes:
            part = records.from_numpy(self._part(self.partitions[node]))
            content = RecordDict({self.arrayrecord_key: part, self.configrecord_key: settings})
            self.last_exchange.bytes_down += records.array_bytes(content)
            messages.append(Message(content, node, self.action or "train"))
        return messages

    def read(self, partition: int, reply: Message, *, arrays: bool) -> Usable:
        """Check one reply; the rows that it was not sent are put back.

        Raises:
            ReplyError: It cannot be used; the reason is its text.
        """
        if self.shortlists is None or not arrays:
            return super().read(partition, reply, arrays=arrays)
        usable = read_reply(
            reply,
            weighted_by_key=self.weighted_by_key,
            arrayrecord_key=self.arrayrecord_key,
            like=self._part(partition),
        )
        self.accept(partition, reply.content, usable)
        whole = dict(usable.arrays)
        for name in self.per_expert & whole.keys():
            whole[name] = self.sent[name].copy()
            whole[name][self.shortlists[partition]] = usable.arrays[name]
        return replace(usable, arrays=whole)

    def _part(self, partition: int) -> dict[str, np.ndarray]:
        """What of the arrays sent a client is sent."""
        assert self.shortlists is not None
        return {
            name: value[self.shortlists[partition]] if name in self.per_expert else value
            for name, value in self.sent.items()
        }
