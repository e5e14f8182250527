"""A run in progress: its grid, its clients, its arrays, and how it survives being killed."""

import copy
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.checkpoint import Checkpoint, Checkpoints
from nmoe_flower.config import Config
from nmoe_flower.engine import StreamingGrid
from nmoe_flower.errors import RoundError
from nmoe_flower.pipeline.artifacts import Arrays, Artifacts
from nmoe_flower.strategies import (
    Exchange,
    Partitions,
    StreamingFedAvg,
    meet_nodes,
)

__all__ = ["Answered", "Journal", "Keep", "Run"]

Journal = Callable[[Mapping[str, Any]], None]
Keep = Callable[[str, Mapping[str, np.ndarray]], object]
Answered = Callable[[str, int, int], None]
# Seconds between two checkpoints; saving takes 2 % of the time at most, unless that is too long.
SOONEST, LATEST, TIMES_THE_COST = 5.0, 30.0, 50.0


@dataclass
class Run:
    """What every stage works on.

    Attributes:
        grid: Flower's grid; replies stream through it in order.
        config: The resolved configuration.
        journal: Called with one record per exchange (a line of ``rounds.jsonl``).
        answered: Called with a stage that waits for each client, how many have answered, and of
            how many.
        keep: Called with arrays of the clients that the run folder holds for later, and their name
            there, ``sums/3``: too large for every checkpoint.
        checkpoints: Where to save; None saves nothing.
        soonest: Seconds between two checkpoints at least, where none asks for so many rounds.
        partitions: Node id to partition id, learned from the nodes.
        described: What each partition said it holds, once it was asked.
        artifacts: What finished stages left.
        costs: Rounds, seconds and bytes by stage.
        latest: The last metrics of a stage that had any.
        stages: Finished stages.
        written: Records written so far; a resumed run drops the later ones.
        resumed: The checkpoint this run started from, until its stage takes it up.
    """

    grid: Grid
    config: Config
    journal: Journal
    answered: Answered = lambda stage, count, clients: None
    keep: Keep = lambda name, arrays: None
    checkpoints: Checkpoints | None = None
    soonest: float = SOONEST
    partitions: Partitions = field(default_factory=Partitions)
    described: dict[int, dict[str, Any]] = field(default_factory=dict)
    artifacts: Artifacts = field(default_factory=Artifacts)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)
    resumed: Checkpoint | None = None
    stages: list[str] = field(default_factory=list)
    written: int = 0
    _step: int = 0
    _saved_at: float = field(default_factory=time.monotonic)
    _cost: float = 0.0  # seconds of the last save
    _noted: tuple[Arrays, dict[str, Any]] | None = None
    _saving: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.grid = StreamingGrid.around(self.grid)
        self.partitions.clients = self.config.data.num_clients

    @property
    def nodes(self) -> list[int]:
        """Node ids in partition order."""
        return sorted(self.partitions, key=self.partitions.__getitem__)

    def connect(self) -> None:
        """Wait for every client and learn its partition id, also of those that came back.

        Nodes whose partition is not 0 .. num_clients - 1 are left out, with a warning.

        Raises:
            RoundError: Clients are missing.
        """
        wanted = self.config.data.num_clients
        timeout = self.config.run.connect_timeout
        meet_nodes(self.grid, wanted, self.partitions, timeout)
        present = set(self.partitions.values())
        if missing := sorted(set(range(wanted)) - present):
            raise RoundError(
                f"no node holds partition {', '.join(map(str, missing))} of {wanted}; the nodes "
                f"that answered within run.connect-timeout = {timeout:g} s hold {sorted(present)}"
            )

    def exchange(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Send messages; the replies come one by one, within ``run.round-timeout``."""
        return self.grid.send_and_receive(messages, timeout=self.config.run.round_timeout)

    def record(
        self,
        stage: str,
        current: int,
        rounds: int,
        exchange: Exchange,
        seconds: float,
        metrics: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Write one line of ``rounds.jsonl`` and add to the stage's cost.

        ``more`` is what else the line says.
        """
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
                **more,
            }
        )
        cost = self.costs.setdefault(
            stage, {"rounds": 0, "seconds": 0.0, "bytes_up": 0, "bytes_down": 0}
        )
        cost["rounds"] = current
        cost["seconds"] += seconds
        cost["bytes_up"] += exchange.bytes_up
        cost["bytes_down"] += exchange.bytes_down

    def save_due(self, current: int) -> bool:
        """Whether to save after round ``current``: every so many rounds, or seconds."""
        every = self.config.run.checkpoint_every
        if every:
            return current % every == 0
        wait = min(LATEST, max(self.soonest, TIMES_THE_COST * self._cost))
        return time.monotonic() - self._saved_at >= wait

    def save(self, stage: str) -> None:
        """Save everything a resumed run needs, between two rounds: ``stage`` is over."""
        self.note(stage)
        self.save_noted()

    def note(
        self,
        stage: str,
        current: int = 0,
        arrays: ArrayRecord | None = None,
        strategy: StreamingFedAvg | None = None,
        *,
        kept: Sequence[int] = (),
    ) -> None:
        """Remember everything a resumed run needs after a round, without a copy of the arrays.

        ``kept`` names the rounds of this stage whose checkpoints will then be on the disk.

        A run that ends before its next checkpoint is due loses no finished round: whoever ends it
        calls `save_noted`. No strategy changes arrays in place that its ``state`` has given out.
        """
        if self.checkpoints is None:
            return
        current_arrays = records.to_numpy(arrays) if arrays is not None else {}
        carried = strategy.state() if strategy is not None else {}
        self._noted = (
            {
                **{f"done/{name}": value for name, value in self.artifacts.named().items()},
                **{f"current/{name}": value for name, value in current_arrays.items()},
                **{f"strategy/{name}": value for name, value in carried.items()},
            },
            {
                "stage": stage,
                "round": current,
                "settings": self.config.flat(),
                "kept": list(kept),
                "costs": copy.deepcopy(self.costs),
                "latest": dict(self.latest),
                "written": self.written,
                "stages": list(self.stages),
                "described": {str(p): told for p, told in self.described.items()},
            },
        )

    def save_noted(self) -> None:
        """Save what was noted last, unless it is saved already; safe to call from any thread."""
        with self._saving:
            noted, self._noted = self._noted, None
            if noted is None or self.checkpoints is None:
                return
            self._step += 1
            started = time.monotonic()
            self.checkpoints.save(self._step, *noted)
            self._saved_at = time.monotonic()
            self._cost = self._saved_at - started

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.resumed = checkpoint
        self.artifacts = Artifacts.read(records.part_of(checkpoint.arrays, "done/"))
        self.costs = checkpoint.state["costs"]
        self.latest = checkpoint.state.get("latest", {})  # a run begun before there was any
        self.written = checkpoint.state["written"]
        self.stages = checkpoint.state["stages"]
        described = checkpoint.state.get("described", {})  # likewise
        self.described = {int(partition): told for partition, told in described.items()}
        self._step = checkpoint.step
