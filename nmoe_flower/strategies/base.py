"""FedAvg with the round path a long run needs: streaming, named failures, seeded cohorts."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from nmoe_flower import records
from nmoe_flower.engine import StreamingGrid, describe
from nmoe_flower.errors import ConfigError, ReplyError, RoundError
from nmoe_flower.plurals import how_many, listed
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.strategies.aggregation import (
    Largest,
    Measured,
    WeightedMean,
    agreeing,
    average,
    only_finite,
)
from nmoe_flower.strategies.cohort import Partitions, cohort_size, meet_nodes, wait_for_nodes
from nmoe_flower.strategies.limits import require_arrays, require_number, require_whole
from nmoe_flower.strategies.replies import Exchange, LoggedGrid, Usable, read_reply

__all__ = ["FedAvgOptions", "StreamingFedAvg", "StreamingOptions"]

log = logging.getLogger(__name__)

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]

_FLOWERS_MEAN = FedAvg().train_metrics_aggr_fn  # the default, which raises where metrics differ


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


class StreamingFedAvg(FedAvg):
    """FedAvg whose replies are aggregated as they arrive and never poison the model.

    The client must send what FedAvg asks for: one ArrayRecord with the names and shapes it was
    given, one MetricRecord with ``num-examples``. A reply that has an error, NaN or Inf, other
    names or shapes, numbers that the dtypes sent cannot hold, or a missing, negative or non-finite
    weight is dropped and named in ``last_exchange.failures``; the rest is averaged. The order and
    the dtypes of the arrays are those sent, whatever comes back. A metric that cannot be averaged
    is left out with one warning; so are all if an aggregation function of the user's own raises.

    Args:
        action: Message type to send, such as ``"train.extractor"``. By default plain ``train``,
            which every Flower ClientApp answers. With an action, clients are asked for their
            partition id once, so that cohorts and sums are the same in every run of a seed.
        evaluate_action: Message type of an evaluation; by default plain ``evaluate``.
        seed: Seed of the cohorts.
        min_replies: Usable replies a round needs.
        connect_timeout: Seconds to wait for ``min_available_nodes``.
        **fedavg: FedAvg's own arguments, with its names and defaults.

    Attributes:
        converged: Whether further rounds would change nothing: the rounds of a run end.
        partitions: Node id to partition id of the clients met so far.
        last_exchange: What the last exchange cost and who failed in it.
        sent: The arrays that went out last, in the order sent.

    Raises:
        ConfigError: An argument is out of range; it says which, and what is allowed.
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
        for name in ("fraction_train", "fraction_evaluate"):
            require_number(name, fedavg.get(name, 1.0), most=1.0)
        for name in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
            require_whole(name, fedavg.get(name, 2))
        super().__init__(**fedavg)
        if self.arrayrecord_key == self.configrecord_key:
            raise ConfigError(
                "arrayrecord_key and configrecord_key must differ, "
                f"both are {self.arrayrecord_key!r}"
            )
        self.action = action
        self.evaluate_action = evaluate_action
        self.converged = False
        self.adopt(
            Partitions(), seed=seed, min_replies=min_replies, connect_timeout=connect_timeout
        )
        self.last_exchange = Exchange()
        self.sent: dict[str, np.ndarray] = {}
        self._largest = Largest()
        self._told: set[tuple[str, str]] = set()  # phase and metric of warnings given

    def adopt(
        self,
        partitions: Partitions,
        *,
        seed: int,
        min_replies: int,
        connect_timeout: float,
        round_timeout: float = 3600.0,
    ) -> None:
        """Take the clients and the limits of a run that this strategy is one stage of.

        Args:
            partitions: Node id to partition id; shared with the run, which meets clients too.
            seed: Seed of the cohorts.
            min_replies: Usable replies a round needs, at least 0.
            connect_timeout: Seconds to wait for ``min_available_nodes``.
            round_timeout: Seconds to wait for replies in an exchange of the strategy's own.

        Raises:
            ConfigError: A number is out of range.
        """
        self.partitions = partitions
        self.seed = seed
        self.min_replies = require_whole("min_replies", min_replies)
        self.connect_timeout = require_number("connect_timeout", connect_timeout)
        self.round_timeout = require_number("round_timeout", round_timeout)

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run FedAvg's round loop over a grid that yields replies as they arrive.

        Args:
            grid: Any Flower grid.
            *args: What Flower's ``Strategy.start`` takes.
            **kwargs: What it takes by name; what a later Flower adds is passed on.

        Raises:
            ConfigError: The arrays are not numbers, or not finite, or an argument is out of range.
            RoundError: A round cannot go on.
        """
        given = inspect.signature(super().start).bind_partial(grid, *args, **kwargs).arguments
        if "initial_arrays" in given:
            require_arrays(given["initial_arrays"])
        require_whole("num_rounds", given.get("num_rounds", 1))
        if given.get("timeout") is not None:  # None: for ever, as in Flower
            require_number("timeout", given["timeout"])
        kinds = {self.action or "train": "train", self.evaluate_action or "evaluate": "evaluate"}
        logged = LoggedGrid(StreamingGrid.around(grid), kinds, lambda: self.last_exchange)
        return super().start(logged, *args, **kwargs)

    def carried(self) -> dict[str, np.ndarray]:
        """Arrays that the server's step carries from round to round; empty for plain averaging."""
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """All that this strategy carries from round to round; empty for plain averaging."""
        return {}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""

    def nodes(self, grid: Grid, minimum: int) -> list[int]:
        """The nodes there are, in partition order, once there are ``minimum`` of them.

        Raises:
            RoundError: They did not come in time, or none of them tells its partition.
        """
        if self.action is None:
            gone = self.partitions.retired
            return wait_for_nodes(grid, minimum, self.connect_timeout, without=gone)
        nodes = meet_nodes(grid, minimum, self.partitions, self.connect_timeout)
        known = sorted((n for n in nodes if n in self.partitions), key=self.partitions.__getitem__)
        if nodes and not known:
            raise RoundError(
                f"none of {len(nodes)} nodes told its partition: with an action, clients must "
                f"answer {records.Action.IDENTITY}; leave action out for a plain ClientApp"
            )
        return known

    def cohort(self, grid: Grid, server_round: int, fraction: float, minimum: int) -> list[int]:
        """Draw this round's nodes: uniformly, without replacement, from the seed."""
        nodes = self.nodes(grid, max(self.min_available_nodes, minimum))
        size = min(len(nodes), max(cohort_size(len(nodes), fraction), minimum))
        if size == len(nodes):
            return nodes
        rng = numpy_stream(self.seed, "cohort", self.purpose, server_round)
        return [nodes[i] for i in sorted(rng.choice(len(nodes), size=size, replace=False))]

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
        self.sent = records.to_numpy(arrays)
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

    def usable(self, replies: Iterable[Message], *, arrays: bool) -> Iterator[Usable]:
        """Yield what can be aggregated, one reply at a time; drop and name the rest."""
        self._largest = Largest()
        for reply in replies:
            partition = self.partition_of(reply)
            try:
                usable = self.read(partition, reply, arrays=arrays)
            except ReplyError as error:
                self.last_exchange.fail(partition, str(error))
                continue
            self.last_exchange.clients.append(partition)
            self.last_exchange.bytes_up += usable.bytes
            self._largest.note(partition, usable.squares)
            if arrays and not self.sent:
                self.sent = usable.arrays  # none was sent: all must be as the first
            yield usable

    def measured(self, usable: Usable) -> Measured:
        """The metrics of the reply that ``usable`` has just yielded."""
        return Measured(self.last_exchange.clients[-1], usable.weight, usable.metrics)

    def read(self, partition: int, reply: Message, *, arrays: bool) -> Usable:
        """Check one reply; strategies that send each client something else override this.

        Raises:
            ReplyError: It cannot be used; the reason is its text.
        """
        usable = read_reply(
            reply,
            weighted_by_key=self.weighted_by_key,
            arrayrecord_key=self.arrayrecord_key if arrays else None,
            like=self.sent or None,
        )
        if arrays:
            self.accept(partition, reply.content, usable)
        return usable

    def accept(self, client: int, content: RecordDict, usable: Usable) -> None:
        """Take what else a usable reply brings; strategies that want more override this.

        Raises:
            ReplyError: It is not as agreed: the whole reply is dropped.
        """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the usable replies as they arrive, then take the server's own step.

        Raises:
            RoundError: Fewer than ``min_replies`` replies could be used, none has examples, or the
                new arrays are not finite.
        """
        if self.fraction_train == 0.0:
            return None, None
        mean, measured = WeightedMean(), []
        for usable in self.usable(replies, arrays=True):
            mean.add(usable.arrays, usable.weight)
            measured.append(self.measured(usable))
        self.enough(server_round, measured)
        updated = self.finite(server_round, lambda: self.server_update(server_round, mean.result()))
        return records.from_numpy(updated), self.average_metrics(server_round, measured)

    def server_update(
        self, server_round: int, mean: dict[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """The new global arrays, given the clients' mean; plain FedAvg returns it."""
        return mean

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics of the usable replies; None if there is none with examples."""
        measured = [self.measured(usable) for usable in self.usable(replies, arrays=False)]
        if not measured:
            return None
        if not any(one.weight > 0 for one in measured):
            self._tell("evaluation", "", server_round, self._without_examples(measured))
            return None
        return self.average_metrics(server_round, measured, phase="evaluation")

    def average_metrics(
        self, server_round: int, measured: Sequence[Measured], *, phase: str = "training"
    ) -> MetricRecord:
        """The clients' metrics, averaged by Flower's rule or the user's function; never fatal.

        Args:
            server_round: Current round.
            measured: The metrics of every usable reply.
            phase: What they are metrics of, ``training`` or ``evaluation``.
        """
        trains = phase == "training"
        function = self.train_metrics_aggr_fn if trains else self.evaluate_metrics_aggr_fn
        if function is _FLOWERS_MEAN:
            means, left_out = average(measured, without=self.weighted_by_key)
        else:
            means, left_out = self._by_function(function, measured)
        for name, reason in left_out.items():
            told = f"{name!r} is left out: {reason}" if name else reason
            self._tell(phase, name, server_round, told)
        return means

    def _by_function(
        self, function: MetricsAggregation, measured: Sequence[Measured]
    ) -> tuple[MetricRecord, dict[str, str]]:
        """What a function of the user's own makes of the metrics of clients that agree on names.

        Why more than one metric is left out is said under the name "".
        """
        contents, odd = agreeing(measured)
        left_out = {"": f"those of {listed(odd)} left out: other names"} if odd else {}
        try:
            found: object = function(contents, self.weighted_by_key)
        except Exception as error:
            log.debug("aggregation of metrics", exc_info=True)
            return MetricRecord(), {"": f"all left out: the aggregation raised {describe(error)}"}
        if not isinstance(found, MetricRecord):
            kind = type(found).__name__
            return MetricRecord(), {"": f"all left out: the aggregation returned {kind}"}
        means, odd_values = only_finite(found)
        return means, {**left_out, **odd_values}

    def _tell(self, phase: str, name: str, server_round: int, text: str) -> None:
        """Warn of a metric once in a run, not once in every round."""
        if (phase, name) not in self._told:
            self._told.add((phase, name))
            log.warning("round %d, metrics of %s: %s (said once)", server_round, phase, text)

    def finite(
        self, server_round: int, update: Callable[[], Mapping[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """The new arrays that ``update`` makes of finite means.

        Raises:
            RoundError: They are not finite; it names the array and who sent its largest values.
        """
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            updated = update()
        for name, value in (*updated.items(), *self.carried().items()):
            if not records.is_finite(value):
                raise RoundError(
                    f"round {server_round}: the server's step made {name!r} NaN or infinite; "
                    f"{self._largest.of(name)}"
                )
        return updated

    def enough(self, server_round: int, measured: Sequence[Measured]) -> None:
        """Refuse to go on with too few replies.

        Raises:
            RoundError: Fewer than ``min_replies``, or none with examples; it says who failed, why.
        """
        empty = not any(one.weight > 0 for one in measured)
        count = 0 if empty else len(measured)
        needed = max(self.min_replies, 1)
        if count >= needed:
            return
        reasons = self.last_exchange.reasons()
        if measured and empty:
            reasons.insert(0, self._without_examples(measured))
        if not reasons:
            reasons.append("no other client was asked" if count else "no client replied")
        raise RoundError(
            f"round {server_round}: {how_many(count, 'usable reply', 'usable replies')}, {needed} "
            f"needed ({'; '.join(reasons)})"
        )

    def _without_examples(self, measured: Sequence[Measured]) -> str:
        who = listed([one.client for one in measured])
        return f"{who} replied, but without examples: {self.weighted_by_key!r} is 0"
