"""ExpertAlignment: each client trains the experts that suit it (system-level federated mixture).

Chen et al. 2025, "Efficient Training of Large-Scale AI Models through Federated Mixture-of-Experts:
A System-Level Approach", arXiv:2507.05685, section III. Fitness, usage, capacity, desirability and
the policies are those of ``nmoe_flower.alignment``; a round here is: decide, send, average, learn.

It does not stand on ``baselines.PartialExperts``, which takes any part of what was sent and knows
experts by their names: here a reply is whole or dropped with its feedback, names are found in
whatever model it is, and a gate decides what travels. All that both have in common is a weighted
mean for each part, and that is ``WeightedMean``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.alignment import Assigner, Clock, Feedback, World, seconds_of
from nmoe_flower.errors import ConfigError, ReplyError, RoundError
from nmoe_flower.plurals import how_many
from nmoe_flower.records import AlignmentKey, FeedbackKey
from nmoe_flower.strategies.aggregation import Measured, WeightedMean
from nmoe_flower.strategies.alignment_gate import AveragedGate, GateSharing
from nmoe_flower.strategies.alignment_parcels import (
    ClientBytes,
    ExpertNames,
    parcel,
    probed,
    read_feedback,
)
from nmoe_flower.strategies.base import StreamingFedAvg, StreamingOptions
from nmoe_flower.strategies.replies import Exchange, Usable, read_reply

__all__ = ["ExpertAlignment"]

Arrays = Mapping[str, np.ndarray]


class ExpertAlignment(StreamingFedAvg):
    """A mixture on the server; every client gets extractor, gate and only its experts.

    The client must send the arrays it got, trained, and the feedback of ``read_feedback`` among its
    metrics; ``clients.answer_assigned`` does both. An expert becomes the weighted mean over whoever
    trained it; one that nobody trained stays as it is. Unusable feedback drops the whole reply, by
    name, before anything learns from it.

    Args:
        assigner: Knows the clients and decides.
        names: Which arrays belong to which expert; found in the first arrays if left out.
        gate: How the gate travels: averaged by default.
        world: Simulated devices: who is online, how long a round takes. None: reality.
        clock: Simulated time, with the deadline.
        flops: FLOPs of training one sample with one expert, for the clock and to doubt claims.
        **options: What ``StreamingFedAvg`` and FedAvg take.
    """

    purpose = "alignment"

    def __init__(
        self,
        assigner: Assigner,
        *,
        names: ExpertNames | None = None,
        gate: GateSharing | None = None,
        world: World | None = None,
        clock: Clock | None = None,
        flops: float = 0.0,
        **options: Unpack[StreamingOptions],
    ) -> None:
        super().__init__(**options)
        self.assigner, self.names, self.gate = assigner, names, gate or AveragedGate()
        self.world, self.clock, self.flops = world, clock or Clock(), flops
        self.audit: dict[str, Any] = {}
        self.rows: dict[int, int] = {}  # partition to row of the assigner
        self.traffic = ClientBytes(assigner.clients)
        self._parcels: dict[int, Arrays] = {}  # what each partition was sent
        self._feedback: list[Feedback] = []
        self._seconds: dict[int, float] = {}

    # --- decide and send ---

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Assign experts to the clients that are there; one message each, of its own content."""
        encoded = records.Encoded(arrays)
        self.sent = encoded.arrays
        self.names = self.names or ExpertNames.found_in(self.sent)
        if len(self.names) != self.assigner.experts:
            raise RoundError(f"{len(self.names)} experts sent, {self.assigner.experts} assigned")
        self.last_exchange = Exchange()
        nodes = self._present(server_round, grid)
        online = np.isin(np.arange(self.assigner.clients), list(nodes))
        self.decision = self.assigner.assign(server_round, online)
        self._feedback, self._seconds, self._parcels = [], {}, {}
        told = self.round_config(server_round, config)
        told |= {AlignmentKey.LOADS: self.assigner.routed.tolist()}
        messages, sizes = [], {}
        for row, node in sorted(nodes.items()):
            held = np.flatnonzero(self.decision.chosen[row])
            if not len(held):
                continue
            mine = self.gate.outgoing(self.names.subset(self.sent, held), held)
            own = {**told, FeedbackKey.EXPERTS: held.tolist(), **self.gate.question(row)}
            message = parcel(
                self,
                node,
                encoded.record(mine),
                {**own, AlignmentKey.EXPERTS: self.names.named(held)},
            )
            self._parcels[self.partitions.get(node, node)] = mine
            sizes[row] = records.array_bytes(message.content)
            messages.append(message)
        self.last_exchange.bytes_down += sum(sizes.values())
        self.traffic.begin(sizes)
        return messages

    def _present(self, server_round: int, grid: Grid) -> dict[int, int]:
        """Row to node of everyone who can be reached; newcomers are probed after round 1.

        Raises:
            RoundError: Nobody can.
        """
        found = self.cohort(grid, server_round, self.fraction_train, self.min_train_nodes)
        there = None if self.world is None else self.world.online(server_round)
        nodes, newcomers = {}, []
        for node in found:
            partition = self.partitions.get(node, node)
            row = partition if self.action else self.rows.setdefault(partition, len(self.rows))
            if there is not None and (row >= len(there) or not there[row]):
                continue
            if partition not in self.rows:
                self.rows[partition] = row
                newcomers.append(node)
            nodes[row] = node
        if not nodes:
            raise RoundError(
                f"round {server_round}: none of {how_many(len(found), 'client')} is online"
            )
        self.assigner.meet(max(nodes, default=-1) + 1)
        self.traffic.meet(self.assigner.clients)
        if server_round > 1 and self.action and self.gate.is_shared:
            self._probe(newcomers, server_round, grid)
        return nodes

    def _probe(self, newcomers: Sequence[int], server_round: int, grid: Grid) -> None:
        """Cold start: ask where the gate would send a newcomer's samples; no expert travels."""
        assert self.names is not None
        shared = records.from_numpy(self.gate.outgoing(self.names.subset(self.sent, []), []))
        told = self.round_config(server_round, {})
        questions = [parcel(self, node, shared, told, records.Action.PROBE) for node in newcomers]
        for partition, shares, size in probed(self, questions, grid):
            row = self.rows[partition]
            self.traffic.ask(row, size)
            self.last_exchange.bytes_down += size
            try:
                self.assigner.fitness.probe(row, shares)
            except ConfigError as error:
                self.last_exchange.fail(partition, str(error))

    # --- average and learn ---

    def read(self, partition: int, reply: Message, *, arrays: bool) -> Usable:
        """Judge a reply's feedback with the arrays it belongs to."""
        if not arrays:
            return super().read(partition, reply, arrays=False)
        sent, row = self._parcels.get(partition), self.rows.get(partition)
        if sent is None or row is None:
            raise ReplyError("it was not asked")
        usable = read_reply(
            reply,
            weighted_by_key=self.weighted_by_key,
            arrayrecord_key=self.arrayrecord_key,
            like=self.gate.expected(sent),
        )
        held = self.decision.chosen[row]
        said = read_feedback(row, usable.metrics, held=held, flops=self.flops)
        seconds = self._time(row, said, usable)
        self._seconds[row] = seconds
        if self.clock.is_late(seconds):
            raise ReplyError(f"late: {seconds:.3g} s, the deadline is {self.clock.deadline:g} s")
        self.gate.accept(row, held, reply.content)
        self._feedback.append(said)
        self.traffic.take(row, usable.bytes)
        return usable

    def _time(self, row: int, said: Feedback, usable: Usable) -> float:
        if self.world is None:
            return said.seconds
        return seconds_of(
            self.world.at(self.decision.round)[row],
            flops=self.flops * float(said.samples.sum()),
            bytes_down=self.traffic.down[row],
            bytes_up=usable.bytes,
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what is shared over all, each expert over its holders; then learn.

        Raises:
            RoundError: Fewer than ``min_replies`` replies could be used.
        """
        assert self.names is not None
        means: dict[int | None, WeightedMean] = {}
        measured = []
        for usable in self.usable(replies, arrays=True):
            averaged_as_is = self.gate.incoming(usable.arrays, usable.weight)
            for expert, part in self.names.parts(averaged_as_is).items():
                means.setdefault(expert, WeightedMean()).add(part, usable.weight)
            measured.append(self.measured(usable))
        self.enough(server_round, measured)
        averaged: dict[str, np.ndarray] = {}
        for mean in means.values():
            if mean.weight:
                averaged |= mean.result()
        updated = self.finite(
            server_round,
            lambda: {**self.sent, **averaged, **self.gate.result(self.sent, averaged)},
        )
        return records.from_numpy(updated), self._learn(server_round, measured)

    def carried(self) -> dict[str, np.ndarray]:
        """What the step of the gate carries."""
        return self.gate.state()

    def _learn(self, server_round: int, measured: list[Measured]) -> MetricRecord:
        self.assigner.learn(self.decision, self._feedback)
        dropped = self.assigner.observe(self.decision, self._seconds)
        lasted = self.clock.advance(self._seconds)
        lines = [self.decision.why(int(row)) for row in np.flatnonzero(self.decision.online)]
        for line in lines:
            if line["client"] in self._seconds:
                line[FeedbackKey.SECONDS] = round(self._seconds[line["client"]], 6)
            line["bytes-down"] = self.traffic.down.get(line["client"], 0)
            line["bytes-up"] = self.traffic.up.get(line["client"], 0)
            if line["client"] in dropped:
                line["capacity-note"] = dropped[line["client"]]
        self.audit = {
            "policy": self.assigner.policy,
            "of": self.assigner.clients,
            "clients": lines,
        }
        loads = self.decision.chosen.sum(axis=0)
        plain = [replace(one, metrics=_averageable(one.metrics)) for one in measured]
        averaged = self.average_metrics(server_round, plain)
        averaged["load-variation"] = float(loads.std() / loads.mean()) if loads.any() else 0.0
        averaged["load-variation-total"] = self.assigner.load_variation
        averaged["bytes-to-part"] = self.traffic.over(self._parts())
        averaged["round-seconds"] = float(lasted)
        averaged["elapsed-seconds"] = float(self.clock.elapsed)
        return averaged

    def _parts(self) -> dict[int, int]:
        """Bytes of extractor, gate and the k experts of everyone who was asked."""
        assert self.names is not None
        counts = self.decision.chosen.sum(axis=1)
        sizes = {int(k): self.names.allowance(self.sent, int(k)) for k in set(counts)}
        return {row: sizes[int(counts[row])] for row in self.traffic.down}

    # --- survive ---

    def state(self) -> dict[str, np.ndarray]:
        """Everything the next round depends on; lots and ties come from the seed and the round."""
        return {
            **{f"assigner/{key}": value for key, value in self.assigner.state().items()},
            **{f"gate/{key}": value for key, value in self.gate.state().items()},
            "traffic": self.traffic.total.copy(),
            "rows": np.array(sorted(self.rows.items()), dtype=np.int64).reshape(-1, 2),
            "elapsed": np.array(self.clock.elapsed),
        }

    def load_state(self, arrays: Arrays) -> None:
        """Restore what ``state`` gave."""
        self.assigner.load_state(records.part_of(arrays, "assigner/"))
        self.gate.load_state(records.part_of(arrays, "gate/"))
        self.traffic.total = np.array(arrays["traffic"])
        self.clock.elapsed = float(arrays["elapsed"])
        self.rows = {int(partition): int(row) for partition, row in arrays["rows"]}


def _averageable(record: MetricRecord) -> MetricRecord:
    """Metrics that can be averaged over clients: not those that count experts."""
    return MetricRecord({k: v for k, v in record.items() if not k.startswith("expert-")})
