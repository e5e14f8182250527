import inspect
import logging
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from nmoe_flower import records
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ConfigError, RoundError
from nmoe_flower.records import Action
from nmoe_flower.strategies import (
    FedAvgOptions,
    FedCE,
    Partitions,
    StreamingFedAvg,
    StreamingOptions,
    cohort_size,
    wait_for_nodes,
)

pytestmark = pytest.mark.flower

Change = Callable[[RecordDict], None]
START = {"w": np.float32([[1, 2]]), "n": np.array(0)}


def client_app(
    changes: dict[int, Change] | None = None, told: list[Any] | None = None
) -> ClientApp:
    """Client i returns w + i with weight i + 1 and loss i; ``changes`` spoil its reply."""
    app = ClientApp()

    @app.train()
    @app.train("extractor")
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if told is not None:
            told.append(dict(records.config_of(message)))
        arrays = records.to_numpy(message.content["arrays"])
        content = RecordDict(
            {
                "arrays": records.from_numpy({"w": arrays["w"] + partition, "n": arrays["n"] + 1}),
                "metrics": MetricRecord({"num-examples": partition + 1, "loss": float(partition)}),
            }
        )
        if changes and partition in changes:
            changes[partition](content)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        content = RecordDict(
            {"metrics": MetricRecord({"num-examples": partition + 1, "loss": float(partition)})}
        )
        if changes and partition in changes:
            changes[partition](content)
        return Message(content, reply_to=message)

    @app.query("identity")
    def identity(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        return records.reply(
            message, metrics={"num-examples": 0}, config={"partition-id": partition}
        )

    return app


def one_round(
    strategy: StreamingFedAvg, grid: Grid, server_round: int = 1
) -> tuple[dict[str, np.ndarray], MetricRecord]:
    messages = strategy.configure_train(
        server_round, records.from_numpy(START), ConfigRecord(), grid
    )
    arrays, metrics = strategy.aggregate_train(server_round, grid.send_and_receive(list(messages)))
    assert arrays is not None
    assert metrics is not None
    return records.to_numpy(arrays), metrics


class Lines(logging.Handler):
    """What Flower's logger says of the rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def lines_of_rounds(strategy: FedAvg, app: ClientApp) -> list[str]:
    logger, lines = logging.getLogger("flwr"), Lines()
    logger.addHandler(lines)
    try:
        with InProcessGrid(app, 4) as grid:
            strategy.start(grid, records.from_numpy(START), num_rounds=2)
    finally:
        logger.removeHandler(lines)
    return [line for line in lines.said if line.startswith(("configure_", "aggregate_"))]


@pytest.mark.parametrize("action", [None, Action.FEDCE])
def test_the_rounds_are_told_as_fedavg_tells_them(action: str | None) -> None:
    """Half of four clients train, all evaluate."""
    options: dict[str, Any] = {"fraction_train": 0.5, "min_train_nodes": 2}
    expected = [
        "configure_train: Sampled 2 nodes (out of 4)",
        "aggregate_train: Received 2 results and 0 failures",
        "configure_evaluate: Sampled 4 nodes (out of 4)",
        "aggregate_evaluate: Received 4 results and 0 failures",
    ]
    assert lines_of_rounds(FedAvg(**options), client_app()) == 2 * expected
    assert lines_of_rounds(FedCE(action=action, **options), client_app()) == 2 * expected


def test_replies_that_were_dropped_are_told_as_failures() -> None:
    spoiled = with_array("w", np.float32([[np.nan, 0]]))
    app = client_app({0: spoiled, 1: spoiled})
    told = lines_of_rounds(FedCE(fraction_evaluate=0.0), app)
    expected = "aggregate_train: Received 2 results and 2 failures"
    assert told == 2 * ["configure_train: Sampled 4 nodes (out of 4)", expected]


def test_what_a_later_flower_adds_to_start_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower 1.43 has ``should_stop``; 1.42 refuses it by its name."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(FedAvg, "start", lambda self, grid, *args, **kwargs: found.update(kwargs))
    with InProcessGrid(client_app(), 2) as grid:
        StreamingFedAvg().start(grid, records.from_numpy(START), should_stop=len)
    assert found == {"should_stop": len}


# --- bad replies ---


def raising(content: RecordDict) -> None:
    raise ValueError("no images")


def with_array(name: str, value: np.ndarray) -> Change:
    def change(content: RecordDict) -> None:
        arrays = records.to_numpy(content["arrays"])
        content["arrays"] = records.from_numpy({**arrays, name: value})

    return change


def with_metric(name: str, value: float | list[float]) -> Change:
    return lambda content: content["metrics"].__setitem__(name, value)


def without(name: str) -> Change:
    return lambda content: content.__delitem__(name)


def cut_off(content: RecordDict) -> None:
    array = content["arrays"]["w"]
    array.data = array.data[:-1]


def two_records(content: RecordDict) -> None:
    content["more"] = MetricRecord({"x": 1})


BAD: dict[str, tuple[Change, str]] = {
    "raises": (raising, "ValueError: no images"),
    "NaN array": (with_array("w", np.float32([[np.nan, 0]])), "w: has NaN or infinite entries"),
    "infinite array": (with_array("w", np.float32([[np.inf, 0]])), "w: has NaN or infinite"),
    "wrong shape": (with_array("w", np.ones((2, 2))), r"w: shape \(2, 2\), wanted \(1, 2\)"),
    "broadcastable": (with_array("w", np.ones((1, 1))), r"w: shape \(1, 1\), wanted \(1, 2\)"),
    "extra name": (with_array("v", np.ones(1)), r"missing \[\], unknown \['v'\]"),
    "missing name": (
        lambda content: content["arrays"].__delitem__("n"),
        r"missing \['n'\], unknown \[\]",
    ),
    "cut off": (cut_off, "w: an array of shape"),
    "no arrays": (without("arrays"), "the ArrayRecord 'arrays' is missing"),
    "no metrics": (without("metrics"), "one MetricRecord is wanted, got 0"),
    "two metric records": (two_records, "one MetricRecord is wanted, got 2"),
    "weight missing": (
        lambda content: content["metrics"].__delitem__("num-examples"),
        r"the weight 'num-examples' is missing among \['loss'\] \(weighted_by_key",
    ),
    "weight a list": (with_metric("num-examples", [1.0]), "'num-examples' is a list, not a number"),
    "weight negative": (with_metric("num-examples", -2), "'num-examples' is negative: -2"),
    "weight infinite": (with_metric("num-examples", math.inf), "the weight 'num-examples' is inf"),
    "weight NaN": (with_metric("num-examples", math.nan), "the weight 'num-examples' is nan"),
    "weight beyond floats": (
        with_metric("num-examples", 10**400),
        "the weight 'num-examples' is an integer that no float holds",
    ),
}


@pytest.mark.parametrize(("change", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_reply_is_dropped_by_name_and_the_rest_averaged(change: Change, reason: str) -> None:
    """Clients 0, 1, 3 with weights 1, 2, 4 are left: (0 * 1 + 1 * 2 + 3 * 4) / 7 = 2."""
    strategy = StreamingFedAvg()
    arrays, metrics = one_round(strategy, InProcessGrid(client_app({2: change}), 4))
    np.testing.assert_array_equal(arrays["w"], START["w"] + 2)
    assert (arrays["n"], arrays["n"].dtype) == (1, np.int64)
    assert metrics["loss"] == pytest.approx(2.0)
    exchange = strategy.last_exchange
    assert exchange.clients == [1, 2, 4]  # node ids: nobody was asked for partitions
    (failure,) = exchange.failures
    assert failure["partition"] == 3
    assert re.search(reason, failure["reason"])


@pytest.mark.parametrize("name", ["raises", "weight NaN", "weight negative", "no metrics"])
def test_a_bad_evaluation_is_dropped_too(name: str) -> None:
    change, reason = BAD[name]
    grid = InProcessGrid(client_app({0: change}), 3)
    strategy = StreamingFedAvg()
    messages = strategy.configure_evaluate(1, records.from_numpy(START), ConfigRecord(), grid)
    metrics = strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert metrics is not None
    assert metrics["loss"] == pytest.approx((1 * 2 + 2 * 3) / 5)
    assert re.search(reason, strategy.last_exchange.failures[0]["reason"])


def test_an_evaluation_without_replies_has_no_metrics() -> None:
    grid = InProcessGrid(client_app({0: raising, 1: raising}), 2)
    strategy = StreamingFedAvg()
    messages = strategy.configure_evaluate(1, records.from_numpy(START), ConfigRecord(), grid)
    assert strategy.aggregate_evaluate(1, grid.send_and_receive(messages)) is None
    assert len(strategy.last_exchange.failures) == 2


def test_partitions_are_named_where_they_are_known() -> None:
    strategy = StreamingFedAvg(action=Action.FEDCE)
    one_round(strategy, InProcessGrid(client_app({2: raising}), 4))
    assert strategy.last_exchange.clients == [0, 1, 3]
    assert strategy.last_exchange.failures == [{"partition": 2, "reason": "ValueError: no images"}]


def test_too_few_replies_end_the_round_with_the_reasons() -> None:
    strategy = StreamingFedAvg(action=Action.FEDCE, min_replies=2)
    grid = InProcessGrid(client_app({0: raising, 2: BAD["NaN array"][0]}), 3)
    with pytest.raises(RoundError) as caught:
        one_round(strategy, grid, server_round=7)
    assert str(caught.value) == (
        "round 7: 1 usable reply, 2 needed "
        "(client 0: ValueError: no images; client 2: w: has NaN or infinite entries)"
    )


def test_clients_that_fail_for_one_reason_are_named_together() -> None:
    odd = {0: raising, **dict.fromkeys(range(1, 8), BAD["NaN array"][0])}
    with pytest.raises(RoundError) as caught:
        one_round(StreamingFedAvg(action=Action.FEDCE), InProcessGrid(client_app(odd), 8))
    assert str(caught.value) == (
        "round 1: 0 usable replies, 1 needed (client 0: ValueError: no images; "
        "clients 1, 2, 3, 4, 5 and 2 others: w: has NaN or infinite entries)"
    )


def test_weights_of_zero_only_are_no_replies() -> None:
    change = with_metric("num-examples", 0)
    with pytest.raises(RoundError, match="round 1: 0 usable replies, 1 needed"):
        one_round(StreamingFedAvg(), InProcessGrid(client_app({0: change, 1: change}), 2))


def test_bytes_are_counted() -> None:
    """An .npy header is 128 bytes: two floats and an int64 make 128 + 8 + 128 + 8."""
    strategy = StreamingFedAvg()
    one_round(strategy, InProcessGrid(client_app({1: raising}), 3))
    assert strategy.last_exchange.bytes_down == 3 * 272
    assert strategy.last_exchange.bytes_up == 2 * 272


# --- who takes part ---


@pytest.mark.parametrize("num", range(1, 31))
@pytest.mark.parametrize("tenths", [1, 3, 5, 7, 10])
def test_cohort_sizes_are_exact(num: int, tenths: int) -> None:
    """Rounded half up in whole numbers: (2 t n + 10) // 20 tenths of n."""
    assert cohort_size(num, tenths / 10) == (2 * tenths * num + 10) // 20


class Renumbered(InProcessGrid):
    """The same clients under other node ids, as Flower draws them anew for every run."""

    def __init__(self, app: ClientApp, partitions: list[int]) -> None:
        super().__init__(app, len(partitions))
        for node, partition in enumerate(partitions, start=1):
            context = self._backend._nodes.context(node, RecordDict())  # type: ignore[union-attr]
            context.node_config["partition-id"] = partition
            self._backend._contexts[node] = context  # type: ignore[union-attr]


def cohorts(order: list[int], rounds: Iterable[int], **options: Any) -> list[list[int]]:
    strategy = StreamingFedAvg(action=Action.FEDCE, fraction_train=0.5, **options)
    found = []
    for server_round in rounds:
        one_round(strategy, Renumbered(client_app(), order), server_round)
        found.append(strategy.last_exchange.clients)
    return found


def test_cohorts_depend_on_the_seed_and_the_round_only() -> None:
    """5 of 10 clients, 252 cohorts: that two seeds agree in 8 rounds has p = 252 ** -8."""
    rounds = range(1, 9)
    one = cohorts(list(range(10)), rounds)
    shuffled = cohorts([7, 2, 9, 0, 4, 1, 8, 3, 6, 5], rounds)
    assert one == shuffled
    assert one[4:] == cohorts(list(range(10)), range(5, 9))
    assert one != cohorts(list(range(10)), rounds, seed=1)
    assert len({tuple(cohort) for cohort in one}) > 1
    assert all(cohort == sorted(set(cohort)) and len(cohort) == 5 for cohort in one)


def test_sums_have_the_same_bits_whatever_the_node_ids() -> None:
    results = [
        one_round(StreamingFedAvg(action=Action.FEDCE), Renumbered(client_app(), order))[0]["w"]
        for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2])
    ]
    assert results[0].tobytes() == results[1].tobytes()


def test_two_nodes_cannot_hold_one_partition() -> None:
    with pytest.raises(RoundError, match="nodes 1 and 3 both hold partition 0"):
        one_round(StreamingFedAvg(action=Action.FEDCE), Renumbered(client_app(), [0, 1, 0]))


def test_clients_that_know_no_identity_are_left_out() -> None:
    strategy = StreamingFedAvg(action=Action.FEDCE)
    strategy.partitions[2] = 0
    assert strategy.nodes(InProcessGrid(ClientApp(), 2), 2) == [2]


def test_nobody_that_knows_its_identity_is_told() -> None:
    strategy = StreamingFedAvg(action=Action.FEDCE)
    with pytest.raises(RoundError, match="none of 2 nodes told its partition"):
        strategy.nodes(InProcessGrid(ClientApp(), 2), 2)


def test_minima_and_zero_fractions_are_fedavgs() -> None:
    grid = InProcessGrid(client_app(), 5)
    arrays = records.from_numpy(START)
    few = StreamingFedAvg(fraction_train=0.1, min_train_nodes=3)
    assert len(list(few.configure_train(1, arrays, ConfigRecord(), grid))) == 3
    none = StreamingFedAvg(fraction_train=0.0, fraction_evaluate=0.0)
    assert list(none.configure_train(1, arrays, ConfigRecord(), grid)) == []
    assert list(none.configure_evaluate(1, arrays, ConfigRecord(), grid)) == []


def test_the_callers_config_is_left_alone_and_clients_know_the_round() -> None:
    told: list[Any] = []
    grid = InProcessGrid(client_app(told=told), 2)
    config = ConfigRecord({"lr": 0.5})
    strategy = StreamingFedAvg()
    messages = strategy.configure_train(3, records.from_numpy(START), config, grid)
    list(grid.send_and_receive(messages))
    assert dict(config) == {"lr": 0.5}
    assert told == [{"lr": 0.5, "server-round": 3}] * 2


# --- waiting ---


class Clock:
    """Time that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Arriving:
    """A grid whose node n connects after n seconds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def get_node_ids(self) -> list[int]:
        return list(range(int(self.clock.now), 0, -1))


def test_waiting_ends_when_the_nodes_are_there() -> None:
    clock = Clock()
    grid: Any = Arriving(clock)
    assert wait_for_nodes(grid, 3, 10.0, clock=clock, sleep=clock.sleep) == [1, 2, 3]
    assert 3.0 <= clock.now < 3.2


def test_waiting_ends_at_the_deadline_and_is_never_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    grid: Any = Arriving(clock)
    with pytest.raises(RoundError, match=r"6 of 9 nodes connected within 6\.5 s"):
        wait_for_nodes(grid, 9, 6.5, clock=clock, sleep=clock.sleep)
    assert 6.5 <= clock.now < 6.7
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for nodes: 2 of 9 after 2 s",
        "waiting for nodes: 4 of 9 after 4 s",
        "waiting for nodes: 6 of 9 after 6 s",
    ]


# --- the same face as FedAvg ---


def test_the_arguments_are_fedavgs() -> None:
    signature = inspect.signature(FedAvg.__init__)
    theirs = {n: p.default for n, p in signature.parameters.items() if n != "self"}
    assert FedAvgOptions.__annotations__.keys() == theirs.keys()
    assert theirs.keys() <= StreamingOptions.__annotations__.keys()
    ours, stock = StreamingFedAvg(), FedAvg()
    for name in theirs:
        assert getattr(ours, name) == getattr(stock, name), name
    given = {"fraction_train": 0.3, "weighted_by_key": "n", "arrayrecord_key": "x"}
    chosen = StreamingFedAvg(**given)  # type: ignore[arg-type]
    assert {name: getattr(chosen, name) for name in given} == given


def test_own_arguments_are_all_named_in_the_options() -> None:
    own = inspect.signature(StreamingFedAvg.__init__).parameters.keys() - {"self", "fedavg"}
    assert own == StreamingOptions.__annotations__.keys() - FedAvgOptions.__annotations__.keys()


def test_metrics_can_be_aggregated_by_the_user() -> None:
    def worst(contents: list[RecordDict], key: str) -> MetricRecord:
        values = [next(iter(c.metric_records.values()))["loss"] for c in contents]
        return MetricRecord({"worst": max(values)})

    strategy = StreamingFedAvg(train_metrics_aggr_fn=worst)
    assert one_round(strategy, InProcessGrid(client_app(), 3))[1] == {"worst": 2.0}


def test_arrays_may_have_another_name_in_the_reply() -> None:
    """Stock FedAvg takes the only ArrayRecord of a reply, whatever it is called."""

    def renamed(content: RecordDict) -> None:
        content["model"] = content["arrays"]
        del content["arrays"]

    arrays, _ = one_round(StreamingFedAvg(), InProcessGrid(client_app({0: renamed}), 2))
    np.testing.assert_allclose(arrays["w"], START["w"] + 2 / 3)


def test_a_run_lends_its_clients_and_its_limits() -> None:
    """What the run learns of its clients the strategy knows too: they share one table."""
    strategy, met = StreamingFedAvg(action="train.x", seed=1), Partitions({7: 0})
    strategy.adopt(met, seed=5, min_replies=3, connect_timeout=2.0, round_timeout=4.0)
    met[8] = 1
    assert strategy.partitions is met
    assert (strategy.seed, strategy.min_replies) == (5, 3)
    assert (strategy.connect_timeout, strategy.round_timeout) == (2.0, 4.0)
    with pytest.raises(ConfigError, match="min_replies must be a whole number of at least 0"):
        strategy.adopt(met, seed=5, min_replies=-1, connect_timeout=2.0)
    assert not strategy.converged


def test_plain_averaging_carries_nothing() -> None:
    strategy = StreamingFedAvg()
    assert strategy.state() == {}
    strategy.load_state({})
    assert strategy.state() == {}
