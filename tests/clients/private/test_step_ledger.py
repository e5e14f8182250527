import json

import pytest

from nmoe_flower.clients.private.step_ledger import NAME, StepLedger
from nmoe_flower.errors import BudgetError, CheckpointError
from nmoe_flower.privacy import Budget, steps_epsilon

STEP = {"noise_multiplier": 2.0, "sample_rate": 0.1, "steps": 3}


@pytest.fixture
def ledger(tmp_path):
    def make(epsilon=8.0, adjacency="add-remove"):
        return StepLedger(tmp_path, Budget(epsilon, 1e-5), adjacency=adjacency)

    return make


def test_steps_are_on_the_disk_before_they_are_taken(ledger):
    assert ledger().pay(1, "a", **STEP) == 0
    again = ledger()
    assert again.history == [(2.0, 0.1, 3)]
    again.pay(2, "b", **STEP)
    cost = ledger().cost
    history = [(2.0, 0.1, 6)]
    assert (cost.steps, cost.epsilon) == (6, steps_epsilon(history, 1e-5))
    assert cost.replaced == steps_epsilon(history, 1e-5, adjacency="replace-one")


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_beyond_the_budget_nothing_is_paid(ledger, adjacency):
    """The budget is what two rounds cost, in the adjacency it is meant in."""
    budget = steps_epsilon([(2.0, 0.1, 6)], 1e-5, adjacency=adjacency)
    for server_round in (1, 2):
        ledger(budget, adjacency).pay(server_round, "x", **STEP)
    with pytest.raises(BudgetError, match="6 steps have cost epsilon"):
        ledger(budget, adjacency).pay(3, "x", **STEP)
    assert ledger().history == [(2.0, 0.1, 6)]


def test_the_same_round_again_is_the_same_attempt_and_free(ledger):
    first = ledger()
    first.pay(4, "a", **STEP)
    assert ledger().pay(4, "a", **STEP) == 0  # killed before it was taken
    assert first.release(4, "out")
    assert ledger().pay(4, "a", **STEP) == 0  # killed after it was sent
    assert ledger().release(4, "out")
    assert not ledger().release(4, "other bits")
    assert ledger().history == [(2.0, 0.1, 3)]


def test_other_weights_in_the_same_round_are_paid_for_and_get_other_noise(ledger):
    book = ledger()
    assert [book.pay(4, received, **STEP) for received in ("a", "b", "a")] == [0, 1, 2]
    assert ledger().history == [(2.0, 0.1, 9)]


def test_noise_that_cannot_be_repeated_is_paid_for_once_it_has_left(ledger):
    book = ledger()
    assert book.pay(1, "a", **STEP, repeatable=False) == 0
    assert book.pay(1, "a", **STEP, repeatable=False) == 0  # nothing has left
    assert book.release(1, "out")
    assert book.pay(1, "a", **STEP, repeatable=False) == 1
    assert book.release(1, "other bits")
    assert ledger().history == [(2.0, 0.1, 6)]


def test_rounds_that_no_resumed_run_asks_for_are_dropped(ledger, tmp_path):
    book = ledger()
    for server_round in (1, 2, 3, 4):
        book.pay(server_round, "a", **STEP)
        book.release(server_round, "out", kept=[2, 3] if server_round == 4 else [])
    state = json.loads((tmp_path / NAME).read_text())
    assert sorted(state["rounds"]) == ["3", "4"]
    assert state["steps"] == [[2.0, 0.1, 12]]


@pytest.mark.parametrize(
    "text", ["", "{}", '{"steps": [[2.0, 0.1]], "rounds": {}}', '{"steps": 3, "rounds": {}}',
             '{"steps": [[-2.0, 0.1, 3]], "rounds": {}}', '{"steps": [], "rounds": {"x": {}}}',
             '{"steps": [[2.0, 0.1, 2.5]], "rounds": {}}',
             '{"steps": [[2.0, 0.1, true]], "rounds": {}}',
             '{"steps": [], "rounds": {"1": {"received": "a", "sent": null, "attempt": 0}}}',
             *(f'{{"steps": [[2.0, 0.1, 3]], "rounds": {{"1": {entry}}}}}' for entry in (
                 "{}", "[]", '{"received": "a", "sent": null}', '{"received": "a", "attempt": 0}',
                 '{"received": "a", "sent": null, "attempt": -1}',
                 '{"received": "a", "sent": 3, "attempt": 0}'))],
)  # fmt: skip
def test_a_damaged_ledger_pays_nothing(ledger, tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(CheckpointError, match="cannot read the ledger"):
        ledger()


def test_steps_of_one_kind_add_up_however_they_are_written(ledger, tmp_path):
    (tmp_path / NAME).write_text('{"steps": [[2.0, 0.1, 5], [2, 0.1, 2]], "rounds": {}}')
    assert ledger().history == [(2.0, 0.1, 7)]
