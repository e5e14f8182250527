"""One question to every client, for stages that need an answer of each."""

import math
import time
from collections.abc import Mapping, Sequence

from flwr.app import Message, RecordDict

from nmoe_flower import records
from nmoe_flower.errors import ReplyError, RoundError
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import Action
from nmoe_flower.strategies import Exchange

__all__ = ["gather"]


def gather(
    run: Run,
    stage: str,
    action: Action,
    content: RecordDict | Mapping[int, RecordDict],
    *,
    only: list[int] | None = None,
    wanted: Sequence[str] = (),
) -> dict[int, RecordDict]:
    """Ask every client (or those of partitions ``only``) once; ask those that fail once more.

    Args:
        run: In progress.
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
    pending = sorted(set(run.partitions.values()) if only is None else only)
    answers: dict[int, RecordDict] = {}
    exchange = Exchange()
    asked = len(pending)
    run.answered(stage, 0, asked)
    for _ in range(2):
        run.connect()
        messages = [
            Message(
                content if isinstance(content, RecordDict) else content[run.partitions[node]],
                node,
                action,
            )
            for node in run.nodes
            if run.partitions[node] in pending
        ]
        exchange.bytes_down += sum(records.array_bytes(m.content) for m in messages)
        for reply in run.exchange(messages):
            partition = run.partitions[reply.metadata.src_node_id]
            try:
                answers[partition] = _sound(reply, wanted)
            except ReplyError as error:
                exchange.fail(partition, str(error))
                continue
            exchange.bytes_up += records.array_bytes(answers[partition])
            run.answered(stage, len(answers), asked)
        pending = [partition for partition in pending if partition not in answers]
        if not pending:
            break
    exchange.clients = sorted(answers)
    run.record(stage, 1, 1, exchange, time.monotonic() - started)
    if pending:
        reasons = "; ".join(
            f"client {f['partition']}: {f['reason']}" for f in exchange.failures[-len(pending) :]
        )
        raise RoundError(f"{stage}: {reasons}")
    return dict(sorted(answers.items()))


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
        records.require_finite(records.to_numpy(record))
    return reply.content
