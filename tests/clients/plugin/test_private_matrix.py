"""Somebody's app whose replies hold a matrix, and Flower's own FedAvg: the mod alone is ours."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from nmoe_flower import records
from nmoe_flower.clients import Contrast, PrivateMatrix, StateMemory
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy import Budget, mean_noise_std, noise_multiplier_for, packed_size, smat
from nmoe_flower.strategies import FedSC

DIM = 24
SIZES = (100, 200, 300)
BUDGET = Budget(epsilon=8.0, delta=1e-4)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flower tells every round; the operating system's noise is not to be repeated."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        "nmoe_flower.privacy.mechanism.secure_normal", lambda size: rng.standard_normal(size)
    )
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def features(partition: int) -> np.ndarray:
    """In the unit ball, most of them along one axis."""
    rng = np.random.default_rng(partition)
    z = rng.normal(size=(SIZES[partition], DIM)) * 0.03
    z[:, 0] += 1
    return np.asarray(z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1))


def covariance(partition: int) -> np.ndarray:
    z = features(partition)
    return np.asarray(z.T @ z / len(z))


def second_moment_app(mod: Any, *, wrong: str = "") -> ClientApp:
    """Federated PCA: every client answers with its second moments."""
    app = ClientApp(mods=[mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        matrix = covariance(partition)
        if wrong == "scale":
            matrix = 2 * matrix
        elif wrong == "asymmetric":
            matrix[0, 1] += 1
        elif wrong == "nan":
            matrix[0, 0] = np.nan
        arrays = {"other" if wrong == "name" else "matrix": matrix}
        metrics = {} if wrong == "count" else {"num-examples": SIZES[partition]}
        content = {"arrays": records.from_numpy(arrays), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    return app


def pca_mod(folder: Path, **options: Any) -> PrivateMatrix:
    given = {"budget": BUDGET, "releases": 2, "record": "arrays", "array": "matrix", **options}
    return PrivateMatrix(folder, **given)


def ask(app: ClientApp, partition: int = 0) -> Message:
    with InProcessGrid(app, len(SIZES)) as grid:
        node = sorted(grid.get_node_ids())[partition]
        message = Message(RecordDict({"config": ConfigRecord()}), node, "train")
        (reply,) = grid.send_and_receive([message])
    return reply


def test_flowers_own_fedavg_averages_private_releases(tmp_path: Path) -> None:
    """The mean has the noise of three independent releases, weighted by samples."""
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=3, min_train_nodes=3)
    with InProcessGrid(second_moment_app(pca_mod(tmp_path)), 3) as grid:
        start = records.from_numpy({"matrix": np.zeros(packed_size(DIM), np.float32)})
        result = strategy.start(grid, initial_arrays=start, num_rounds=1)
    mean = smat(records.to_numpy(result.arrays)["matrix"].astype(np.float64))
    total = sum(SIZES)
    exact = sum(covariance(p) * SIZES[p] / total for p in range(3))
    noise = (mean - exact)[np.triu_indices(DIM, 1)]
    # Standard deviation noise x sqrt(2) / n on the packing; off the diagonal 1 / sqrt(2) of it.
    multiplier = noise_multiplier_for(8.0, 1e-4, 2)
    stds = [multiplier * np.sqrt(2) / n for n in SIZES]
    expected = mean_noise_std(stds, [n / total for n in SIZES]) / np.sqrt(2)
    # 276 numbers: the sample's deviation is within 1 / sqrt(2 * 276) = 4.3 %, four times.
    assert noise.std() == pytest.approx(expected, rel=0.17)
    assert abs(noise.mean()) < 4 * expected / np.sqrt(276)
    # And it is still of use: the first axis is found.
    assert abs(np.linalg.eigh(mean)[1][0, -1]) > 0.9


def test_a_release_is_packed_and_tells_its_noise(tmp_path: Path) -> None:
    reply = ask(second_moment_app(pca_mod(tmp_path)))
    packed = records.to_numpy(reply.content.array_records["arrays"])["matrix"]
    assert packed.shape == (packed_size(DIM),)
    assert packed.dtype == np.float32
    told = reply.content.metric_records["metrics"]
    multiplier = noise_multiplier_for(8.0, 1e-4, 2)
    assert told["num-examples"] == 100
    assert told["noise-multiplier"] == pytest.approx(multiplier)
    assert told["noise-std"] == pytest.approx(multiplier * np.sqrt(2) / 100)


def test_the_budget_is_kept_on_the_disk_and_by_client(tmp_path: Path) -> None:
    for _ in range(2):  # a new mod each time, as after a restart
        assert not ask(second_moment_app(pca_mod(tmp_path))).has_error()
    spent = json.loads((tmp_path / "0" / "privacy.json").read_text())
    assert [count for _, count in spent["spent"]["0"]] == [2]
    third = ask(second_moment_app(pca_mod(tmp_path)))
    assert third.has_error()
    assert "the privacy budget is spent, 'arrays' stays here" in third.error.reason
    assert not ask(second_moment_app(pca_mod(tmp_path)), partition=1).has_error()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("scale", "were they clipped?"),
        ("asymmetric", "symmetric"),
        ("nan", "must be finite"),
        ("name", "no array 'matrix'"),
        ("count", "no metric 'num-examples'"),
    ],
)
def test_what_cannot_be_private_does_not_leave_and_costs_nothing(
    tmp_path: Path, wrong: str, text: str
) -> None:
    reply = ask(second_moment_app(pca_mod(tmp_path), wrong=wrong))
    assert reply.has_error()
    assert text in reply.error.reason
    assert not list(tmp_path.rglob("privacy.json"))


def test_a_delta_that_allows_to_name_a_sample_is_refused(tmp_path: Path) -> None:
    reply = ask(second_moment_app(pca_mod(tmp_path, budget=Budget(8.0, 0.01))))
    assert reply.has_error()
    assert "delta must be below 1/100" in reply.error.reason


def test_replies_without_the_record_pass_untouched(tmp_path: Path) -> None:
    """Evaluation, queries and errors."""
    app = second_moment_app(pca_mod(tmp_path, record="elsewhere"))
    kept = records.to_numpy(ask(app).content.array_records["arrays"])["matrix"]
    np.testing.assert_array_equal(kept, covariance(0))
    assert not list(tmp_path.rglob("privacy.json"))


def test_add_remove_divides_by_a_public_constant(tmp_path: Path) -> None:
    """Its noise does not tell the number of samples."""
    mod = pca_mod(tmp_path, adjacency="add-remove", nominal=150)
    noise = [
        ask(second_moment_app(mod), p).content.metric_records["metrics"]["noise-std"]
        for p in (0, 1)
    ]
    assert noise == [pytest.approx(noise_multiplier_for(8.0, 1e-4, 2) / 150)] * 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"adjacency": "add-remove"}, "add-remove needs nominal"),
        ({"nominal": 100}, "add-remove needs nominal"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"releases": 0}, "releases must be at least 1"),
        ({"adjacency": "add-remove", "nominal": 0}, "num_examples must be at least 1"),
    ],
)
def test_bad_numbers_are_refused_at_once(tmp_path: Path, options: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        pca_mod(tmp_path, **options)


def contrastive_app(mod: Any) -> ClientApp:
    """A linear encoder, one step on all samples: each is in R once."""
    app = ClientApp(mods=[mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        encoder = torch.nn.Linear(DIM, 4, bias=False)
        records.load_into(encoder.state_dict(), records.to_numpy(message.content["arrays"]))
        images = torch.from_numpy(features(partition)).float()
        side = Contrast(message, StateMemory(context), num_examples=SIZES[partition])
        loss = side.loss(encoder(images), encoder(0.9 * images))
        loss.backward()
        torch.optim.SGD(encoder.parameters(), lr=0.1).step()
        return side.reply(message, encoder.state_dict())

    return app


def test_fedsc_of_another_app_becomes_private(tmp_path: Path) -> None:
    """The server sees the noise it was promised; when the budget ends, training goes on."""
    mod = PrivateMatrix(tmp_path, budget=BUDGET, releases=2)
    strategy = FedSC(
        noise_multiplier=mod.noise_multiplier, fraction_evaluate=0.0, min_available_nodes=3
    )
    torch.manual_seed(0)
    start = records.pack(torch.nn.Linear(DIM, 4, bias=False).state_dict())
    with InProcessGrid(contrastive_app(mod), 3) as grid:
        arrays: ArrayRecord = start
        for current in (1, 2, 3):
            sent = list(strategy.configure_train(current, arrays, ConfigRecord(), grid))
            updated, _ = strategy.aggregate_train(current, grid.send_and_receive(sent))
            assert strategy.last_exchange.failures == []
            assert updated is not None
            arrays = updated
            noisy = strategy.correlations.state()
    assert len(strategy.correlations) == 3
    about = [value for name, value in noisy.items() if name.endswith("/about")]
    assert {int(server_round) for _, server_round, _ in about} == {2}  # round 3 was not paid for
    assert all(noise > 0 for _, _, noise in about)
    # The samples lie along one axis; noise might hide the others, and the warning admits it.
    assert strategy.collapse is not None
    assert "or noise hides the others" in strategy.collapse


def test_fedsc_refuses_clients_without_the_mod() -> None:
    def nothing(message: Message, context: Context, app: Any) -> Message:
        return app(message, context)

    strategy = FedSC(noise_multiplier=1.0, fraction_evaluate=0.0, min_available_nodes=3)
    start = records.pack(torch.nn.Linear(DIM, 4, bias=False).state_dict())
    with InProcessGrid(contrastive_app(nothing), 3) as grid:
        sent = list(strategy.configure_train(1, start, ConfigRecord(), grid))
        replies = list(grid.send_and_receive(sent))
        with pytest.raises(Exception, match="noise multiplier 0, 1 was agreed"):
            strategy.aggregate_train(1, replies)
