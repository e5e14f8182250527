import math
from collections import Counter

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from nmoe_flower import records
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.strategies import FedAvgOptions, FedGate, StreamingFedAvg

ARRAYS = {"w": np.zeros(1, np.float32)}


def grid_of(num: int) -> InProcessGrid:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        arrays = records.from_numpy({"w": np.float32([partition])})
        return records.reply(message, metrics={"num-examples": 1}, arrays={"arrays": arrays})

    return InProcessGrid(app, num)


def chosen(strategy: FedGate, grid: InProcessGrid, server_round: int) -> list[int]:
    messages = strategy.configure_train(
        server_round, records.from_numpy(ARRAYS), ConfigRecord(), grid
    )
    return [message.metadata.dst_node_id for message in messages]


def test_only_the_fraction_differs_from_fedavg() -> None:
    gate, stock = FedGate(), StreamingFedAvg()
    assert gate.fraction_train == 0.7
    assert FedGate(fraction_train=1.0).fraction_train == 1.0
    others = FedAvgOptions.__annotations__.keys() - {"fraction_train"}
    assert {n: getattr(gate, n) for n in others} == {n: getattr(stock, n) for n in others}


@pytest.mark.parametrize("num", range(1, 31))
def test_exactly_seventy_per_cent_train(num: int) -> None:
    """round(0.7 N), halves up: (7 N + 5) // 10. FedAvg's minima of 2 would lift N = 2 to two."""
    strategy = FedGate(min_train_nodes=1, min_available_nodes=1)
    grid = grid_of(num)
    for server_round in (1, 2):
        cohort = chosen(strategy, grid, server_round)
        assert len(set(cohort)) == len(cohort) == (7 * num + 5) // 10
    if num > 2:
        assert len(chosen(FedGate(), grid, 1)) == (7 * num + 5) // 10


def test_every_client_is_as_likely_as_any_other() -> None:
    """600 rounds of 7 of 10: a client's count is binomial: 420 +- sqrt(600 .7 .3) = 11.2.

    Five deviations are 56; that one of 10 clients leaves them by chance has p = 6e-6. Pairs occur
    with p = 7 6 / (10 9): mean 280, deviation 12.2; 45 pairs stay within 61 likewise.
    """
    strategy, grid = FedGate(seed=3), grid_of(10)
    cohorts = [chosen(strategy, grid, server_round) for server_round in range(1, 601)]
    counts = Counter(node for cohort in cohorts for node in cohort)
    assert sum(counts.values()) == 4200
    assert all(abs(counts[node] - 420) < 5 * math.sqrt(600 * 0.7 * 0.3) for node in range(1, 11))
    pairs = Counter((a, b) for cohort in cohorts for a in cohort for b in cohort if a < b)
    share = 7 * 6 / (10 * 9)
    assert len(pairs) == 45
    bound = 5 * math.sqrt(600 * share * (1 - share))
    assert all(abs(count - 600 * share) < bound for count in pairs.values())


def test_cohorts_follow_the_seed_and_are_other_than_the_extractors() -> None:
    grid, rounds = grid_of(10), range(1, 9)

    def drawn(strategy: FedGate) -> list[list[int]]:
        return [chosen(strategy, grid, r) for r in rounds]

    assert drawn(FedGate(seed=1)) == drawn(FedGate(seed=1))
    assert drawn(FedGate(seed=1)) != drawn(FedGate(seed=2))
    other = StreamingFedAvg(seed=1, fraction_train=0.7)
    assert drawn(FedGate(seed=1)) != drawn(other)  # type: ignore[arg-type]


def test_the_cohorts_mean_is_the_new_gate() -> None:
    strategy, grid = FedGate(), grid_of(10)
    nodes = chosen(strategy, grid, 4)
    messages = strategy.configure_train(4, records.from_numpy(ARRAYS), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(4, grid.send_and_receive(list(messages)))
    assert arrays is not None
    expected = sum(node - 1 for node in nodes) / 7
    np.testing.assert_allclose(records.to_numpy(arrays)["w"], [expected], rtol=1e-6)
