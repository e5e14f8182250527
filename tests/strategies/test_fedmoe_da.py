"""FedMoE-DA's matrix of mixing weights, and what its server makes of experts with it."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nmoe_flower import records
from nmoe_flower.baselines import of_client
from nmoe_flower.baselines.fedmoe_da import MixedExperts, mixing_weights
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ConfigError
from nmoe_flower.records import NUM_EXAMPLES
from nmoe_flower.strategies import Partitions
from tests.strategies.test_partial_experts import INITIAL, round_of

ROWS = arrays(np.float32, (6, 3), elements=st.floats(-4, 4, width=16))


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(0, 7), st.permutations(range(6)))
def test_rows_sum_to_1_keep_themselves_and_follow_a_permutation(
    rows: np.ndarray, neighbours: int, order: list[int]
) -> None:
    found = mixing_weights(rows, neighbours)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (np.diag(found) > 0).all()
    kept = (found > 0).sum(axis=1)
    assert (kept >= min(neighbours + 1, len(rows))).all()
    np.testing.assert_allclose(
        mixing_weights(rows[order], neighbours), found[np.ix_(order, order)], atol=1e-9
    )


def test_no_neighbours_is_the_identity_and_a_great_temperature_the_mean() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 3))
    np.testing.assert_array_equal(mixing_weights(rows, 0), np.eye(6))
    np.testing.assert_allclose(mixing_weights(rows, 5, temperature=1e9), 1 / 6, rtol=1e-6)


def test_similar_rows_weigh_more_and_ties_stay() -> None:
    rows = np.array([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 3.0]])
    found = mixing_weights(rows, 1)
    # To 2 all others are alike: cos 45 degrees, so all stay; e^(1 - 2^-1/2) = 1.3403.
    np.testing.assert_allclose(found[2], np.array([1, 1, 1.3403, 1, 1]) / 5.3403, rtol=1e-4)
    np.testing.assert_allclose(found[0], [0.5, 0.5, 0, 0, 0])
    np.testing.assert_allclose(found[4], [0, 0, 0, 0.5, 0.5])
    nothing = mixing_weights(np.zeros((3, 2)), 1)  # rows that tell nothing
    np.testing.assert_allclose(nothing, 1 / 3)


def expert(value: float) -> np.ndarray:
    return np.full(4, value, np.float32)


SENT = {  # by client: an expert each, and a row whose direction tells of its domain
    0: {"trunk.w": expert(1), "expert.0.w": expert(10), "gate.0.weight": np.float32([[1, 0]])},
    1: {"trunk.w": expert(3), "expert.0.w": expert(20), "gate.0.weight": np.float32([[1, 0]])},
    2: {"trunk.w": expert(5), "expert.0.w": expert(90), "gate.0.weight": np.float32([[0, 1]])},
}
FIRST = {"trunk.w": expert(0), "expert.0.w": expert(7), "gate.0.weight": np.zeros((1, 2), "f4")}


def play(strategy: MixedExperts, rounds: int, before: dict[str, np.ndarray]) -> list[dict]:
    """The server's arrays after every round; a client sends what it always sends."""
    app = ClientApp()
    got: list[dict[int, dict[str, np.ndarray]]] = []

    @app.train()
    def train(message: Message, context: object) -> Message:
        client = int(context.node_config["partition-id"])  # type: ignore[attr-defined]
        got[-1][client] = records.to_numpy(message.content.array_records["arrays"])
        packed = {"arrays": records.from_numpy(SENT[client])}
        return records.reply(message, metrics={NUM_EXAMPLES: 1 + client}, arrays=packed)

    found = []
    with InProcessGrid(app, 3) as grid:
        strategy.partitions = Partitions()
        strategy.nodes(grid, 3)
        now = records.from_numpy(before)
        for server_round in range(1, rounds + 1):
            got.append({})
            sent = list(strategy.configure_train(server_round, now, ConfigRecord(), grid))
            updated, metrics = strategy.aggregate_train(server_round, grid.send_and_receive(sent))
            assert updated is not None
            assert metrics is not None
            now = updated
            found.append({**records.to_numpy(now), "got": got[-1], "metrics": dict(metrics)})
    return found


def arrays_of_clients(arrays: dict[str, np.ndarray]) -> set[int]:
    return {int(name.split(".")[1]) for name in arrays if name.startswith("client.")}


def test_each_client_has_its_own_mix_and_the_rest_is_averaged() -> None:
    (first, second) = play(MixedExperts(1, 1), 2, FIRST)
    clients = sorted(first["got"])
    for mine in first["got"].values():
        assert mine.keys() == FIRST.keys()
        np.testing.assert_array_equal(mine["expert.0.w"], FIRST["expert.0.w"])
    np.testing.assert_allclose(first["trunk.w"], (1 * 1 + 2 * 3 + 3 * 5) / 6)  # by samples
    np.testing.assert_array_equal(first["expert.0.w"], FIRST["expert.0.w"])  # nobody's
    # Rows before the average: 0 and 1 are alike; 2 is as far from both, which tie.
    far = np.array([1, 1, np.e]) / (2 + np.e)
    wanted = [15, 15, far @ [10, 20, 90]]
    for client, value in zip(clients, wanted, strict=True):
        mine = second["got"][client]
        assert mine.keys() == FIRST.keys()
        np.testing.assert_allclose(mine["expert.0.w"], value, rtol=1e-6)
        np.testing.assert_array_equal(mine["trunk.w"], first["trunk.w"])
    assert first["metrics"]["peer_bytes"] == (1 + 1 + 2) * 16


def test_without_neighbours_experts_stay_at_home() -> None:
    (found,) = play(MixedExperts(1, 0), 1, FIRST)
    arrays = {name: value for name, value in found.items() if "." in name}
    for node, place in zip(sorted(arrays_of_clients(arrays)), SENT, strict=True):
        own = of_client(arrays, node)["expert.0.w"]
        np.testing.assert_array_equal(own, SENT[place]["expert.0.w"])
    assert found["metrics"]["peer_bytes"] == 0


def test_weights_stay_between_refreshes_and_survive() -> None:
    strategy, other = MixedExperts(1, 1, refresh=2), MixedExperts(1, 1, refresh=2)
    play(strategy, 1, FIRST)
    other.load_state(strategy.state())
    for one in (strategy, other):
        before = one._weights.copy()
        one.rows = {client: row[:, ::-1] * (1 + client) for client, row in one.rows.items()}
        one._weigh()
        np.testing.assert_array_equal(one._weights, before)
        one.rows = dict.fromkeys(one.rows, np.ones((1, 2)))
        one._weigh()
        np.testing.assert_allclose(one._weights, 1 / 3)


def test_experts_without_rows_of_a_router_are_refused_by_name() -> None:
    answers = {i: (INITIAL, {NUM_EXAMPLES: 1}) for i in range(2)}
    with pytest.raises(ConfigError, match=r"the arrays have no gate\.0\.\*"):
        round_of(MixedExperts(3, 1), 2, answers)


@pytest.mark.parametrize("clients", [[0], [0, 1, 2, 3]])
def test_another_set_of_clients_has_other_weights_at_once(clients: list[int]) -> None:
    strategy = MixedExperts(1, 5)
    strategy.rows = {client: np.ones((1, 2)) for client in (0, 1)}
    strategy._weigh()
    strategy.rows = {client: np.ones((1, 2)) for client in clients}
    strategy._weigh()
    np.testing.assert_allclose(strategy._weights, 1 / len(clients))
