"""The server's memory: decisions, learning, placing, resuming; and the gate in closed form."""

from typing import Any

import numpy as np
import pytest

from nmoe_flower.alignment import (
    Assigner,
    Capacity,
    ClosedFormGate,
    Decision,
    ExpertCost,
    Feedback,
)
from nmoe_flower.errors import CheckpointError, ConfigError, ReplyError


def said(client: int, experts: list[int], *, total: int, loss: float = 0.5) -> Feedback:
    shares = np.zeros(total)
    shares[experts] = 1 / len(experts)
    count = len(experts)
    return Feedback(
        client, np.array(experts), np.full(count, loss), np.full(count, 4.0), shares, 1.0
    )


def test_it_learns_what_was_assigned() -> None:
    """Reward 0.5 + 0.5 share = 1; fitness 0.7 x 0.5 + 0.3 x 1 = 0.65; the rest stays at 0.5."""
    assigner = Assigner(2, 2)
    decision = assigner.assign(1, [True, True])
    held = [int(np.flatnonzero(row)[0]) for row in decision.chosen]
    assigner.learn(decision, [said(i, [held[i]], total=2) for i in (1, 0)])
    np.testing.assert_allclose(assigner.fitness.values[[0, 1], held], 0.65)
    np.testing.assert_allclose(assigner.fitness.values.sum(), 2 * 0.65 + 2 * 0.5)
    assert assigner.usage.total.tolist() == [4.0, 4.0]
    assert assigner.routed.tolist() == [0.5, 0.5]
    assert assigner.load_variation == 0.0
    again = assigner.assign(2, [True, True])
    assert (again.chosen == decision.chosen).all()


def test_a_round_without_feedback_changes_no_load() -> None:
    assigner = Assigner(2, 2)
    assigner.learn(assigner.assign(1, [True, True]), [])
    assert assigner.usage.total.tolist() == [0.0, 0.0]
    assert assigner.routed.tolist() == [0.0, 0.0]


def test_clients_that_come_later_take_the_sequence_of_capacities_from_its_start() -> None:
    assigner = Assigner(2, 4, capacity=[1, 3])
    assigner.meet(5)
    assigner.meet(3)
    assert assigner.clients == 5
    assert assigner.capacities().tolist() == [1, 3, 1, 3, 1]
    assert Assigner(2, 4, capacity=9).capacities().tolist() == [4, 4]


def test_clients_that_come_later_report_what_they_can() -> None:
    capacity = Capacity(2, ExpertCost(size=1, memory=1, flops=1), most=3)
    assigner = Assigner(2, 4, capacity=capacity)
    claim = {"compute": [9.0, 9.0], "download": [9.0, 9.0], "upload": [9.0, 9.0],
             "latency": [0.0, 0.0]}  # fmt: skip
    assert capacity.report([0, 1], memory=[2, 3], **claim) == {}
    assigner.meet(4)
    assigner.meet(3)
    assert assigner.capacities().tolist() == [2, 3, 0, 0]  # nobody knows of the two yet
    assert capacity.report([2, 3], memory=[1, 2], **claim) == {}
    assert assigner.capacities().tolist() == [2, 3, 1, 2]
    decision = assigner.assign(1, [True] * 4)
    assert decision.chosen.sum(axis=1).tolist() == [2, 3, 1, 2]
    assert assigner.observe(decision, {3: 1.0}) == {}
    again = Assigner(2, 4, capacity=Capacity(2, capacity.cost, most=3))
    again.load_state(assigner.state())
    assert again.capacities().tolist() == assigner.capacities().tolist()


@pytest.mark.parametrize("wrong", [-1, [1, float("nan")], 1.5, [], [float("inf")]])
def test_capacities_that_cannot_be_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="capacity"):
        Assigner(2, 2, capacity=wrong)


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(ConfigError, match="'best' is unknown"):
        Assigner(2, 2, policy="best")


def test_placing_takes_the_fittest_within_capacity() -> None:
    assigner = Assigner(2, 3, capacity=[1, 2])
    assigner.fitness.values = np.array([[0.1, 0.9, 0.2], [0.3, 0.2, 0.1]])
    assert assigner.place().astype(int).tolist() == [[0, 1, 0], [1, 1, 0]]


def test_a_decision_says_who_went_before() -> None:
    """Client 0 wants expert 0 most, but client 1 wants it more: one better expert is passed."""
    assigner = Assigner(2, 2, scale="none")
    assigner.fitness.values = np.array([[0.6, 0.5], [0.9, 0.5]])
    decision = assigner.assign(1, [True, True])
    line = decision.why(0)
    assert (line["experts"], line["passed-over"], line["fitness"]) == ([1], 1, [0.5])
    assert decision.why(1)["passed-over"] == 0
    assert assigner.assign(2, [False, True]).why(0)["why"] == "offline"


def test_experts_that_are_held_at_a_tie_hide_none_that_was_passed_over() -> None:
    """Experts 0 and 1 are held at 1 each; expert 2 would have been better, expert 3 not."""
    wanted = np.array([[1.0, 1.0, 2.0, 0.0]])
    decision = Decision(
        round=1,
        chosen=np.array([[True, True, False, False]]),
        online=np.array([True]),
        capacity=np.array([2]),
        fitness=wanted,
        usage=np.zeros(4),
        deficits=np.zeros(4),
        desirability=wanted,
    )
    assert decision.why(0)["passed-over"] == 1


def test_a_probed_newcomer_starts_with_its_shares() -> None:
    assigner = Assigner(1, 2)
    assigner.fitness.probe(0, [1.0, 0.0])
    np.testing.assert_allclose(assigner.fitness.values[0], [0.65, 0.35])
    assert assigner.fitness.visits.sum() == 0
    with pytest.raises(ConfigError, match="client 0: probed rewards"):
        assigner.fitness.probe(0, [1.0, float("nan")])


def test_state_comes_back_bit_by_bit_and_foreign_state_is_refused() -> None:
    def rounds(assigner: Assigner, numbers: range) -> None:
        for number in numbers:
            decision = assigner.assign(number, [True] * 3)
            feedback = [
                said(i, np.flatnonzero(decision.chosen[i]).tolist(), total=3, loss=0.1 * number)
                for i in range(3)
            ]
            assigner.learn(decision, feedback)

    straight, first, second = (Assigner(3, 3, capacity=[1, 2], seed=2) for _ in range(3))
    rounds(straight, range(1, 7))
    rounds(first, range(1, 4))
    second.load_state(first.state())
    rounds(second, range(4, 7))
    ours, theirs = straight.state(), second.state()
    assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}
    with pytest.raises(CheckpointError, match="does not fit"):
        second.load_state(Assigner(3, 4).state())
    for name in ("times", "routed"):
        with pytest.raises(CheckpointError, match="does not fit"):
            second.load_state({key: value for key, value in theirs.items() if key != name})


# --- the gate in closed form ---


def packed(rows: np.ndarray) -> np.ndarray:
    inputs = np.column_stack([rows, np.ones(len(rows))])
    return np.asarray((inputs.T @ inputs)[np.triu_indices(inputs.shape[1])])


def sums(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows.sum(axis=0), [len(rows), len(rows)]])


def solved(ridge: float = 1e-9) -> tuple[np.ndarray, np.ndarray, ClosedFormGate]:
    rng = np.random.default_rng(0)
    rows, owner = rng.normal(size=(60, 4)), np.repeat([0, 1, 2], 20)
    gate = ClosedFormGate(3, ridge=ridge, sharpness=1.0)
    for client in range(3):
        gate.meet(client, packed(rows[owner == client]), 5)
        gate.meet(client, packed(rows), 5)  # known already: nothing happens
    gate.update({e: sums(rows[owner == e]) for e in range(3)})
    return rows, owner, gate


def test_the_closed_form_is_least_squares_on_everybodys_data() -> None:
    """A slow second version: the pooled rows, their owners one-hot, ``numpy.linalg.lstsq``."""
    rows, owner, gate = solved()
    inputs = np.column_stack([rows, np.ones(len(rows))])
    expected = np.linalg.lstsq(inputs, np.eye(3)[owner], rcond=None)[0].T
    weight, bias = gate.solve()
    np.testing.assert_allclose(weight, expected[:, :-1], atol=1e-5)
    np.testing.assert_allclose(bias, expected[:, -1], atol=1e-5)


def test_sums_decay_when_their_expert_is_trained_and_an_untrained_one_is_never_best() -> None:
    gate = ClosedFormGate(2, decay=0.5, sharpness=1.0)
    rows = np.random.default_rng(1).normal(size=(9, 2))
    gate.meet(0, packed(rows), 3)
    gate.update({0: sums(rows)})
    gate.update({0: sums(rows)})
    assert gate.counts.tolist() == [0.5 * 9 + 9, 0.0]
    weight, bias = gate.solve()
    scores = rows @ weight.T + bias
    assert (scores.argmax(axis=1) == 0).all()


@pytest.mark.parametrize(
    ("moment", "given", "reason"),
    [
        (None, np.zeros((2, 6)), "gate sums of shape"),
        (None, np.zeros(6), "gate sums of shape"),
        (np.zeros(3), np.zeros((1, 6)), "packed second moment of shape"),
        (None, np.full((1, 6), np.nan), "not finite"),
        (None, np.array([[0, 0, 0, 0, 0, -1.0]]), "negative"),
        (np.full(15, np.inf), np.zeros((1, 6)), "not finite"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(moment: Any, given: Any, reason: str) -> None:
    gate = solved()[2]
    before = gate.state()
    with pytest.raises(ReplyError, match=reason):
        gate.check(moment, given, 1)
    assert all(before[k].tobytes() == v.tobytes() for k, v in gate.state().items())


def test_the_gates_state_comes_back() -> None:
    gate, other = solved()[2], ClosedFormGate(3, ridge=1e-9, sharpness=1.0)
    other.load_state(gate.state())
    assert gate.solve()[0].tobytes() == other.solve()[0].tobytes()
    with pytest.raises(CheckpointError, match="gate state"):
        ClosedFormGate(4).load_state(gate.state())
