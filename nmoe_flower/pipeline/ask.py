"""One question to every client, for stages that need an answer of each; first: what it holds."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.data import what_changed
from nmoe_flower.engine import describe
from nmoe_flower.errors import CheckpointError, ReplyError, RoundError
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import ARRAYS, CONFIG, NUM_EXAMPLES, Action, HoldingKey, TextKey
from nmoe_flower.strategies import Exchange, reason_of

__all__ = ["Holding", "alike", "check_unchanged", "gather", "holdings", "message", "train_counts"]

_MOST_EXAMPLES = 2**53


def message(
    arrays: Mapping[str, np.ndarray] | None, config: Mapping[str, Any] | None = None
) -> RecordDict:
    """Arrays and settings as the content of one message."""
    content = RecordDict()
    if arrays is not None:
        content[ARRAYS] = records.from_numpy(arrays)
    if config:
        content[CONFIG] = ConfigRecord(dict(config))
    return content


def gather(
    run: Run,
    stage: str,
    action: Action,
    content: RecordDict | Mapping[int, RecordDict],
    *,
    only: list[int] | None = None,
    wanted: Sequence[str] = (),
    check: Callable[[RecordDict], object] = lambda _: None,
) -> dict[int, RecordDict]:
    """Ask every client (or those of partitions ``only``) once; ask those that fail once more.

    Args:
        run: The run in progress.
        stage: Under which the exchange is recorded.
        action: What is asked.
        content: One content for all, or one per partition.
        only: Partitions to ask.
        wanted: ArrayRecords every answer must have.
        check: Reads an answer; one that it raises on (``ReplyError``, or what reading something
            that is not there raises) counts as failed.

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
        waiting = frozenset(pending)
        messages = [
            Message(
                content if isinstance(content, RecordDict) else content[run.partitions[node]],
                node,
                action,
            )
            for node in run.nodes
            if run.partitions[node] in waiting
        ]
        exchange.bytes_down += sum(records.array_bytes(m.content) for m in messages)
        for reply in run.exchange(messages):
            partition = run.partitions[reply.metadata.src_node_id]
            try:
                answers[partition] = _sound(reply, wanted, check)
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
        raise RoundError(f"{stage}: {'; '.join(exchange.reasons(last=len(pending)))}")
    return dict(sorted(answers.items()))


def alike(
    stage: str, parts: Mapping[int, Mapping[str, np.ndarray]], *, rows: bool = False
) -> dict[int, dict[str, np.ndarray]]:
    """Arrays of every client that can be stacked: in the order and the dtypes of most clients.

    Args:
        stage: For the error.
        parts: Finite arrays by client.
        rows: The first axes may differ: they are to be joined along them.

    Raises:
        RoundError: A client has other names or shapes than most, or numbers their dtypes cannot
            hold: none of its arrays can be replaced by another's.
    """
    forms = {client: _form(arrays, rows) for client, arrays in parts.items()}
    (common, _), *_ = Counter(forms.values()).most_common()
    found = {}
    for client, arrays in parts.items():
        like = {
            name: np.empty(
                (_rows(arrays.get(name)), *shape[1:]) if rows and shape else shape, dtype
            )
            for name, dtype, shape in common
        }
        try:
            found[client] = records.restored(arrays, like)
        except ReplyError as error:
            raise RoundError(f"{stage}: client {client} differs from most: {error}") from None
    return found


def _rows(value: np.ndarray | None) -> int:
    return len(value) if value is not None and value.ndim else 0


def _form(arrays: Mapping[str, np.ndarray], rows: bool) -> tuple[tuple[str, str, Any], ...]:
    return tuple(
        (name, value.dtype.str, (0, *value.shape[1:]) if rows and value.ndim else value.shape)
        for name, value in sorted(arrays.items())
    )


def _sound(
    reply: Message, wanted: Sequence[str], check: Callable[[RecordDict], object]
) -> RecordDict:
    """The content of a reply that counts its examples and whose arrays are there and finite.

    Raises:
        ReplyError: The reply is an error, lacks a record, has NaN or infinite entries, or no
            usable ``num-examples``.
    """
    if reply.has_error():
        raise ReplyError(reason_of(reply))
    metrics = records.of_kind(reply.content, MetricRecord).get(records.METRICS)
    examples = metrics.get(NUM_EXAMPLES) if metrics is not None else None
    if not isinstance(examples, int | float) or not 0 <= examples <= _MOST_EXAMPLES:
        raise ReplyError(f"{NUM_EXAMPLES!r} is missing or not a number from 0 to 2^53")
    brought = records.of_kind(reply.content, ArrayRecord)
    if missing := [name for name in wanted if name not in brought]:
        raise ReplyError(f"the ArrayRecord {missing[0]!r} is missing")
    for record in brought.values():
        records.require_finite(records.to_numpy(record))
    try:
        check(reply.content)
    except (LookupError, TypeError, ValueError) as error:  # a ReplyError is a ValueError
        text = str(error) if isinstance(error, ReplyError) else describe(error)
        raise ReplyError(f"it cannot be read: {text}") from None
    return reply.content


@dataclass(frozen=True)
class Holding:
    """What one client holds.

    Attributes:
        examples: Training images, or windows of text.
        train: Training images per class; of text, windows per domain.
        test: Test images per class, skewed like the training images; or windows per domain.
        validation: Validation images per class, or windows per domain; empty if there are none.
        extractor: Hash of the given extractor it has, hexadecimal; empty: none is given.
        classes: Names of the classes, in the order of the labels; or of the domains.
        fingerprint: Fingerprint of the data.
        tokenizer: Hash of what makes tokens of text; empty: it holds images.
        precision: What its larger networks compute in, ``float32`` or ``bf16``; empty: not told.
    """

    examples: int
    train: list[int]
    test: list[int]
    classes: list[str]
    fingerprint: str
    validation: list[int] = field(default_factory=list)
    extractor: str = ""
    tokenizer: str = ""
    precision: str = ""

    def counted(self) -> dict[str, dict[str, int]]:
        """Samples of every class, by the names of test and class."""
        return {
            name: dict(zip(self.classes, counts, strict=True))
            for name, counts in (("train", self.train), ("test", self.test))
        }


def holdings(run: Run) -> dict[int, Holding]:
    """By partition id, in order. The run and its checkpoints remember the answers.

    Raises:
        RoundError: A client did not answer, or clients disagree about the classes, about the given
            extractor or about what makes tokens of text.
    """
    if not run.described:
        answers = gather(run, "describe", Action.DESCRIBE, RecordDict(), check=_read)
        told = {partition: _read(content) for partition, content in answers.items()}
        _compare({partition: holding.classes for partition, holding in told.items()})
        _compare_extractors({partition: holding.extractor for partition, holding in told.items()})
        _compare_tokenizers({partition: holding.tokenizer for partition, holding in told.items()})
        run.described = {partition: asdict(holding) for partition, holding in told.items()}
    return {partition: Holding(**values) for partition, values in run.described.items()}


def check_unchanged(run: Run) -> None:
    """Refuse to go on with clients that hold other data than when the run began.

    Clients that do not answer are left to the stage that needs them.

    Raises:
        CheckpointError: A client's data differs, or its given extractor or what makes tokens of
            text. Of data it tells which classes have more or fewer.
    """
    before = {partition: Holding(**values) for partition, values in run.described.items()}
    messages = [Message(RecordDict(), node, Action.DESCRIBE) for node in run.nodes]
    for reply in run.exchange(messages if before else []):
        partition = run.partitions[reply.metadata.src_node_id]
        if reply.has_error() or partition not in before:
            continue
        now = _read(reply.content)
        if now.fingerprint != before[partition].fingerprint:
            raise CheckpointError(
                f"client {partition} holds other data than when the run began: "
                f"{what_changed(before[partition].counted(), now.counted())}; put back what it "
                "was, or begin a new run"
            )
        if now.extractor != before[partition].extractor:
            raise CheckpointError(
                f"client {partition} has another given extractor than when the run began: "
                f"{now.extractor[:16]}, not {before[partition].extractor[:16]}; "
                "put back its weights (extractor.weights, or the installed package), or begin a "
                "new run"
            )
        if before[partition].tokenizer not in ("", now.tokenizer):
            raise CheckpointError(
                f"client {partition} makes other tokens of text than when the run began: by "
                f"{now.tokenizer[:16] or 'nothing'}, not {before[partition].tokenizer[:16]}; put "
                "its tokenizer back (text.tokenizer), or begin a new run"
            )


def train_counts(held: Mapping[int, Holding]) -> npt.NDArray[np.int64]:
    """Training images [clients, C], a row per partition in order."""
    return np.array([holding.train for holding in held.values()], np.int64)


def _read(content: RecordDict) -> Holding:
    metrics, config = records.metrics_of(content), records.of_kind(content, ConfigRecord)[CONFIG]
    return Holding(
        examples=int(metrics[NUM_EXAMPLES]),
        train=[int(count) for count in metrics[HoldingKey.TRAIN_COUNTS]],
        test=[int(count) for count in metrics[HoldingKey.TEST_COUNTS]],
        classes=[str(name) for name in cast(list[str], config[HoldingKey.CLASSES])],
        fingerprint=str(config[HoldingKey.FINGERPRINT]),
        validation=[int(count) for count in metrics.get(HoldingKey.VALIDATION_COUNTS, [])],
        extractor=str(config.get(HoldingKey.EXTRACTOR, "")),
        tokenizer=str(config.get(TextKey.TOKENIZER, "")),
        precision=str(config.get(HoldingKey.PRECISION, "")),
    )


def _compare(classes: Mapping[int, list[str]]) -> None:
    """Every client must number the same classes alike: label 2 of one is label 2 of all."""
    counted = Counter(map(tuple, classes.values()))
    common = list(counted.most_common(1)[0][0])
    if others := {partition: names for partition, names in classes.items() if names != common}:
        holder = min(partition for partition, names in classes.items() if names == common)
        said = "; ".join(f"client {partition} has {names}" for partition, names in others.items())
        raise RoundError(
            f"the classes of the clients differ: {said}, but client {holder} has {common}; "
            "give every node the same `classes`, in one order"
        )


def _compare_extractors(hashes: Mapping[int, str]) -> None:
    """Latents of two given extractors must never meet: all have the same, or none has one."""
    (common, _), *_ = Counter(hashes.values()).most_common()
    if others := {partition: told for partition, told in hashes.items() if told != common}:
        holder = min(partition for partition, told in hashes.items() if told == common)
        said = "; ".join(
            f"client {partition} has {told[:16]}" for partition, told in others.items()
        )
        raise RoundError(
            f"the given extractors of the clients differ: {said}, but client {holder} has "
            f"{common[:16]}; give every device the same weights (extractor.weights, or the same "
            "version of the installed package)"
        )


def _compare_tokenizers(hashes: Mapping[int, str]) -> None:
    """The tokens of all text must be made alike."""
    common, _ = Counter(hashes.values()).most_common(1)[0]
    if odd := [client for client, told in hashes.items() if told != common]:
        said = ", ".join(f"client {c} has {hashes[c][:12] or 'none'}" for c in odd)
        raise RoundError(
            f"the tokenizer of all clients must be the same: {said}, and most have {common[:12]}"
        )
