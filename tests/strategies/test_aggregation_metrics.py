"""Metrics that cannot be averaged are left out, with one warning; nothing ends the round."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from nmoe_flower import records
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.strategies import FedCE, FedGate, RollGate, StreamingFedAvg
from nmoe_flower.strategies.aggregation import Measured, average

Metrics = Callable[[int], dict[str, Any]]


def app_of(metrics: Metrics) -> ClientApp:
    """Three clients that echo their arrays; what they measure is up to the test."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord(metrics(client))}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        return Message(RecordDict({"metrics": MetricRecord(metrics(client))}), reply_to=message)

    return app


def both(
    strategy: StreamingFedAvg, metrics: Metrics, server_round: int = 1
) -> tuple[MetricRecord | None, MetricRecord | None]:
    """One round of training and one of evaluation."""
    grid = InProcessGrid(app_of(metrics), 3)
    arrays = ArrayRecord([np.float32([1, 2])])
    messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
    updated, trained = strategy.aggregate_train(server_round, grid.send_and_receive(messages))
    assert updated is not None
    assert records.to_numpy(updated)["0"].tolist() == [1.0, 2.0]
    assert strategy.last_exchange.failures == []
    messages = list(strategy.configure_evaluate(server_round, arrays, ConfigRecord(), grid))
    tested = strategy.aggregate_evaluate(server_round, grid.send_and_receive(messages))
    assert strategy.last_exchange.failures == []
    return trained, tested


LEFT_OUT: dict[str, tuple[Callable[[int], Any], str]] = {
    "two lengths": (
        lambda c: [0.5] * (2 + c),
        "client 1 sent a list of length 2; client 2 sent a list of length 3; "
        "client 3 sent a list of length 4",
    ),
    "list and number": (
        lambda c: [0.5, 0.2] if c else 0.1,
        "client 1 sent a number; clients 2, 3 sent a list of length 2",
    ),
    "empty list": (lambda c: [] if c == 1 else [1.0], "client 2 sent a list of length 0"),
    "missing": (lambda c: None if c == 2 else 1.0, "client 3 sent nothing"),
    "NaN": (lambda c: math.nan if c == 1 else 0.5, "client 2 sent nan"),
    "all NaN": (lambda c: math.nan, "clients 1, 2, 3 sent nan"),
    "infinity": (lambda c: -math.inf if c == 0 else 1, "client 1 sent -inf"),
    "NaN in a list": (
        lambda c: [0.5, math.nan if c == 0 else 1.0],
        "client 1 sent a list with NaN, infinite or huge entries of length 2",
    ),
    "huge integer": (
        lambda c: 10**400 if c == 0 else 1,
        "client 1 sent an integer that no float holds",
    ),
    "huge integers in lists": (
        lambda c: [2, 10**400],
        "clients 1, 2, 3 sent a list with NaN, infinite or huge entries of length 2",
    ),
}


@pytest.mark.parametrize(("value", "reason"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
@pytest.mark.parametrize("kind", [StreamingFedAvg, FedCE, FedGate])
def test_a_metric_that_cannot_be_averaged_is_left_out_with_one_warning(
    kind: type[StreamingFedAvg],
    value: Callable[[int], Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Loss c with weight c + 1: (0 * 1 + 1 * 2 + 2 * 3) / 6 = 4 / 3."""

    def metrics(client: int) -> dict[str, Any]:
        found = {"num-examples": client + 1, "loss": float(client), "odd": value(client)}
        return {name: one for name, one in found.items() if one is not None}

    strategy = kind(fraction_train=1.0)
    for server_round in (1, 2):
        for means in both(strategy, metrics, server_round):
            assert means is not None
            assert dict(means) == {"loss": pytest.approx(4 / 3)}
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2  # of training and of evaluation, in round 1
    for phase, warning in zip(("training", "evaluation"), warnings, strict=True):
        assert warning.startswith(f"round 1, metrics of {phase}: 'odd' is left out: ")
        assert reason in warning


def test_integers_beside_floats_are_averaged() -> None:
    trained, tested = both(FedCE(), lambda c: {"num-examples": 1, "n": 2**60 if c else 0.5})
    assert trained == tested == {"n": pytest.approx(2 / 3 * 2**60)}


def test_other_names_cost_no_metric_that_all_have() -> None:
    """The loss of the client with one more metric counts: (0 + 2 + 6) / 6."""
    found, _ = both(
        FedCE(),
        lambda c: {"num-examples": c + 1, "loss": float(c), **({"more": 1.0} if c == 0 else {})},
    )
    assert found == {"loss": pytest.approx(8 / 6)}


def test_a_client_without_examples_measured_nothing() -> None:
    """A loss over no samples is NaN: it costs nobody's metrics."""
    found = both(FedCE(), lambda c: {"num-examples": c, "loss": float(c) if c else math.nan})
    assert found == ({"loss": pytest.approx(5 / 3)},) * 2


@pytest.mark.parametrize("weight", [1e308, 2**1023, 5e-324, 10])
def test_weights_at_the_ends_of_floats(weight: float) -> None:
    found, _ = both(FedCE(), lambda c: {"num-examples": weight, "loss": float(c)})
    assert found == {"loss": pytest.approx(1.0)}


def test_the_largest_values_have_a_finite_mean_or_none() -> None:
    """Thirds of the largest float add up to it, or to more than floats hold."""
    largest = float(np.finfo(np.float64).max)
    measured = [Measured(c, 1.0, MetricRecord({"x": largest})) for c in range(3)]
    means, left_out = average(measured, "num-examples")
    assert set(means) ^ set(left_out) == {"x"}
    assert all(math.isfinite(float(value)) for value in means.values())  # type: ignore[arg-type]


# --- nobody has examples ---


def test_an_evaluation_without_examples_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    app = app_of(lambda c: {"num-examples": 0, "loss": 1.0})
    strategy = FedCE()
    grid = InProcessGrid(app, 3)
    for server_round in (1, 2):
        messages = strategy.configure_evaluate(
            server_round, ArrayRecord([np.zeros(1)]), ConfigRecord(), grid
        )
        assert strategy.aggregate_evaluate(server_round, grid.send_and_receive(messages)) is None
    assert [record.getMessage() for record in caplog.records] == [
        "round 1, metrics of evaluation: clients 1, 2, 3 replied, but without examples: "
        "'num-examples' is 0 (said once)"
    ]


# --- aggregation functions of the user's own ---


def divides(contents: list[RecordDict], key: str) -> MetricRecord:
    return MetricRecord({"x": 1 / 0})


def returns_a_dict(contents: list[RecordDict], key: str) -> Any:
    return {"x": 1.0}


def returns_nan(contents: list[RecordDict], key: str) -> MetricRecord:
    return MetricRecord({"x": math.nan, "count": len(contents)})


OWN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "raises": (divides, {}, ": all left out: the aggregation raised ZeroDivisionError"),
    "a dict": (returns_a_dict, {}, ": all left out: the aggregation returned dict"),
    "NaN": (returns_nan, {"count": 3}, "'x' is left out: it is nan"),
}


@pytest.mark.parametrize(("function", "kept", "reason"), OWN.values(), ids=OWN.keys())
def test_a_function_of_ones_own_never_ends_the_round(
    function: Any, kept: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = FedCE(train_metrics_aggr_fn=function, evaluate_metrics_aggr_fn=function)
    for server_round in (1, 2):
        for means in both(strategy, lambda c: {"num-examples": 1, "loss": 0.5}, server_round):
            assert dict(means or {}) == kept
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert all(reason in warning for warning in warnings)


def test_flowers_own_function_raises_no_more_than_that(caplog: pytest.LogCaptureFixture) -> None:
    """Given by name it is the default, which is replaced; behind a lambda it is the user's."""
    behind = lambda contents, key: aggregate_metricrecords(contents, key)  # noqa: E731
    lengths: Metrics = lambda c: {"num-examples": 1, "loss": 0.5, "odd": [0.5] * c}  # noqa: E731
    assert both(FedCE(train_metrics_aggr_fn=aggregate_metricrecords), lengths)[0] == {"loss": 0.5}
    assert both(FedCE(train_metrics_aggr_fn=behind), lengths)[0] == {}
    assert "the aggregation raised ValueError" in caplog.text


def test_a_function_of_ones_own_gets_the_clients_that_agree_on_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[int] = []

    def count(contents: list[RecordDict], key: str) -> MetricRecord:
        seen.append(len(contents))
        return MetricRecord({"n": sum(c.metric_records["metrics"][key] for c in contents)})

    found, _ = both(
        FedCE(train_metrics_aggr_fn=count),
        lambda c: {"num-examples": c + 1, **({"more": 1.0} if c == 0 else {})},
    )
    assert (found, seen) == ({"n": 5}, [2])
    assert "training: those of client 1 left out: other names" in caplog.text


def test_rollgate_tells_what_the_client_measured() -> None:
    strategy = RollGate(fraction_evaluate=0.0)
    grid = InProcessGrid(app_of(lambda c: {"num-examples": 5, "loss": 0.5, "auc": math.nan}), 2)
    messages = list(strategy.configure_train(1, ArrayRecord([np.zeros(2)]), ConfigRecord(), grid))
    _, metrics = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert metrics == {"loss": 0.5}
