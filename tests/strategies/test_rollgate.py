from collections.abc import Collection

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from nmoe_flower import records
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import RoundError
from nmoe_flower.strategies import RollGate

Arrays = dict[str, np.ndarray]
START = {"w": np.float32([0, 0])}


def grid_of(num: int, *, step: float = 1.0, failing: Collection[int] = ()) -> InProcessGrid:
    """Client i moves the weight by step * (i + 1)."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if partition in failing:
            raise ValueError("gone")
        moved = records.to_numpy(message.content["arrays"])["w"] + np.float32(
            step * (partition + 1)
        )
        return records.reply(
            message,
            metrics={"num-examples": 1, "loss": float(partition)},
            arrays={"arrays": records.from_numpy({"w": moved})},
        )

    return InProcessGrid(app, num)


def play(
    strategy: RollGate, grid: InProcessGrid, rounds: range, arrays: Arrays = START
) -> tuple[Arrays, list[int]]:
    """Returns the gate and the clients asked; stops at convergence."""
    visits = []
    record = records.from_numpy(arrays)
    for server_round in rounds:
        messages = list(strategy.configure_train(server_round, record, ConfigRecord(), grid))
        visits += [message.metadata.dst_node_id - 1 for message in messages]
        updated, _ = strategy.aggregate_train(server_round, grid.send_and_receive(messages))
        assert updated is not None
        record = updated
        if strategy.converged:
            break
    return records.to_numpy(record), visits


def test_clients_are_visited_one_after_another() -> None:
    """Four visits add 1, 2, 3 and 1 again: nothing is averaged."""
    gate, visits = play(RollGate(), grid_of(3), range(1, 5))
    assert visits == [0, 1, 2, 0]
    np.testing.assert_array_equal(gate["w"], [7, 7])


def test_a_client_that_fails_is_skipped_by_name() -> None:
    strategy = RollGate()
    gate, visits = play(strategy, grid_of(3, failing={1}), range(1, 3))
    assert visits == [0, 1]
    np.testing.assert_array_equal(gate["w"], [1, 1])
    (failure,) = strategy.last_exchange.failures
    assert failure == {"partition": 2, "reason": "ValueError: gone"}
    gate, _ = play(strategy, grid_of(3, failing={1}), range(3, 4), gate)
    np.testing.assert_array_equal(gate["w"], [4, 4])


@pytest.mark.parametrize(("tolerance", "cycles"), [(0.51, 2), (0.34, 3), (0.26, 4)])
def test_it_ends_when_a_whole_cycle_moves_little(tolerance: float, cycles: int) -> None:
    """A cycle of three adds 6 to every weight: relative to 6 c after c cycles that is 1 / c."""
    strategy = RollGate(tolerance=tolerance)
    gate, visits = play(strategy, grid_of(3), range(1, 100))
    assert strategy.converged
    assert len(visits) == 3 * cycles
    np.testing.assert_array_equal(gate["w"], [6 * cycles] * 2)


def test_a_gate_that_does_not_move_at_all_has_converged() -> None:
    for start in (START, {"w": np.float32([1, 2])}):
        strategy = RollGate()
        _, visits = play(strategy, grid_of(3, step=0.0), range(1, 100), start)
        assert strategy.converged
        assert visits == [0, 1, 2]


def test_it_never_ends_in_the_middle_of_a_cycle() -> None:
    strategy = RollGate(tolerance=100.0)
    _, visits = play(strategy, grid_of(4), range(1, 4))
    assert not strategy.converged
    assert visits == [0, 1, 2]


def test_a_restored_state_goes_on_as_if_nothing_happened() -> None:
    """Restored after visit 4 of a cycle of 3; without the cycle's start it could not converge."""
    whole, first, second = (RollGate(tolerance=0.51) for _ in range(3))
    gate, visits = play(whole, grid_of(3), range(1, 100))
    half, before = play(first, grid_of(3), range(1, 5))
    second.load_state(first.state())
    resumed, after = play(second, grid_of(3), range(5, 100), half)
    assert before + after == visits
    assert resumed["w"].tobytes() == gate["w"].tobytes()


def test_a_restored_state_knows_that_it_converged() -> None:
    """Killed between the last visit and the end of the stage, a run must not roll on."""
    first, second = RollGate(tolerance=0.51), RollGate(tolerance=0.51)
    play(first, grid_of(3), range(1, 100))
    second.load_state(first.state())
    assert second.converged


def test_a_cycle_of_failures_alone_is_no_convergence() -> None:
    """Nothing moved, for nobody trained: FedGate ends such a round, too."""
    told = r"^round 2: 0 usable replies in a cycle of 2 clients, 1 needed \(.*ValueError: gone\)$"
    with pytest.raises(RoundError, match=told):
        play(RollGate(), grid_of(2, failing={0, 1}), range(1, 100))


def test_a_cycle_may_need_several_replies() -> None:
    with pytest.raises(RoundError, match="1 usable reply in a cycle of 3 clients, 2 needed"):
        play(RollGate(min_replies=2), grid_of(3, failing={0, 1}), range(1, 100))
    assert play(RollGate(min_replies=2), grid_of(3, failing={1}), range(1, 4))[1] == [0, 1, 2]


def test_whoever_comes_and_goes_a_cycle_asks_all_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cycle without client 3, which moves the gate most, would be taken for its end."""
    strategy, grid, visits = RollGate(tolerance=0.3), grid_of(4), []
    everybody, gate = list(grid.get_node_ids()), START
    for server_round in range(1, 9):
        there = [n for n in everybody if n - 1 != 1 or server_round not in (6, 7)]
        monkeypatch.setattr(grid, "get_node_ids", lambda there=there: there)
        gate, asked = play(strategy, grid, range(server_round, server_round + 1), gate)
        visits += asked
        assert not strategy.converged
    assert visits == [0, 1, 2, 3, 0, 2, 3, 0]  # the second cycle ends with 3: 1 is not there
