"""Every strategy against every kind of bad reply: restored, or dropped by name; never trusted."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from nmoe_flower import records
from nmoe_flower.alignment import Assigner, ClosedFormGate
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ReplyError, RoundError
from nmoe_flower.privacy import svec
from nmoe_flower.records import CorrelationKey
from nmoe_flower.strategies import (
    AdamW,
    AveragedGate,
    ExpertAlignment,
    FedCE,
    FedGate,
    FedSC,
    RollGate,
    StatisticsGate,
    StreamingFedAvg,
    TravellingGate,
    UnsharedGate,
)
from nmoe_flower.strategies.replies import read_reply

CLIENTS, EXPERTS, DIM, ROUNDS = 3, 2, 2, 3
SPOILED = 1  # the client whose replies are bad; its node is 2
START = {
    "z.weight": np.zeros((2, 3), np.float32),
    "norm.num_batches_tracked": np.array(2**53 + 1),
    "a.half": np.zeros(2, np.float16),
    "gate.head.weight": np.zeros((EXPERTS, DIM), np.float32),
    "gate.head.bias": np.zeros(EXPERTS, np.float32),
    "experts.b.w": np.full(4, 10.0, np.float32),
    "experts.a.w": np.full(4, -10.0, np.float32),
}
Change = Callable[[RecordDict], None]


def alignment(gate: Any) -> ExpertAlignment:
    knowing = Assigner(CLIENTS, EXPERTS, capacity=2)
    return ExpertAlignment(knowing, gate=gate, fraction_evaluate=0.0)


STRATEGIES: dict[str, Callable[[], Any]] = {
    "plain": StreamingFedAvg,
    "fedce": FedCE,
    "fedce momentum": lambda: FedCE(server_momentum=0.9, learning_rate=lambda _: 0.1, ema=0.9),
    "fedce adamw": lambda: FedCE(server_optimizer=AdamW(), local_learning_rate=1.0),
    "fedgate": lambda: FedGate(fraction_train=1.0),
    "rollgate": RollGate,
    "fedsc merged": lambda: FedSC(dim=DIM),
    "fedsc two-phase": lambda: FedSC(exchange="two-phase"),
    "averaged gate": lambda: alignment(AveragedGate()),
    "stepped gate": lambda: alignment(AveragedGate(AdamW(), rate=0.1)),
    "local gate": lambda: alignment(UnsharedGate()),
    "travelling gate": lambda: alignment(TravellingGate()),
    "statistics gate": lambda: alignment(StatisticsGate(ClosedFormGate(EXPERTS))),
}


def correlation(partition: int) -> ArrayRecord:
    matrix = np.diag(np.float32([0.5, 0.1 * (partition + 1)]))
    return records.from_numpy({CorrelationKey.PACKED: svec(matrix)})


def statistics(partition: int, held: list[int]) -> ArrayRecord:
    """Of two latents, [1, i] and [i, 1], that trained each expert."""
    latents = np.float64([[1, partition, 1], [partition, 1, 1]])
    moment = (latents.T @ latents)[np.triu_indices(3)]
    sums = np.tile([*latents.sum(axis=0), 2.0], (len(held), 1))
    return records.from_numpy({"sums": sums, "moment": moment})


def app_of(change: Change | None) -> ClientApp:
    """Client i adds i + 1 to all floats and 1 to integers, and weighs i + 1; one is spoiled."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        told = records.config_of(message)
        trained = {
            name: value + value.dtype.type(partition + 1 if value.dtype.kind == "f" else 1)
            for name, value in records.to_numpy(message.content["arrays"]).items()
            if not ("want-moment" in told and name.startswith("gate."))
        }
        metrics: dict[str, Any] = {"num-examples": partition + 1, "loss": 0.5}
        arrays = {"arrays": records.from_numpy(trained)}
        if "expert-ids" in told:
            held = list(told["expert-ids"])
            metrics |= {
                "expert-ids": held,
                "expert-losses": [0.5] * len(held),
                "expert-samples": [1.0] * len(held),
                "seconds": 1.0,
            }
            if "want-moment" in told:
                arrays["statistics"] = statistics(partition, held)
        if told.get(CorrelationKey.RELEASE):
            arrays["correlation"] = correlation(partition)
        answer = records.reply(message, metrics=metrics, arrays=arrays)
        if change and partition == SPOILED:
            change(answer.content)
        return answer

    @app.query("correlation")
    def correlate(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        return records.reply(
            message,
            metrics={"num-examples": partition + 1},
            arrays={"correlation": correlation(partition)},
        )

    return app


def play(name: str, change: Change | None) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Three rounds: the final arrays, and all failures."""
    strategy, failures = STRATEGIES[name](), list[dict[str, Any]]()
    record = records.from_numpy(START)
    with InProcessGrid(app_of(change), CLIENTS) as grid:
        for server_round in range(1, ROUNDS + 1):
            messages = list(strategy.configure_train(server_round, record, ConfigRecord(), grid))
            record, _ = strategy.aggregate_train(server_round, grid.send_and_receive(messages))
            failures += strategy.last_exchange.failures
    return records.to_numpy(record), failures


def assert_form(arrays: dict[str, np.ndarray]) -> None:
    assert list(arrays) == list(START)
    for name, value in arrays.items():
        assert (value.dtype, value.shape) == (START[name].dtype, START[name].shape), name
        assert np.isfinite(value.astype(float)).all(), name


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert {n: v.tobytes() for n, v in one.items()} == {n: v.tobytes() for n, v in other.items()}


@pytest.fixture(scope="module")
def honest() -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for name in STRATEGIES:
        arrays, failures = play(name, None)
        assert failures == []
        assert_form(arrays)
        found[name] = arrays
    return found


@pytest.fixture(scope="module")
def without(honest: Any) -> dict[str, dict[str, np.ndarray]]:
    """What the others make of it when the client's replies are missing."""
    found = {name: play(name, raising)[0] for name in STRATEGIES}
    for name, arrays in found.items():
        changed = [n for n in arrays if arrays[n].tobytes() != honest[name][n].tobytes()]
        assert changed, f"{name}: it would not show"
    return found


# --- what is only written otherwise is restored ---


def arrays_of(content: RecordDict) -> dict[str, np.ndarray]:
    return records.to_numpy(content["arrays"])


def rewritten(edit: Callable[[dict[str, np.ndarray]], dict[str, Any]]) -> Change:
    def change(content: RecordDict) -> None:
        arrays = {name: np.asarray(value) for name, value in edit(arrays_of(content)).items()}
        content["arrays"] = ArrayRecord(
            {name: Array.from_numpy_ndarray(value) for name, value in arrays.items()}
        )

    return change


def each(convert: Callable[[np.ndarray], np.ndarray], kinds: str = "fiub") -> Change:
    return rewritten(
        lambda arrays: {n: convert(v) if v.dtype.kind in kinds else v for n, v in arrays.items()}
    )


def whole(value: np.ndarray) -> np.ndarray:
    """As integers, where nothing is lost by it: in the first round."""
    return value.astype(np.int64) if (value == np.rint(value)).all() else value


def renamed(content: RecordDict) -> None:
    """Flower takes the only ArrayRecord, whatever its name; with others beside it, it must fit."""
    if len(content.array_records) == 1:
        content["model"] = content["arrays"]
        del content["arrays"]


RESTORED: dict[str, Change] = {
    "another order": rewritten(lambda arrays: dict(reversed(arrays.items()))),
    "float64": each(lambda value: value.astype(np.float64), "f"),
    "whole numbers": each(whole, "f"),
    "other byte order": each(lambda value: value.astype(value.dtype.newbyteorder(">"))),
    "fortran order": each(lambda value: np.asfortranarray(value) if value.ndim > 1 else value),
    "unsigned counters": each(lambda value: value.astype(np.uint64), "i"),
    "another record name": renamed,
    "a ConfigRecord beside": lambda content: content.__setitem__("c", ConfigRecord({"x": "y"})),
}


@pytest.mark.parametrize("change", RESTORED.values(), ids=RESTORED.keys())
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_only_written_otherwise_changes_no_bit(
    name: str, change: Change, honest: dict[str, dict[str, np.ndarray]]
) -> None:
    arrays, failures = play(name, change)
    assert failures == []
    assert_form(arrays)
    assert_same(arrays, honest[name])


# --- what is wrong is dropped by name ---


def raising(content: RecordDict) -> None:
    raise ValueError("no images")


def with_metric(name: str, value: Any) -> Change:
    return lambda content: content["metrics"].__setitem__(name, value)


def without_record(name: str) -> Change:
    return lambda content: content.__delitem__(name)


def spoiled(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    return rewritten(lambda arrays: {n: edit(v) if n == name else v for n, v in arrays.items()})


def two_array_records(content: RecordDict) -> None:
    content["one"], content["two"] = content["arrays"], content["arrays"]
    del content["arrays"]


def cut_off(content: RecordDict) -> None:
    content["arrays"]["z.weight"].data = content["arrays"]["z.weight"].data[:-1]


def no_bytes(content: RecordDict) -> None:
    content["arrays"]["z.weight"].data = None


def pickled(content: RecordDict) -> None:
    content["arrays"]["z.weight"].data = b"\x80\x04N."


def more_metrics(content: RecordDict) -> None:
    content["more"] = MetricRecord({"x": 1})


Z, COUNTER = "z.weight", "norm.num_batches_tracked"
DROPPED: dict[str, tuple[Change, str]] = {
    "NaN": (spoiled(Z, lambda v: v * np.float32(np.nan)), "NaN or infinite"),
    "infinite": (spoiled(Z, lambda v: np.full_like(v, -np.inf)), "NaN or infinite"),
    "too large for float32": (spoiled(Z, lambda v: np.full(v.shape, 1e300)), "exceed float32"),
    "too large for float16": (
        spoiled("a.half", lambda v: np.full(v.shape, 1e5)),
        "exceed float16",
    ),
    "fraction of a counter": (spoiled(COUNTER, lambda v: np.array(0.5)), "not whole"),
    "counter out of range": (
        spoiled(COUNTER, lambda v: np.array(2**64 - 1, np.uint64)),
        "exceed int64",
    ),
    "complex": (spoiled(Z, lambda v: v.astype(np.complex64)), "dtype complex64 is not numeric"),
    "text": (spoiled(Z, lambda v: v.astype(str)), "plain numbers"),
    "dates": (spoiled(Z, lambda v: v.astype("M8[s]")), "plain numbers"),
    "shape": (spoiled(Z, lambda v: v.T), "wanted (2, 3)"),
    "broadcastable": (spoiled(Z, lambda v: v[:1]), "wanted (2, 3)"),
    "empty": (spoiled(Z, lambda v: v[:0]), "wanted (2, 3)"),
    "missing name": (
        rewritten(lambda arrays: {n: v for n, v in arrays.items() if n != Z}),
        "missing ['z.weight']",
    ),
    "more names": (rewritten(lambda arrays: {**arrays, "x": np.zeros(1)}), "unknown ['x']"),
    "no arrays at all": (rewritten(lambda arrays: {}), "array names differ"),
    "cut off": (cut_off, "needs 24 bytes, got 23"),
    "no bytes": (no_bytes, "has no bytes"),
    "pickled": (pickled, "not in .npy format"),
    "two ArrayRecords": (two_array_records, "the ArrayRecord 'arrays' is missing"),
    "no metrics": (without_record("metrics"), "one MetricRecord is wanted, got 0"),
    "two MetricRecords": (more_metrics, "one MetricRecord is wanted, got 2"),
    "no weight": (
        lambda content: content["metrics"].__delitem__("num-examples"),
        "'num-examples' is missing",
    ),
    "weight a list": (with_metric("num-examples", [1]), "'num-examples' is a list, not a number"),
    "weight negative": (with_metric("num-examples", -1), "'num-examples' is negative"),
    "weight NaN": (with_metric("num-examples", math.nan), "'num-examples' is nan"),
    "weight infinite": (with_metric("num-examples", math.inf), "'num-examples' is inf"),
    "weight no float": (with_metric("num-examples", 10**400), "that no float holds"),
}


@pytest.mark.parametrize(("change", "reason"), DROPPED.values(), ids=DROPPED.keys())
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_bad_reply_is_as_good_as_none(
    name: str, change: Change, reason: str, without: dict[str, dict[str, np.ndarray]]
) -> None:
    """The others' result, bit for bit; the client is named in every round it was asked."""
    arrays, failures = play(name, change)
    assert_form(arrays)
    assert_same(arrays, without[name])
    assert len(failures) == (1 if name == "rollgate" else ROUNDS)
    for failure in failures:
        assert failure["partition"] == SPOILED + 1
        assert reason in failure["reason"]


# --- metrics cost nobody its weights ---

METRICS: dict[str, Change] = {
    "NaN": with_metric("loss", math.nan),
    "infinity": with_metric("loss", math.inf),
    "a list": with_metric("loss", [0.5, 0.5]),
    "no float holds it": with_metric("loss", 10**400),
    "another name": with_metric("more", 1),
    "missing": lambda content: content["metrics"].__delitem__("loss"),
}


@pytest.mark.parametrize("change", METRICS.values(), ids=METRICS.keys())
@pytest.mark.parametrize("name", STRATEGIES)
def test_odd_metrics_cost_nobody_its_weights(
    name: str, change: Change, honest: dict[str, dict[str, np.ndarray]]
) -> None:
    arrays, failures = play(name, change)
    assert failures == []
    assert_same(arrays, honest[name])


# --- what only some strategies take ---


def in_record(record: str, name: str, value: Any) -> Change:
    def change(content: RecordDict) -> None:
        arrays = records.to_numpy(content[record])
        content[record] = records.from_numpy({**arrays, name: np.asarray(value)})

    return change


SUMS: dict[str, tuple[Change, str]] = {
    "wider": (in_record("statistics", "sums", np.ones((2, 6))), "wanted (2, 4)"),
    "narrower": (in_record("statistics", "sums", np.ones((2, 3))), "wanted (2, 4)"),
    "one-dimensional": (in_record("statistics", "sums", np.ones(4)), "wanted (2, 4)"),
    "complex": (in_record("statistics", "sums", np.ones((2, 4), complex)), "is not numeric"),
    "NaN": (in_record("statistics", "sums", np.full((2, 4), np.nan)), "NaN or infinite"),
    "moment": (in_record("statistics", "moment", np.ones(5)), "wanted [6]"),
    "negative count": (in_record("statistics", "moment", -np.ones(6)), "counts -1 samples"),
    "none": (without_record("statistics"), "'statistics' is missing"),
}


@pytest.mark.parametrize(("change", "reason"), SUMS.values(), ids=SUMS.keys())
def test_statistics_of_a_gate_must_fit_the_gate_that_was_sent(change: Change, reason: str) -> None:
    arrays, failures = play("statistics gate", change)
    assert_form(arrays)
    assert len(failures) == ROUNDS
    assert all(reason in failure["reason"] for failure in failures)


def test_sums_that_cannot_be_added_are_refused() -> None:
    """Each is finite; the second of 1.5e308 is one too many."""
    huge = [[1.5e308] * 3 + [1.0]] * 2

    def change(content: RecordDict) -> None:
        in_record("statistics", "sums", huge)(content)

    gate = StatisticsGate(ClosedFormGate(EXPERTS))
    gate.expected(START)
    held = np.ones(EXPERTS, dtype=bool)
    content = RecordDict({"statistics": statistics(0, [0, 1])})
    change(content)
    gate.accept(0, held, content)
    with pytest.raises(ReplyError, match="too large to be added"):
        gate.accept(1, held, content)
    gate.accept(2, held, RecordDict({"statistics": statistics(0, [0, 1])}))
    assert gate.solver.known.tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4"])
def test_a_closed_form_gate_has_the_dtype_sent(dtype: Any) -> None:
    sent = {n: v.astype(dtype) if n.startswith("gate.") else v for n, v in START.items()}
    gate = StatisticsGate(ClosedFormGate(EXPERTS))
    gate.expected(sent)
    assert gate.result(sent, {}) == {}  # nobody has had a sample
    content = RecordDict({"statistics": statistics(1, [0, 1])})
    gate.accept(0, np.ones(EXPERTS, dtype=bool), content)
    solved = gate.result(sent, {})
    assert [value.dtype for value in solved.values()] == [np.dtype(dtype)] * 2


def wide(dim: int) -> ArrayRecord:
    return records.from_numpy({CorrelationKey.PACKED: svec(np.eye(dim, dtype=np.float32) / dim)})


def correlating(widths: list[int]) -> ClientApp:
    """Client i's features are ``widths[i]`` wide."""
    app = ClientApp()

    def width(context: Context) -> int:
        return widths[int(context.node_config["partition-id"])]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = {"arrays": message.content["arrays"]}
        if records.config_of(message).get(CorrelationKey.RELEASE):
            arrays["correlation"] = wide(width(context))
        return records.reply(message, metrics={"num-examples": 5}, arrays=arrays)

    @app.query("correlation")
    def correlate(message: Message, context: Context) -> Message:
        return records.reply(
            message,
            metrics={"num-examples": 5},
            arrays={"correlation": wide(width(context))},
        )

    return app


def one_round(strategy: FedSC, widths: list[int]) -> None:
    record = records.from_numpy({"w": np.float32([1])})
    with InProcessGrid(correlating(widths), len(widths)) as grid:
        messages = list(strategy.configure_train(1, record, ConfigRecord(), grid))
        strategy.aggregate_train(1, grid.send_and_receive(messages))


@pytest.mark.parametrize("exchange", ["merged", "two-phase"])
@pytest.mark.parametrize("widths", [[7, 3, 3], [3, 7, 3], [3, 3, 7], [7, 3, 5, 3]])
def test_most_clients_decide_the_width_of_the_features(exchange: Any, widths: list[int]) -> None:
    strategy = FedSC(exchange=exchange, min_available_nodes=len(widths))
    one_round(strategy, widths)
    odd = {node for node, width in enumerate(widths, 1) if width != 3}
    failures = strategy.last_exchange.failures
    assert {failure["partition"] for failure in failures} == odd
    assert all("those of most clients 3" in failure["reason"] for failure in failures)
    assert strategy.correlations.dim == 3
    assert len(strategy.correlations) == len(widths) - len(odd)
    mean = strategy.correlations.mean
    assert mean is not None
    np.testing.assert_allclose(mean, np.eye(3) / 3, atol=1e-6)


@pytest.mark.parametrize("exchange", ["merged", "two-phase"])
def test_a_draw_is_refused_by_name_and_an_agreed_width_is_not_up_for_it(exchange: Any) -> None:
    with pytest.raises(RoundError, match=r"{1: 7, 2: 3}; say which by FedSC\(dim=\.\.\.\)"):
        one_round(FedSC(exchange=exchange), [7, 3])
    strategy = FedSC(exchange=exchange, dim=3)
    one_round(strategy, [7, 3])
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 1
    assert "a packed matrix of dimension 3" in failure["reason"]


@pytest.mark.parametrize("claim", [1e300, 10**400, math.nan, -1])
def test_claims_about_a_matrix_that_no_client_can_make(claim: Any) -> None:
    def change(content: RecordDict) -> None:
        content["metrics"]["noise-std"] = claim

    _, failures = play("fedsc merged", change)
    assert len(failures) == ROUNDS
    assert all("noise-std must be a number from 0 to 2^53" in f["reason"] for f in failures)


# --- the server's step ---


@pytest.mark.parametrize(
    ("options", "array"),
    [
        ({"server_momentum": 0.9, "learning_rate": lambda _: 1e-30}, "'w'"),
        ({"server_learning_rate": 1e38}, "'w'"),
        ({"server_optimizer": AdamW(), "local_learning_rate": 1e-25}, "'second/w'"),
    ],
    ids=["momentum", "rate", "adamw"],
)
def test_a_step_that_is_not_finite_names_who_sent_the_largest_values(
    options: dict[str, Any], array: str
) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        large = 1e10 if int(context.node_config["partition-id"]) == 1 else 1.0
        arrays = {"arrays": records.from_numpy({"w": np.full(4, large, np.float32)})}
        return records.reply(message, metrics={"num-examples": 1}, arrays=arrays)

    strategy = FedCE(**options)
    grid = InProcessGrid(app, 3)
    start = records.from_numpy({"w": np.zeros(4, np.float32)})
    messages = list(strategy.configure_train(1, start, ConfigRecord(), grid))
    with pytest.raises(RoundError) as caught:
        strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert str(caught.value) == (
        f"round 1: the server's step made {array} NaN or infinite; "
        + ("client 2 sent the largest, of norm 2e+10" if array == "'w'" else "nobody sent it")
    )


@pytest.mark.parametrize("options", [{"server_momentum": 0.9}, {"server_optimizer": AdamW()}])
def test_half_precision_is_stepped_with_room(options: dict[str, Any]) -> None:
    """A gradient of 60 / 1e-4 and rates of 1e-4 are beyond float16, the result is not."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = {"arrays": records.from_numpy({"w": np.float16([60, -60])})}
        return records.reply(message, metrics={"num-examples": 1}, arrays=arrays)

    strategy = FedCE(learning_rate=lambda _: 1e-4, **options)
    grid = InProcessGrid(app, 2)
    start = records.from_numpy({"w": np.zeros(2, np.float16)})
    messages = list(strategy.configure_train(1, start, ConfigRecord(), grid))
    record, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    (value,) = records.to_numpy(record).values()
    assert value.dtype == np.float16
    # momentum: (1 + 0.9) * 60; AdamW: its rate
    expected = 114.0 if "server_momentum" in options else 1e-4
    np.testing.assert_allclose(value.astype(float), [expected, -expected], rtol=1e-2)


# --- without a word before ---


def test_replies_that_nothing_was_sent_for_must_be_alike() -> None:
    """aggregate_train alone, as in a loop of one's own: the others must be as the first is."""
    grid = InProcessGrid(app_of(None), 2)
    record = records.from_numpy(START)
    messages = list(StreamingFedAvg().configure_train(1, record, ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages))
    del replies[1].content["arrays"]["z.weight"]
    strategy = StreamingFedAvg()
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert list(arrays) == list(START)
    assert "missing ['z.weight']" in strategy.last_exchange.failures[0]["reason"]


def test_nothing_is_trained_where_no_client_is_to_train() -> None:
    strategy = StreamingFedAvg(fraction_train=0.0)
    assert strategy.aggregate_train(1, []) == (None, None)


def test_an_error_without_a_reason_has_its_code() -> None:
    from flwr.app import Error

    grid = InProcessGrid(app_of(None), 2)
    record = records.from_numpy(START)
    messages = list(StreamingFedAvg().configure_train(1, record, ConfigRecord(), grid))
    (reply, _) = list(grid.send_and_receive(messages))
    failed = Message(Error(7), reply_to=messages[0])
    assert reply.has_content()
    with pytest.raises(ReplyError, match="error code 7 without a reason"):
        read_reply(failed, weighted_by_key="num-examples", arrayrecord_key=None, like=None)


def test_a_long_reason_is_cut() -> None:
    """Names of 500 arrays are no reason anybody reads."""
    change = rewritten(lambda arrays: {f"layer-{i}": np.zeros(1) for i in range(500)})
    _, failures = play("plain", change)
    assert all(len(failure["reason"]) < 1100 for failure in failures)
    assert failures[0]["reason"].endswith(" characters]")
