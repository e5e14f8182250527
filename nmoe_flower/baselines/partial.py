"""FedAvg of partial experts: every client trains some of the experts, and replies hold just those.

Arrays are named ``trunk.*``, ``gate.*`` and ``expert.<k>.*``. Each client is sent the shared arrays
and its experts. Each part is averaged over those who sent it; what nobody sent stays as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.errors import ReplyError
from nmoe_flower.records import BaselineKey, FeedbackKey
from nmoe_flower.strategies import (
    ExpertNames,
    StreamingFedAvg,
    StreamingOptions,
    Usable,
    WeightedMean,
    parcel,
    read_reply,
)

__all__ = ["EXPERT_PREFIX", "PartialExperts"]

EXPERT_PREFIX = "expert."


class PartialExperts(StreamingFedAvg):
    """FedAvg whose clients hold some of the experts each.

    The client must send any of the arrays it was sent, ``num-examples`` and, where experts are not
    to be weighed by that, ``masses``: a weight for each of all E experts, at least 0. A reply with
    arrays that this client was not sent, or other shapes, or a mass that is NaN, negative or of an
    expert it does not hold, is dropped and named.

    Args:
        experts: E, how many experts there are.
        told: What clients are told in every round.
        **options: What ``StreamingFedAvg`` and FedAvg take.
    """

    purpose = "baseline"

    def __init__(
        self,
        experts: int,
        *,
        told: Mapping[str, Any] | None = None,
        **options: Unpack[StreamingOptions],
    ) -> None:
        super().__init__(**options)
        self.experts = experts
        self.told = dict(told or {})
        self._whole: dict[str, np.ndarray] = {}
        self._given: dict[int, dict[str, np.ndarray]] = {}
        self._masses: list[float] | None = None

    def assigned(self, client: int, server_round: int) -> Sequence[int]:
        """The experts that a client trains in a round: all of them, if no system says otherwise."""
        return range(self.experts)

    def round_config(self, server_round: int, config: Mapping[str, Any]) -> dict[str, Any]:
        """What clients are told, beside their experts."""
        return {**super().round_config(server_round, config), **self.told}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each client of the cohort the shared arrays and its experts."""
        nodes = self.cohort(grid, server_round, self.fraction_train, self.min_train_nodes)
        told = self.round_config(server_round, config)
        self._whole = self.sent = records.to_numpy(arrays)
        self._given, messages = {}, []
        names = ExpertNames(tuple(map(str, range(self.experts))), EXPERT_PREFIX)
        self._begin([], RecordDict())
        for node in nodes:
            client = self.partitions.get(node, node)
            held = [int(expert) for expert in self.assigned(client, server_round)]
            self._given[client] = names.subset(self._whole, held)
            message = parcel(self, node, self._given[client], {**told, FeedbackKey.EXPERTS: held})
            self.last_exchange.bytes_down += records.array_bytes(message.content)
            messages.append(message)
        return messages

    def read(self, partition: int, reply: Message, *, arrays: bool) -> Usable:
        """Check a reply: any of the arrays that this client was sent.

        Raises:
            ReplyError: It cannot be used; the reason is its text.
        """
        if not arrays or reply.has_error():
            return super().read(partition, reply, arrays=False)
        given = self._given.get(partition, {})
        record = reply.content.array_records.get(self.arrayrecord_key, ArrayRecord())
        if unknown := sorted(set(record) - given.keys()):
            raise ReplyError(f"array {unknown[0]!r} was not assigned to this client")
        usable = read_reply(
            reply,
            weighted_by_key=self.weighted_by_key,
            arrayrecord_key=self.arrayrecord_key,
            like={name: value for name, value in given.items() if name in record},
        )
        self._masses = self._read_masses(usable, given)
        self.accept(partition, reply.content, usable)
        return usable

    def _read_masses(self, usable: Usable, given: Mapping[str, np.ndarray]) -> list[float] | None:
        if BaselineKey.MASSES not in usable.metrics:
            return None
        try:
            masses = np.atleast_1d(np.asarray(usable.metrics[BaselineKey.MASSES], np.float64))
        except OverflowError:
            raise ReplyError(f"{BaselineKey.MASSES} has an integer that no float holds") from None
        if len(masses) != self.experts or not np.isfinite(masses).all() or (masses < 0).any():
            raise ReplyError(
                f"{BaselineKey.MASSES} are {masses.tolist()}; allowed: {self.experts} finite "
                "numbers of at least 0"
            )
        held = {_expert(name) for name in given}
        if odd := [k for k in np.flatnonzero(masses).tolist() if k not in held]:
            raise ReplyError(f"a mass for expert {odd[0]}, which this client was not assigned")
        found: list[float] = masses.tolist()
        return found

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average each part over those who sent it, as replies arrive.

        Raises:
            RoundError: Fewer than ``min_replies`` replies could be used, none has examples, or the
                new arrays are not finite.
        """
        means: dict[tuple[int | None, str], WeightedMean] = {}
        measured = []
        for usable in self.usable(replies, arrays=True):
            for name, value in usable.arrays.items():
                expert = _expert(name)
                mass = self._masses[expert] if self._masses and expert is not None else None
                mean = means.setdefault((expert, name), WeightedMean())
                mean.add({name: value}, usable.weight if mass is None else mass)
            measured.append(self.measured(usable))
        self.enough(server_round, measured)

        def update() -> dict[str, np.ndarray]:
            found = dict(self._whole)
            for mean in means.values():
                if mean.weight:
                    found |= mean.result()
            return found

        updated = self.finite(server_round, update)
        return records.from_numpy(updated), self.average_metrics(server_round, measured)


def _expert(name: str) -> int | None:
    """The expert an array belongs to; None if it is shared."""
    if not name.startswith(EXPERT_PREFIX):
        return None
    return int(name.removeprefix(EXPERT_PREFIX).partition(".")[0])
