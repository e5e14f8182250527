"""A run in progress: its grid, its clients, its arrays, and how it survives being killed."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.checkpoint import Checkpoint, Checkpoints
from nmoe_flower.config import Config
from nmoe_flower.engine.streaming import StreamingGrid
from nmoe_flower.errors import ReplyError, RoundError
from nmoe_flower.records import Action
from nmoe_flower.strategies import (
    Exchange,
    Partitions,
    StreamingFedAvg,
    identify,
    wait_for_nodes,
)

__all__ = ["Journal", "Run"]

log = logging.getLogger(__name__)

Journal = Callable[[Mapping[str, Any]], None]
Arrays = dict[str, np.ndarray]
SECONDS_BETWEEN_CHECKPOINTS = 30.0


@dataclass
class Run:
    """What every stage works on.

    Attributes:
        grid: Flower's grid; replies stream through it in order.
        config: The resolved configuration.
        journal: Called with one record per exchange (a line of ``rounds.jsonl``).
        checkpoints: Where to save; None saves nothing.
        partitions: Node id to partition id, learned from the nodes.
        described: What each partition said it holds, once it was asked.
        arrays: Results of finished stages, by name (``"classifier/head.weight"``).
        costs: Rounds, seconds and bytes by stage.
        latest: The last metrics of a stage that had any.
        stages: Finished stages.
        written: Records written so far; a resumed run drops the later ones.
        resumed: The checkpoint this run started from, until its stage takes it up.
    """

    grid: Grid
    config: Config
    journal: Journal
    checkpoints: Checkpoints | None = None
    partitions: Partitions = field(default_factory=Partitions)
    described: dict[int, dict[str, Any]] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)
    resumed: Checkpoint | None = None
    stages: list[str] = field(default_factory=list)
    written: int = 0
    _step: int = 0
    _saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.grid = StreamingGrid.around(self.grid)

    @property
    def nodes(self) -> list[int]:
        """Node ids in partition order."""
        return sorted(self.partitions, key=self.partitions.__getitem__)

    def connect(self) -> None:
        """Wait for every client and learn its partition id, also of those that came back.

        Raises:
            RoundError: Clients are missing, or partition ids are not 0 .. num_clients - 1.
        """
        wanted = self.config.data.num_clients
        timeout = self.config.run.connect_timeout
        gone = self.partitions.retired
        nodes = wait_for_nodes(self.grid, wanted, timeout, without=gone)
        identify(self.grid, nodes, self.partitions, timeout)
        present = set(self.partitions.values())
        if missing := sorted(set(range(wanted)) - present):
            raise RoundError(
                f"no node holds partition {', '.join(map(str, missing))} of {wanted}; "
                f"the nodes connected hold {sorted(present)}"
            )

    def prepare(self, strategy: StreamingFedAvg) -> StreamingFedAvg:
        """Give a strategy what this run knows about its clients and deadlines."""
        strategy.partitions = self.partitions
        strategy.connect_timeout = self.config.run.connect_timeout
        strategy.round_timeout = self.config.run.round_timeout
        strategy.min_replies = self.config.run.min_replies
        strategy.seed = self.config.run.seed
        return strategy

    def part(self, prefix: str) -> Arrays:
        """The arrays whose names start with ``prefix``, without it."""
        return _part(self.arrays, prefix)

    def gather(
        self,
        stage: str,
        action: Action,
        content: RecordDict | Mapping[int, RecordDict],
        *,
        only: list[int] | None = None,
        wanted: Sequence[str] = (),
    ) -> dict[int, RecordDict]:
        """Ask every client (or those of partitions ``only``) once; ask those that fail once more.

        Args:
            stage: Under which the exchange is recorded.
            action: What is asked.
            content: The same for all, or one per partition.
            only: Partitions to ask.
            wanted: ArrayRecords every answer must have.

        Returns:
            The answers by partition id, in order.

        Raises:
            RoundError: A client failed twice: its part cannot be replaced by another's.
        """
        started = time.monotonic()
        pending = sorted(set(self.partitions.values()) if only is None else only)
        answers: dict[int, RecordDict] = {}
        exchange = Exchange()
        for _ in range(2):
            self.connect()
            messages = [
                Message(
                    content if isinstance(content, RecordDict) else content[self.partitions[node]],
                    node,
                    action,
                )
                for node in self.nodes
                if self.partitions[node] in pending
            ]
            exchange.bytes_down += sum(records.array_bytes(m.content) for m in messages)
            for reply in self._replies(messages):
                partition = self.partitions[reply.metadata.src_node_id]
                try:
                    answers[partition] = _sound(reply, wanted)
                except ReplyError as error:
                    exchange.fail(partition, str(error))
                    continue
                exchange.bytes_up += records.array_bytes(answers[partition])
            pending = [partition for partition in pending if partition not in answers]
            if not pending:
                break
        exchange.clients = sorted(answers)
        self.record(stage, 1, 1, exchange, time.monotonic() - started)
        if pending:
            reasons = "; ".join(
                f"client {f['partition']}: {f['reason']}"
                for f in exchange.failures[-len(pending) :]
            )
            raise RoundError(f"{stage}: {reasons}")
        return dict(sorted(answers.items()))

    def _replies(self, messages: list[Message]) -> Any:
        return self.grid.send_and_receive(messages, timeout=self.config.run.round_timeout)

    def federate(
        self,
        stage: str,
        strategy: StreamingFedAvg,
        arrays: ArrayRecord,
        *,
        rounds: int,
        settings: Callable[[int], Mapping[str, Any]] = lambda _: {},
        test_every: int = 0,
        tested: Callable[[ArrayRecord], ArrayRecord] = lambda arrays: arrays,
    ) -> ArrayRecord:
        """Run a strategy's rounds; resumes in the middle if the checkpoint is from this stage.

        Args:
            stage: Its name in records and checkpoints.
            strategy: The server half.
            arrays: The initial global arrays.
            rounds: How many rounds; a strategy whose ``converged`` turns true stops earlier.
            settings: What the clients are told in round r, beside what the strategy adds.
            test_every: Test on the clients every so many rounds and after the last; 0 never.
            tested: What is tested in place of the arrays (averaged weights, say).
        """
        self.prepare(strategy)
        done, kept = 0, list[int]()
        if self.resumed and self.resumed.state["stage"] == stage:
            done, kept = int(self.resumed.state["round"]), list(self.resumed.state["kept"])
            arrays = records.from_numpy(_part(self.resumed.arrays, "current/"))
            strategy.load_state(_part(self.resumed.arrays, "strategy/"))
            self.resumed = None
        for current in range(done + 1, rounds + 1):
            if getattr(strategy, "converged", False):
                break
            started = time.monotonic()
            told = ConfigRecord({**settings(current), records.KEPT_ROUNDS: kept})
            messages = strategy.configure_train(current, arrays, told, self.grid)
            replies = self._replies(list(messages))
            metrics: Mapping[str, Any] | None = None
            try:
                updated, metrics = strategy.aggregate_train(current, replies)
            finally:
                seconds = time.monotonic() - started
                self.record(stage, current, rounds, strategy.last_exchange, seconds, metrics or {})
            arrays = updated if updated is not None else arrays
            converged = bool(getattr(strategy, "converged", False))
            if test_every and (current % test_every == 0 or current == rounds):
                self._test(stage, strategy, tested(arrays), current, rounds)
            if self._checkpoint_due(current) or converged:
                kept = [*kept, current][-self.config.run.keep_checkpoints :]
                self.save(stage, current, arrays, strategy, kept=kept)
        return arrays

    def _test(
        self, stage: str, strategy: StreamingFedAvg, arrays: ArrayRecord, current: int, rounds: int
    ) -> None:
        started = time.monotonic()
        messages = strategy.configure_evaluate(current, arrays, ConfigRecord(), self.grid)
        metrics = strategy.aggregate_evaluate(current, self._replies(list(messages)))
        seconds = time.monotonic() - started
        exchange = strategy.last_exchange
        self.record(f"{stage}-test", current, rounds, exchange, seconds, metrics or {})

    def record(
        self,
        stage: str,
        current: int,
        rounds: int,
        exchange: Exchange,
        seconds: float,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one line of ``rounds.jsonl`` and add to the stage's cost."""
        values = {k: v for k, v in (metrics or {}).items() if k != records.NUM_EXAMPLES}
        self.written += 1
        if values:
            self.latest[stage] = values
        self.journal(
            {
                "stage": stage,
                "round": current,
                "rounds": rounds,
                "metrics": values,
                "clients": exchange.clients,
                "failures": exchange.failures,
                "bytes_up": exchange.bytes_up,
                "bytes_down": exchange.bytes_down,
                "seconds": round(seconds, 4),
            }
        )
        cost = self.costs.setdefault(
            stage, {"rounds": 0, "seconds": 0.0, "bytes_up": 0, "bytes_down": 0}
        )
        cost["rounds"] = current
        cost["seconds"] += seconds
        cost["bytes_up"] += exchange.bytes_up
        cost["bytes_down"] += exchange.bytes_down

    def _checkpoint_due(self, current: int) -> bool:
        every = self.config.run.checkpoint_every
        if every:
            return current % every == 0
        return time.monotonic() - self._saved_at >= SECONDS_BETWEEN_CHECKPOINTS

    def save(
        self,
        stage: str,
        current: int = 0,
        arrays: ArrayRecord | None = None,
        strategy: StreamingFedAvg | None = None,
        *,
        kept: Sequence[int] = (),
    ) -> None:
        """Save everything a resumed run needs, after round ``current`` of a stage.

        ``kept`` names the rounds of this stage whose checkpoints are then on the disk.
        """
        if self.checkpoints is None:
            return
        self._step += 1
        current_arrays = records.to_numpy(arrays) if arrays is not None else {}
        carried = strategy.state() if strategy is not None else {}
        self.checkpoints.save(
            self._step,
            {
                **{f"done/{name}": value for name, value in self.arrays.items()},
                **{f"current/{name}": value for name, value in current_arrays.items()},
                **{f"strategy/{name}": value for name, value in carried.items()},
            },
            {
                "stage": stage,
                "round": current,
                "kept": list(kept),
                "costs": self.costs,
                "latest": self.latest,
                "written": self.written,
                "stages": self.stages,
                "described": {str(p): told for p, told in self.described.items()},
            },
        )
        self._saved_at = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.resumed = checkpoint
        self.arrays = _part(checkpoint.arrays, "done/")
        self.costs = checkpoint.state["costs"]
        self.latest = checkpoint.state.get("latest", {})  # a run begun before there was any
        self.written = checkpoint.state["written"]
        self.stages = checkpoint.state["stages"]
        described = checkpoint.state.get("described", {})  # likewise
        self.described = {int(partition): told for partition, told in described.items()}
        self._step = checkpoint.step


def _sound(reply: Message, wanted: Sequence[str]) -> RecordDict:
    """The content of a reply that counts its examples and whose arrays are there and finite.

    Raises:
        ReplyError: The reply is an error, lacks a record, has NaN or infinite entries, or no
            usable ``num-examples``.
    """
    if reply.has_error():
        raise ReplyError(reply.error.reason)
    metrics = reply.content.metric_records.get(records.METRICS)
    examples = metrics.get(records.NUM_EXAMPLES) if metrics is not None else None
    if not isinstance(examples, int | float) or not 0 <= examples < math.inf:
        raise ReplyError(f"{records.NUM_EXAMPLES!r} is missing or not a number >= 0: {examples}")
    if missing := [name for name in wanted if name not in reply.content.array_records]:
        raise ReplyError(f"the ArrayRecord {missing[0]!r} is missing")
    for record in reply.content.array_records.values():
        arrays = records.to_numpy(record)
        records.compare(arrays, arrays)
    return reply.content


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
