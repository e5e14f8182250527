"""Let runners take turns with the bare loop, and boil their times down to ratios."""

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.rounds.kinds import FLOOR_GOALS, LARGE, Kind
from benchmarks.rounds.remote import Remote
from benchmarks.yardstick import Blocks, ratio

__all__ = ["RoundFigures", "Row", "measure_kind", "measure_memory", "medians"]

_LEAST_SECONDS = 3.0
_ECHOES = 20


@dataclass
class RoundFigures:
    """One runner on one kind of work.

    Args:
        kind: Name of the work.
        runner: What ran it.
        start_seconds: From nothing to the end of round 1.
        blocks: Seconds of rounds in a row.
        bare_blocks: Seconds of the bare loop, each block a neighbour of that of its position.
        cpu: Seconds of CPU time per round of all its processes.
        bare_cpu: Seconds of CPU time of the bare loop, block by block.
        floor: Median milliseconds of an exchange of 1 kB with 10 nodes.
        memory: Most bytes its processes hold together, by proportional set size.
    """

    kind: str
    runner: str
    start_seconds: float
    blocks: Blocks = field(default_factory=list)
    bare_blocks: Blocks = field(default_factory=list)
    cpu: Blocks = field(default_factory=list)
    bare_cpu: Blocks = field(default_factory=list)
    floor: float | None = None
    memory: float = math.nan

    @property
    def round_seconds(self) -> float:
        """Median over all measured rounds."""
        return statistics.median(seconds for block in self.blocks for seconds in block)

    @property
    def ratio(self) -> float:
        """Times the bare loop."""
        return 1.0 if self.runner == "bare" else ratio(self.blocks, self.bare_blocks)

    @property
    def cpu_ratio(self) -> float:
        """Times the CPU time of the bare loop: what is left of the ratio on a busy machine."""
        return 1.0 if self.runner == "bare" else ratio(self.cpu, self.bare_cpu)

    def as_json(self) -> dict[str, Any]:
        """What was measured: medians of blocks, those of the bare loop beside their neighbours."""
        blocks = {
            "blocks": self.blocks,
            "bare-blocks": self.bare_blocks,
            "cpu-blocks": self.cpu,
            "bare-cpu-blocks": self.bare_cpu,
        }
        return {
            "kind": self.kind,
            "runner": self.runner,
            "seconds-to-round-1": self.start_seconds,
            "seconds-per-round": self.round_seconds,
            "ratio-to-bare": self.ratio,
            "cpu-ratio-to-bare": self.cpu_ratio,
            "exchange-milliseconds": self.floor,
            "memory-bytes": self.memory,
            "rounds": sum(map(len, self.blocks)),
            **({} if self.runner == "bare" else {name: _medians(b) for name, b in blocks.items()}),
        }


def _medians(blocks: Blocks) -> list[float]:
    return [statistics.median(seconds) for seconds in blocks]


def measure_kind(
    kind: Kind,
    runners: Sequence[str],
    *,
    rounds: int | None,
    seed: int,
    workers: int,
    pfl_python: str = sys.executable,
) -> list[RoundFigures]:
    """Measure the runners one after the other, each taking turns with the same bare loop.

    Args:
        kind: What is computed.
        runners: Names beside ``bare``, which always runs.
        rounds: At least so many measured rounds each; None takes the kind's own number.
        seed: Seed of weights and images.
        workers: Client processes of every runner.
        pfl_python: Interpreter that runs pfl.
    """
    figures = []
    with Remote("bare", kind, seed=seed, workers=workers) as bare:
        own = RoundFigures(kind.name, "bare", bare.start_seconds)
        _warm_up(bare, kind)
        for name in runners:
            python = pfl_python if name == "pfl" else sys.executable
            with Remote(name, kind, seed=seed, workers=workers, python=python) as remote:
                found = RoundFigures(kind.name, name, remote.start_seconds)
                _warm_up(remote, kind)
                _take_turns(found, remote, bare, kind, rounds or kind.rounds)
                if name in FLOOR_GOALS:
                    found.floor = _floor(remote)
                found.memory = remote.peak_memory(kind.block)
            figures.append(found)
            own.blocks += found.bare_blocks
        if not runners:
            own.blocks.append(bare.ask("rounds", rounds or kind.rounds))
        own.memory = bare.peak_memory(kind.block)
    return [own, *figures]


@dataclass(frozen=True)
class Row:
    """The medians over passes, each with runners started anew, of one runner on one kind of work.

    Args:
        kind: Name of the work.
        runner: What ran it.
        start_seconds: From nothing to the end of round 1.
        round_seconds: Seconds per round.
        ratio: The same, times the bare loop.
        cpu_ratio: CPU time per round, times the bare loop.
        floor: Milliseconds of an exchange of 1 kB with 10 nodes.
        memory: Most bytes its processes hold together.
    """

    kind: str
    runner: str
    start_seconds: float
    round_seconds: float
    ratio: float
    cpu_ratio: float
    floor: float | None
    memory: float


def medians(figures: Iterable[RoundFigures]) -> list[Row]:
    """One row for each kind and runner, in the order in which they were first measured."""
    passes: dict[tuple[str, str], list[RoundFigures]] = {}
    for one in figures:
        passes.setdefault((one.kind, one.runner), []).append(one)
    rows = []
    for (kind, runner), found in passes.items():
        floors = [one.floor for one in found if one.floor is not None]
        rows.append(
            Row(
                kind,
                runner,
                statistics.median(one.start_seconds for one in found),
                statistics.median(one.round_seconds for one in found),
                statistics.median(one.ratio for one in found),
                statistics.median(one.cpu_ratio for one in found),
                statistics.median(floors) if floors else None,
                statistics.median(one.memory for one in found),
            )
        )
    return rows


def _warm_up(remote: Remote, kind: Kind) -> None:
    if kind.warm_up > 1:
        remote.ask("rounds", kind.warm_up - 1)  # round 1 is part of the start-up


def _take_turns(found: RoundFigures, remote: Remote, bare: Remote, kind: Kind, rounds: int) -> None:
    """Blocks in the order A B, B A, A B: a drift of the machine's speed favours neither."""
    measured, seconds = 0, 0.0
    while measured < rounds or seconds < _LEAST_SECONDS:
        for one in (bare, remote) if len(found.blocks) % 2 else (remote, bare):
            before = one.cpu_seconds()
            block = one.ask("rounds", kind.block)
            cpu = [(one.cpu_seconds() - before) / kind.block]
            (found.bare_blocks if one is bare else found.blocks).append(block)
            (found.bare_cpu if one is bare else found.cpu).append(cpu)
            seconds += sum(block)
        measured += kind.block


def _floor(remote: Remote) -> float:
    remote.ask("echo", 3)
    return 1000 * statistics.median(remote.ask("echo", _ECHOES))


def measure_memory(runner: str, *, seed: int, workers: int) -> float:
    """Peak bytes of the server process in one round of 100 clients of 45 MB."""
    with Remote(runner, LARGE, seed=seed, workers=workers) as remote:
        return remote.ask("peak", 1)[0]
