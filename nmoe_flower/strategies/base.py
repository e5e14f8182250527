"""FedAvg with the round path a long run needs: streaming, named failures, seeded cohorts."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from nmoe_flower import records
from nmoe_flower.engine.streaming import StreamingGrid
from nmoe_flower.errors import ReplyError, RoundError
from nmoe_flower.records import Action
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.strategies.aggregation import WeightedMean

__all__ = [
    "Exchange",
    "FedAvgOptions",
    "StreamingFedAvg",
    "StreamingOptions",
    "cohort_size",
    "wait_for_nodes",
]

log = logging.getLogger(__name__)

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]


class FedAvgOptions(TypedDict, total=False):
    """FedAvg's keyword arguments, with FedAvg's names and defaults."""

    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    train_metrics_aggr_fn: MetricsAggregation | None
    evaluate_metrics_aggr_fn: MetricsAggregation | None


class StreamingOptions(FedAvgOptions, total=False):
    """The keyword arguments of ``StreamingFedAvg``, FedAvg's included."""

    action: str | None
    evaluate_action: str | None
    seed: int
    min_replies: int
    connect_timeout: float


@dataclass
class Exchange:
    """What one round trip cost and who failed in it; clients by partition id where known."""

    clients: list[int] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0

    def fail(self, partition: int, reason: str) -> None:
        """Name a client whose reply was dropped, and why."""
        log.warning("dropped the reply of client %d: %s", partition, reason)
        self.failures.append({"partition": partition, "reason": reason})


@dataclass(frozen=True, slots=True)
class _Usable:
    metrics: MetricRecord
    weight: float
    arrays: dict[str, np.ndarray]
    bytes: int


def cohort_size(num_nodes: int, fraction: float) -> int:
    """Exactly ``fraction * num_nodes`` rounded half up.

    >>> [cohort_size(n, 0.7) for n in (5, 10, 15)]
    [4, 7, 11]
    """
    return math.floor(fraction * num_nodes + 0.5)


def wait_for_nodes(
    grid: Grid,
    minimum: int,
    timeout: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Return the sorted node ids once there are ``minimum`` of them.

    Raises:
        RoundError: They did not come within ``timeout`` seconds (Flower itself waits for ever).
    """
    start, told = clock(), 0.0
    while len(nodes := sorted(grid.get_node_ids())) < minimum:
        waited = clock() - start
        if waited >= timeout:
            raise RoundError(
                f"{len(nodes)} of {minimum} nodes connected within {timeout:g} s; "
                "start more nodes or lower the minimum"
            )
        if waited - told >= 2.0:
            told = waited
            log.warning("waiting for nodes: %d of %d after %.0f s", len(nodes), minimum, waited)
        sleep(0.05)
    return nodes


class StreamingFedAvg(FedAvg):
    """FedAvg whose replies are aggregated as they arrive and never poison the model.

    The client must send what FedAvg asks for: one ArrayRecord with the names and shapes it was
    given, one MetricRecord with ``num-examples``. A reply that has an error, NaN or Inf, other
    names or shapes, or a missing, negative or non-finite weight is dropped and named in
    ``last_exchange.failures``; the rest is averaged.

    Args:
        action: Message type to send, such as ``"train.extractor"``. By default plain ``train``,
            which every Flower ClientApp answers. With an action, clients are asked for their
            partition id once, so that cohorts and sums are the same in every run of a seed.
        evaluate_action: Likewise for evaluation; by default plain ``evaluate``.
        seed: Of the cohorts.
        min_replies: Usable replies a round needs.
        connect_timeout: Seconds to wait for ``min_available_nodes``.
        **fedavg: FedAvg's own arguments, with its names and defaults.
    """

    purpose = "train"  # names the random stream of the cohorts

    def __init__(
        self,
        *,
        action: str | None = None,
        evaluate_action: str | None = None,
        seed: int = 0,
        min_replies: int = 1,
        connect_timeout: float = 120.0,
        **fedavg: Unpack[FedAvgOptions],
    ) -> None:
        super().__init__(**fedavg)
        self.action = action
        self.evaluate_action = evaluate_action
        self.seed = seed
        self.min_replies = min_replies
        self.connect_timeout = connect_timeout
        self.partitions: dict[int, int] = {}
        self.last_exchange = Exchange()
        self._sent: dict[str, np.ndarray] = {}

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run FedAvg's round loop over a grid that yields replies as they arrive."""
        return super().start(StreamingGrid.around(grid), *args, **kwargs)

    # --- state of the server half, for checkpoints ---

    def state(self) -> dict[str, np.ndarray]:
        """Arrays this strategy carries from round to round; empty for plain averaging."""
        return {}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""

    # --- who takes part ---

    def identify(self, grid: Grid, nodes: list[int]) -> None:
        """Learn the partition id of every node not seen before.

        Raises:
            RoundError: Two nodes claim the same partition.
        """
        unknown = [node for node in nodes if node not in self.partitions]
        if not unknown:
            return
        messages = [Message(RecordDict(), node, Action.IDENTITY) for node in unknown]
        for answer in StreamingGrid.around(grid).send_and_receive(
            messages, timeout=self.connect_timeout
        ):
            node = answer.metadata.src_node_id
            if answer.has_error():
                log.warning("node %d did not tell its partition: %s", node, answer.error.reason)
                continue
            partition = int(cast(int, records.config_of(answer)[records.PARTITION_ID]))
            taken = {p: n for n, p in self.partitions.items() if n in nodes}
            if partition in taken:
                raise RoundError(
                    f"nodes {taken[partition]} and {node} both hold partition {partition}"
                )
            self.partitions[node] = partition

    def nodes(self, grid: Grid, minimum: int) -> list[int]:
        """The nodes there are, in partition order, once there are ``minimum`` of them."""
        nodes = wait_for_nodes(grid, minimum, self.connect_timeout)
        if self.action is None:
            return nodes
        self.identify(grid, nodes)
        return sorted((n for n in nodes if n in self.partitions), key=self.partitions.__getitem__)

    def cohort(self, grid: Grid, server_round: int, fraction: float, minimum: int) -> list[int]:
        """Draw this round's nodes: uniformly, without replacement, from the seed."""
        nodes = self.nodes(grid, max(self.min_available_nodes, minimum))
        size = min(len(nodes), max(cohort_size(len(nodes), fraction), minimum))
        if size == len(nodes):
            return nodes
        rng = numpy_stream(self.seed, "cohort", self.purpose, server_round)
        return [nodes[i] for i in sorted(rng.choice(len(nodes), size=size, replace=False))]

    # --- one round ---

    def round_config(self, server_round: int, config: Mapping[str, Any]) -> dict[str, Any]:
        """What the clients are told this round; strategies add their own keys."""
        return {**config, records.SERVER_ROUND: server_round}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the arrays to this round's cohort."""
        if self.fraction_train == 0.0:
            return []
        nodes = self.cohort(grid, server_round, self.fraction_train, self.min_train_nodes)
        return self.broadcast(nodes, arrays, self.round_config(server_round, config))

    def broadcast(
        self, nodes: list[int], arrays: ArrayRecord, config: Mapping[str, Any]
    ) -> list[Message]:
        """One train message per node, all sharing the same records."""
        self._sent = records.to_numpy(arrays)
        content = RecordDict(
            {self.arrayrecord_key: arrays, self.configrecord_key: ConfigRecord(dict(config))}
        )
        self._begin(nodes, content)
        return [Message(content, node, self.action or "train") for node in nodes]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the arrays to a seeded sample of ``fraction_evaluate`` of the nodes."""
        if self.fraction_evaluate == 0.0:
            return []
        nodes = self.cohort(grid, server_round, self.fraction_evaluate, self.min_evaluate_nodes)
        settings = ConfigRecord(self.round_config(server_round, config))
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: settings})
        self._begin(nodes, content)
        return [Message(content, node, self.evaluate_action or "evaluate") for node in nodes]

    def _begin(self, nodes: list[int], content: RecordDict) -> None:
        self.last_exchange = Exchange(bytes_down=len(nodes) * records.array_bytes(content))

    def partition_of(self, reply: Message) -> int:
        """The partition a reply came from; the node id where partitions are unknown."""
        node = reply.metadata.src_node_id
        return self.partitions.get(node, node)

    def usable(self, replies: Iterable[Message], *, arrays: bool) -> Iterator[_Usable]:
        """Yield what can be aggregated, one reply at a time; drop and name the rest."""
        keys: frozenset[str] | None = None
        for reply in replies:
            partition = self.partition_of(reply)
            try:
                usable = self._read(reply, arrays=arrays)
                if keys is not None and usable.metrics.keys() != keys:
                    raise ReplyError(
                        f"metric names {sorted(usable.metrics)} differ from the other clients' "
                        f"{sorted(keys)}"
                    )
            except ReplyError as error:
                self.last_exchange.fail(partition, str(error))
                continue
            keys = frozenset(usable.metrics)
            self.last_exchange.clients.append(partition)
            self.last_exchange.bytes_up += usable.bytes
            yield usable

    def _read(self, reply: Message, *, arrays: bool) -> _Usable:
        if reply.has_error():
            raise ReplyError(reply.error.reason)
        content = reply.content
        if len(content.metric_records) != 1:
            raise ReplyError(f"one MetricRecord is wanted, got {len(content.metric_records)}")
        (metrics,) = content.metric_records.values()
        for name, value in metrics.items():
            if not np.all(np.isfinite(value)):
                raise ReplyError(f"metric {name!r} is {value}")
        weight = metrics.get(self.weighted_by_key)
        if not isinstance(weight, int | float):
            raise ReplyError(f"the weight {self.weighted_by_key!r} is missing or not a number")
        if weight < 0:
            raise ReplyError(f"the weight {self.weighted_by_key!r} is negative: {weight}")
        values: dict[str, np.ndarray] = {}
        if arrays:
            record = content.array_records.get(self.arrayrecord_key)
            if record is None and len(content.array_records) == 1:
                (record,) = content.array_records.values()
            if record is None:
                raise ReplyError(f"the ArrayRecord {self.arrayrecord_key!r} is missing")
            values = records.to_numpy(record)
            if self._sent:
                records.compare(values, self._sent)
        size = records.array_bytes(content)
        return _Usable(metrics, float(weight), values, size)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the usable replies as they arrive, then take the server's own step.

        Raises:
            RoundError: Fewer than ``min_replies`` replies could be used.
        """
        mean, contents = WeightedMean(), []
        for usable in self.usable(replies, arrays=True):
            mean.add(usable.arrays, usable.weight)
            contents.append(RecordDict({records.METRICS: usable.metrics}))
        self._enough(server_round, mean.count if mean.total > 0 else 0)
        updated = self.server_update(server_round, mean.result())
        return records.from_numpy(updated), self.train_metrics_aggr_fn(
            contents, self.weighted_by_key
        )

    def server_update(
        self, server_round: int, mean: dict[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """The new global arrays, given the clients' mean; plain FedAvg returns it."""
        return mean

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics of the usable replies."""
        contents = [
            RecordDict({records.METRICS: usable.metrics})
            for usable in self.usable(replies, arrays=False)
        ]
        if not contents:
            return None
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)

    def _enough(self, server_round: int, count: int) -> None:
        if count >= self.min_replies:
            return
        reasons = "; ".join(
            f"client {failure['partition']}: {failure['reason']}"
            for failure in self.last_exchange.failures[:5]
        )
        raise RoundError(
            f"round {server_round}: {count} usable replies, {self.min_replies} needed"
            + (f" ({reasons})" if reasons else " (no client replied)")
        )
