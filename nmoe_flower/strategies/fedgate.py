"""FedGate: federated averaging of the shared gate (Networked MoE, section III-C.3).

Gao et al. 2025, arXiv:2511.01743: "we use FedAvg to synchronize the parameters of gating networks";
a random 70 % of the clients train in every round.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.strategies.replies import Exchange, Usable, read_reply
from nmoe_flower.strategies.stepped import SteppedFedAvg, SteppedOptions

__all__ = ["FedGate"]


class FedGate(SteppedFedAvg):
    """FedAvg of the gate over exactly ``round(0.7 N)`` clients per round, drawn from the seed.

    The client trains the gate it is sent on held-out data of its own with the extractor and every
    expert frozen, its gradients normalised, and returns the gate's weights.

    With ``shortlists`` a client is sent, and returns, the rows of its shortlist in place of those
    of all experts. The rows that it was not sent count as it would have returned them: unchanged,
    as no score of an expert that is not on the list is in its loss.

    Args:
        shortlists: Ids of the experts each client knows, by partition; None: all.
        per_expert: Names of the arrays with a row per expert.
        fraction_train: The paper's 70 %; the only default that differs from FedAvg's.
        **options: What ``SteppedFedAvg``, ``StreamingFedAvg`` and FedAvg take. With one local step
            per round and ``server_optimizer=AdamW()`` the gate is trained by AdamW on the clients'
            mean gradient.
    """

    purpose = "gate"

    def __init__(
        self,
        *,
        shortlists: Mapping[int, np.ndarray] | None = None,
        per_expert: Iterable[str] = ("head.weight", "head.bias", "noise.weight"),
        **options: Unpack[SteppedOptions],
    ) -> None:
        options.setdefault("fraction_train", 0.7)
        super().__init__(**options)
        self.shortlists = shortlists
        self.per_expert = frozenset(per_expert)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the gate, or each client the rows of its shortlist, to this round's cohort."""
        if self.shortlists is None:
            return super().configure_train(server_round, arrays, config, grid)
        nodes = self.cohort(grid, server_round, self.fraction_train, self.min_train_nodes)
        self.sent = records.to_numpy(arrays)
        settings = ConfigRecord(self.round_config(server_round, config))
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
