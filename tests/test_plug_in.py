"""Somebody's ordinary Flower app, its ClientApp untouched: FedAvg goes, one of ours comes."""

import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Result,
    Strategy,
)

from nmoe_flower.engine import InProcessGrid
from nmoe_flower.strategies import FedCE, FedGate, RollGate

pytestmark = pytest.mark.flower

CLIENTS = 4
TRUTH = np.array([1.0, -2.0, 0.5])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Flower tells every round."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def data(partition: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(partition)
    inputs = rng.normal(size=(20 + 10 * partition, 3))
    return inputs, inputs @ TRUTH + 0.1 * rng.normal(size=len(inputs))


def linear_regression(poisoned: int = -1, **options: Any) -> ClientApp:
    """The user's app: NumPy, the Message API, no word of this package."""
    app = ClientApp(**options)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (weights,) = message.content["arrays"].to_numpy_ndarrays()
        partition = int(context.node_config["partition-id"])
        inputs, targets = data(partition)
        for _ in range(3):
            error = inputs @ weights - targets
            weights = weights - message.content["config"]["lr"] * inputs.T @ error / len(inputs)
        if partition == poisoned:
            weights = weights * np.nan
        metrics = {"loss": float(np.square(error).mean()), "num-examples": len(inputs)}
        content = RecordDict({"arrays": ArrayRecord([weights]), "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        (weights,) = message.content["arrays"].to_numpy_ndarrays()
        inputs, targets = data(int(context.node_config["partition-id"]))
        loss = float(np.square(inputs @ weights - targets).mean())
        content = RecordDict({"metrics": MetricRecord({"loss": loss, "num-examples": len(inputs)})})
        return Message(content, reply_to=message)

    return app


def run(strategy: Strategy, app: ClientApp | None = None, rounds: int = 5) -> Result:
    with InProcessGrid(app or linear_regression(), CLIENTS) as grid:
        return strategy.start(
            grid,
            initial_arrays=ArrayRecord([np.zeros(3)]),
            num_rounds=rounds,
            train_config=ConfigRecord({"lr": 0.1}),
        )


def weights(result: Result) -> np.ndarray:
    (array,) = result.arrays.to_numpy_ndarrays()
    return array


@pytest.mark.parametrize(
    "strategy",
    [
        FedCE(),
        FedCE(fraction_train=1.0, min_train_nodes=4, weighted_by_key="num-examples"),
        FedGate(fraction_train=1.0),
    ],
    ids=["fedce", "fedce-arguments", "fedgate"],
)
def test_the_results_are_those_of_fedavg(strategy: Strategy) -> None:
    stock, ours = run(FedAvg()), run(strategy)
    np.testing.assert_allclose(weights(ours), weights(stock), rtol=0, atol=1e-6)
    assert weights(ours).dtype == weights(stock).dtype
    for mine, theirs in (
        (ours.train_metrics_clientapp, stock.train_metrics_clientapp),
        (ours.evaluate_metrics_clientapp, stock.evaluate_metrics_clientapp),
    ):
        assert mine.keys() == theirs.keys() == {1, 2, 3, 4, 5}
        for server_round, metrics in theirs.items():
            assert dict(mine[server_round]) == pytest.approx(dict(metrics), abs=1e-9)
    assert np.abs(weights(ours) - TRUTH).max() < 0.5  # from 2


def test_server_momentum_gets_there_sooner() -> None:
    plain = run(FedCE()).evaluate_metrics_clientapp[5]["loss"]
    assert run(FedCE(server_momentum=0.5)).evaluate_metrics_clientapp[5]["loss"] < plain / 2


def test_fedgate_trains_seventy_per_cent() -> None:
    """round(0.7 * 4) = 3 clients a round."""
    strategy = FedGate()
    cohorts = []
    plain = strategy.aggregate_train

    def spying(server_round: int, replies: Any) -> Any:
        answer = plain(server_round, replies)
        cohorts.append(list(strategy.last_exchange.clients))
        return answer

    strategy.aggregate_train = spying  # type: ignore[method-assign]
    run(strategy)
    assert [len(cohort) for cohort in cohorts] == [3] * 5


def test_rollgate_hands_the_model_round() -> None:
    """Five rounds: clients 0, 1, 2, 3, 0, three gradient steps each, nothing averaged."""
    expected = np.zeros(3)
    for partition in (0, 1, 2, 3, 0):
        inputs, targets = data(partition)
        for _ in range(3):
            expected -= 0.1 * inputs.T @ (inputs @ expected - targets) / len(inputs)
    np.testing.assert_allclose(weights(run(RollGate())), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [FedCE, FedGate])
def test_flowers_server_side_privacy_wraps_it(kind: type[FedCE]) -> None:
    """A clip that never bites and no noise: nothing changes. A tight clip: small steps."""

    def wrapped(strategy: FedAvg, clip: float) -> Result:
        return run(DifferentialPrivacyServerSideFixedClipping(strategy, 0.0, clip, CLIENTS))

    plain = weights(run(FedAvg()))
    loose = weights(wrapped(kind(fraction_train=1.0), 1e6))
    np.testing.assert_allclose(loose, plain, rtol=0, atol=1e-6)
    tight = weights(wrapped(kind(fraction_train=1.0), 1e-3))
    assert 0 < np.linalg.norm(tight) <= 5 * 1e-3 * (1 + 1e-6)


def test_flowers_client_side_privacy_wraps_it() -> None:
    """Noise of 1e-9 * clip / clients a coordinate; five rounds of clipped steps of 0.01."""
    strategy = DifferentialPrivacyClientSideFixedClipping(FedCE(), 1e-9, 0.01, CLIENTS)
    after = weights(run(strategy, linear_regression(mods=[fixedclipping_mod])))
    assert np.linalg.norm(after) == pytest.approx(0.05, rel=0.05)


def test_a_poisoned_client_is_dropped_by_name_where_fedavg_is_lost() -> None:
    strategy = FedCE()
    result = run(strategy, linear_regression(poisoned=2))
    assert np.isfinite(weights(result)).all()
    assert np.abs(weights(result) - TRUTH).max() < 0.5  # from 2
    stock = run(FedAvg(), linear_regression(poisoned=2))
    assert np.isnan(weights(stock)).all()
    metrics = stock.evaluate_metrics_clientapp
    assert math.isnan(float(metrics[5]["loss"]))  # type: ignore[arg-type]


def test_the_poisoned_client_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    run(FedCE(), linear_regression(poisoned=2), rounds=1)
    assert "dropped the reply of client 3: 0: has NaN or infinite entries" in caplog.text
