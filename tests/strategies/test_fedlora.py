from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower import records
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ConfigError
from nmoe_flower.strategies import FedLoRA, mean_product

RNG = np.random.default_rng


def factors(
    rng: np.random.Generator, rank: int, rows: int = 5, columns: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(rank, columns)), rng.normal(size=(rows, rank))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
       rank=st.integers(1, 6))  # fmt: skip
def test_the_mean_product_is_the_nearest_of_its_rank(
    seed: int, ranks: list[int], rank: int
) -> None:
    """Eckart and Young: the error is what the singular values beyond the rank hold."""
    rng = RNG(seed)
    parts = [factors(rng, one) for one in ranks]
    weights = rng.uniform(0.1, 2.0, len(ranks)).tolist()
    mean = sum(w * b @ a for w, (a, b) in zip(weights, parts, strict=True)) / sum(weights)
    a, b = mean_product(parts, weights, rank)
    assert (a.shape, b.shape) == ((rank, 4), (5, rank))
    beyond = np.linalg.svd(mean)[1][rank:]
    assert np.linalg.norm(mean - b @ a) == pytest.approx(np.sqrt((beyond**2).sum()), abs=1e-4)


def app_of(sent: Sequence[Mapping[str, np.ndarray]], weights: Sequence[int]) -> ClientApp:
    """Clients that answer with adapters of their own."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        told = MetricRecord({"num-examples": weights[client]})
        content = {"arrays": records.from_numpy(sent[client]), "metrics": told}
        return Message(RecordDict(content), reply_to=message)

    return app


@pytest.mark.parametrize("exact", [False, True])
def test_a_round_averages_factors_or_products(exact: bool) -> None:
    rng = RNG(0)
    sent = [dict(zip(("layer.A", "layer.B"), factors(rng, 2), strict=True)) for _ in range(2)]
    sent = [{**one, "bias": np.full(3, float(at))} for at, one in enumerate(sent)]
    strategy, grid = FedLoRA(exact=exact), InProcessGrid(app_of(sent, [1, 3]), 2)
    arrays = records.from_numpy(sent[0])
    messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    updated, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert isinstance(updated, ArrayRecord)
    found = records.to_numpy(updated)
    assert np.allclose(found["bias"], 0.75)
    products = (
        0.25 * sent[0]["layer.B"] @ sent[0]["layer.A"]
        + 0.75 * sent[1]["layer.B"] @ sent[1]["layer.A"]
    )
    u, s, v = np.linalg.svd(products)
    nearest = (u[:, :2] * s[:2]) @ v[:2]
    means = sum(w * one["layer.B"] for w, one in zip((0.25, 0.75), sent, strict=True)) @ sum(
        w * one["layer.A"] for w, one in zip((0.25, 0.75), sent, strict=True)
    )
    assert np.allclose(found["layer.B"] @ found["layer.A"], nearest if exact else means, atol=1e-5)


def test_where_nothing_was_learnt_yet_the_adapter_can_still_learn() -> None:
    """B = 0, as every adapter begins; with A = 0, too, no gradient would ever move either."""
    a, b = factors(RNG(1), 2)
    begun = {"layer.A": a, "layer.B": np.zeros_like(b)}
    half = {"layer.A": a, "layer.B": np.outer(b[:, 0], [1.0, 0.0])}  # of rank 1
    for sent in (begun, half):
        strategy, grid = FedLoRA(exact=True), InProcessGrid(app_of([sent, sent], [1, 3]), 2)
        messages = list(strategy.configure_train(1, records.from_numpy(sent), ConfigRecord(), grid))
        updated, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
        assert updated is not None
        found = records.to_numpy(updated)
        product = found["layer.B"] @ found["layer.A"]
        np.testing.assert_allclose(product, sent["layer.B"] @ a, atol=1e-6)
        assert (np.linalg.norm(found["layer.A"], axis=1) > 0.1).all()


@pytest.mark.parametrize(
    "options", [{"server_learning_rate": 0.5}, {"server_momentum": 0.9}, {"ema": 0.9}]
)
def test_exact_factors_cannot_be_stepped_along(options: dict[str, float]) -> None:
    """They turn in every round: a step from the old ones to the new ones is one to nowhere."""
    FedLoRA(**options)
    with pytest.raises(ConfigError, match="exact=True makes factors that turn"):
        FedLoRA(exact=True, **options)
