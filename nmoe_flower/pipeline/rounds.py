"""The rounds of a strategy, from where a checkpoint left them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord

from nmoe_flower import records
from nmoe_flower.pipeline.run import Run
from nmoe_flower.strategies import StreamingFedAvg

__all__ = ["federate"]


def federate(
    run: Run,
    stage: str,
    strategy: StreamingFedAvg,
    arrays: ArrayRecord,
    *,
    rounds: int,
    settings: Callable[[int], Mapping[str, Any]] = lambda _: {},
    test_every: int = 0,
    tested: Callable[[ArrayRecord], ArrayRecord] = lambda arrays: arrays,
    also: Callable[[], Mapping[str, Any]] = dict,
) -> ArrayRecord:
    """Run a strategy's rounds; resumes in the middle if the checkpoint is from this stage.

    Args:
        run: The run in progress.
        stage: Name of the stage in records and checkpoints.
        strategy: The server half.
        arrays: The initial global arrays.
        rounds: How many rounds; a strategy whose ``converged`` turns true stops earlier.
        settings: What the clients are told in round r, beside what the strategy adds.
        test_every: Test on the clients every so many rounds and after the last; 0 never.
        tested: What is tested in place of the arrays (averaged weights, say).
        also: Asked after a round's replies for what else its line in ``rounds.jsonl`` says.
    """
    limits = run.config.run
    strategy.adopt(
        run.partitions,
        seed=limits.seed,
        min_replies=limits.min_replies,
        connect_timeout=limits.connect_timeout,
        round_timeout=limits.round_timeout,
    )
    done, kept = 0, list[int]()
    if run.resumed and run.resumed.state["stage"] == stage:
        done, kept = int(run.resumed.state["round"]), list(run.resumed.state["kept"])
        arrays = records.from_numpy(records.part_of(run.resumed.arrays, "current/"))
        strategy.load_state(records.part_of(run.resumed.arrays, "strategy/"))
        run.resumed = None
    for current in range(done + 1, rounds + 1):
        if strategy.converged:
            break
        started = time.monotonic()
        resumable = sorted({*kept, current - 1} - {0})  # the last one is noted, not saved yet
        told = ConfigRecord({**settings(current), records.KEPT_ROUNDS: resumable})
        messages = strategy.configure_train(current, arrays, told, run.grid)
        replies = run.exchange(messages)
        metrics: Mapping[str, Any] | None = None
        try:
            updated, metrics = strategy.aggregate_train(current, replies)
        finally:
            seconds = time.monotonic() - started
            exchange = strategy.last_exchange
            run.record(stage, current, rounds, exchange, seconds, metrics or {}, **also())
        arrays = updated if updated is not None else arrays
        if test_every and (current % test_every == 0 or current == rounds):
            _test(run, stage, strategy, tested(arrays), current, rounds)
        saved = [*kept, current][-run.config.run.keep_checkpoints :]
        run.note(stage, current, arrays, strategy, kept=saved)
        if run.save_due(current) or strategy.converged:
            kept = saved
            run.save_noted()
    return arrays


def _test(
    run: Run, stage: str, strategy: StreamingFedAvg, arrays: ArrayRecord, current: int, rounds: int
) -> None:
    started = time.monotonic()
    messages = strategy.configure_evaluate(current, arrays, ConfigRecord(), run.grid)
    metrics = strategy.aggregate_evaluate(current, run.exchange(messages))
    seconds = time.monotonic() - started
    exchange = strategy.last_exchange
    run.record(f"{stage}-test", current, rounds, exchange, seconds, metrics or {})
