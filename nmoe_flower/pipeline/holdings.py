"""What every client holds: asked once in a run, and compared before anything is trained."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from flwr.app import Message, RecordDict

from nmoe_flower import records
from nmoe_flower.data.changes import what_changed
from nmoe_flower.errors import CheckpointError, RoundError
from nmoe_flower.pipeline.gather import gather
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import CONFIG, NUM_EXAMPLES, Action, HoldingKey

__all__ = ["Holding", "check_unchanged", "holdings", "train_counts"]


@dataclass(frozen=True)
class Holding:
    """What one client holds.

    Attributes:
        examples: Training images.
        train: Training images per class.
        test: Test images per class, skewed like the training images.
        classes: Their names, in the order of the labels.
        fingerprint: Of the data.
    """

    examples: int
    train: list[int]
    test: list[int]
    classes: list[str]
    fingerprint: str

    def counted(self) -> dict[str, dict[str, int]]:
        """Samples of every class, by the names of test and class."""
        return {
            name: dict(zip(self.classes, counts, strict=True))
            for name, counts in (("train", self.train), ("test", self.test))
        }


def holdings(run: Run) -> dict[int, Holding]:
    """By partition id, in order. The run and its checkpoints remember the answers.

    Raises:
        RoundError: A client did not answer, or clients disagree about the classes.
    """
    if not run.described:
        answers = gather(run, "describe", Action.DESCRIBE, RecordDict(), check=_read)
        told = {partition: _read(content) for partition, content in answers.items()}
        _compare({partition: holding.classes for partition, holding in told.items()})
        run.described = {partition: asdict(holding) for partition, holding in told.items()}
    return {partition: Holding(**values) for partition, values in run.described.items()}


def check_unchanged(run: Run) -> None:
    """Refuse to go on with clients that hold other data than when the run began.

    Clients that do not answer are left to the stage that needs them.

    Raises:
        CheckpointError: A client's data differs; tells which classes have more or fewer.
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


def train_counts(held: Mapping[int, Holding]) -> npt.NDArray[np.int64]:
    """Training images [clients, C], a row per partition in order."""
    return np.array([holding.train for holding in held.values()], np.int64)


def _read(content: RecordDict) -> Holding:
    metrics, config = records.metrics_of(content), content.config_records[CONFIG]
    return Holding(
        examples=int(metrics[NUM_EXAMPLES]),
        train=[int(count) for count in metrics[HoldingKey.TRAIN_COUNTS]],
        test=[int(count) for count in metrics[HoldingKey.TEST_COUNTS]],
        classes=[str(name) for name in cast(list[str], config[HoldingKey.CLASSES])],
        fingerprint=str(config[HoldingKey.FINGERPRINT]),
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
