"""FLEX-MoE's server half: its program against all assignments there are, and what it learns."""

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.baselines.flex_moe import FlexExperts
from nmoe_flower.config import Config
from nmoe_flower.data import configured_images, configured_partition
from nmoe_flower.errors import ConfigError
from nmoe_flower.records import NUM_EXAMPLES, BaselineKey
from nmoe_flower.rehearsal import rehearse
from tests.strategies.test_partial_experts import NAMES, round_of, value


def matrix(chosen: Any, experts: int) -> np.ndarray:
    return np.array([np.isin(np.arange(experts), held) for held in chosen.values()])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_program_finds_the_best_of_all_assignments(data: st.DataObject) -> None:
    clients, experts = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    held = data.draw(st.integers(1, experts))
    lo = data.draw(st.integers(0, clients))
    hi = data.draw(st.integers(max(1, lo), clients))
    strategy = FlexExperts(experts, held, lo=lo, hi=hi)
    scores = st.lists(st.floats(0, 1, width=16), min_size=experts, max_size=experts)
    strategy.scores = {client: np.array(data.draw(scores)) for client in range(clients)}
    worth = np.stack(list(strategy.scores.values()))
    rows = [row for row in itertools.product((0, 1), repeat=experts) if sum(row) <= held]
    best = -np.inf
    for rows_chosen in itertools.product(rows, repeat=clients):
        found = np.array(rows_chosen)
        if ((found.sum(axis=0) >= lo) & (found.sum(axis=0) <= hi)).all():
            best = max(best, float((found * worth).sum()))
    if best == -np.inf:
        with pytest.raises(ConfigError, match="expert 0"):
            strategy.assign(range(clients), 1)
        return
    chosen = matrix(strategy.assign(range(clients), 1), experts)
    assert (chosen.sum(axis=1) <= held).all()
    assert ((chosen.sum(axis=0) >= lo) & (chosen.sum(axis=0) <= hi)).all()
    assert (chosen * worth).sum() == pytest.approx(best, abs=1e-9)


def test_without_bounds_everybody_gets_its_best_and_with_equal_ones_all_are_trained_alike() -> None:
    worth = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.1], [0.7, 0.6, 0.2]])
    for lo, hi, loads in ((0, 3, [3, 3, 0]), (2, 2, [2, 2, 2])):
        strategy = FlexExperts(3, 2, lo=lo, hi=hi)
        strategy.scores = dict(enumerate(worth))
        chosen = matrix(strategy.assign(range(3), 1), 3)
        assert chosen.sum(axis=0).tolist() == loads
    all_of_them = FlexExperts(3, 3).assign(range(3), 1)
    assert all_of_them == {client: [0, 1, 2] for client in range(3)}


def test_what_lacked_clients_comes_next() -> None:
    """Two clients of one slot each: of three experts one waits, and then it is its turn."""
    strategy, turns = FlexExperts(3, 1), []
    for server_round in range(1, 7):
        chosen = strategy.assign([0, 1], server_round)
        turns.append({held[0] for held in chosen.values()})
        strategy._found = {c: (held, np.ones(3)) for c, held in chosen.items()}  # all have replied
        strategy.learn()
    for first, second in itertools.pairwise(turns):
        assert len(first) == len(second) == 2
        assert first | second == {0, 1, 2}


def answers_of(
    clients: int, *, wrong: tuple[int, ...] = (), masses: tuple[float, float] = (0.0, 0.0)
) -> dict[int, Any]:
    """The trunk of every client, in another shape of those that are ``wrong``."""
    told = {NUM_EXAMPLES: 4, BaselineKey.MASSES: [*masses], BaselineKey.ACCURACIES: [0.0, 0.0]}
    return {i: ({"trunk.w": np.ones(2 if i in wrong else 3, np.float32)}, told)
            for i in range(clients)}  # fmt: skip


def test_who_has_no_expert_sits_the_round_out() -> None:
    """Two experts of one client each, and three clients."""
    strategy = FlexExperts(2, 1, lo=0, hi=1)
    round_of(strategy, 3, answers_of(3))
    assert strategy.last_exchange.failures == []
    assert len(strategy.last_exchange.clients) == 2


def test_an_expert_whose_trainer_failed_still_lacks_one() -> None:
    """Node 2 replies, with the expert that it was sent; the other's trainer failed."""
    strategy = FlexExperts(2, 1, lo=1, hi=1, seed=3, min_replies=1)
    strategy.scores = {1: np.array([1.0, 0.0]), 2: np.array([0.0, 1.0])}
    answers = answers_of(2, wrong=(0,), masses=(0.0, 4.0))
    answers[1][0]["expert.1.w"] = value(1)
    round_of(strategy, 2, answers)
    assert [failure["partition"] for failure in strategy.last_exchange.failures] == [1]
    relative = strategy._deficits.relative
    assert relative[0] > relative[1]


def test_an_expert_that_was_assigned_and_not_used_has_not_been_trained() -> None:
    """Both clients hold both; all images of both go to the first."""
    strategy, told = FlexExperts(2, 2), answers_of(2, masses=(4.0, 0.0))
    for arrays, _ in told.values():
        arrays["expert.0.w"] = arrays["expert.1.w"] = value(1)
    round_of(strategy, 2, told)
    assert all(scores.tolist() == [0.7, 1.0] for scores in strategy.scores.values())
    relative = strategy._deficits.relative
    assert relative[1] > relative[0] == 0


def test_who_fails_in_a_round_teaches_nothing_of_the_round_before() -> None:
    """Of three rounds client 2 is of use in the first."""
    strategy = FlexExperts(2, 2)
    for wrong in ((), (1,), (1,)):
        told = answers_of(2, wrong=wrong, masses=(4.0, 0.0))
        for arrays, _ in told.values():
            arrays["expert.0.w"] = arrays["expert.1.w"] = value(1)
        round_of(strategy, 2, told)
    np.testing.assert_allclose(strategy.scores[1], [0.7**3, 1.0])
    np.testing.assert_allclose(strategy.scores[2], [0.7, 1.0])


def test_a_mass_without_its_expert_is_refused_and_teaches_nothing() -> None:
    """Or its accuracy would count for an expert that nobody has trained."""
    strategy, told = FlexExperts(2, 2), answers_of(2, masses=(2.0, 2.0))
    told[0][0]["expert.0.w"] = told[0][0]["expert.1.w"] = told[1][0]["expert.0.w"] = value(1)
    round_of(strategy, 2, told)
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 2
    assert failure["reason"] == "a mass for expert 1, whose array 'expert.1.w' is missing"
    assert strategy.scores.keys() == {1}
    assert strategy._deficits.relative.tolist() == [0.0, 0.0]  # of client 1 alone, and even


def test_too_few_places_for_an_even_share_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    strategy = FlexExperts(3, 1)
    for server_round in (1, 2):
        assert len(strategy.assign([0, 1], server_round)) == 2
    (told,) = caplog.messages
    assert "2 clients x held = 1 are 2 places for 3 experts" in told
    FlexExperts(3, 2).assign([0, 1], 1)
    assert len(caplog.messages) == 1


def test_only_what_was_trained_and_used_is_learned_and_survives() -> None:
    strategy = FlexExperts(3, 2, lo=0, hi=2)
    strategy.scores = {1: np.array([0.9, 0.8, 0.1]), 2: np.array([0.9, 0.8, 0.1])}
    a, b = value(1), value(2)
    said = [
        {NUM_EXAMPLES: 4, BaselineKey.MASSES: [3.0, 1.0, 0.0],
         BaselineKey.ACCURACIES: [0.5, 0.25, 0.0]},
        {NUM_EXAMPLES: 4, BaselineKey.MASSES: [1.0, 0.0, 0.0],
         BaselineKey.ACCURACIES: [1.0, 0.0, 0.0]},
    ]  # fmt: skip
    found = round_of(
        strategy,
        2,
        {i: ({"trunk.w": x, "expert.0.w": x, "expert.1.w": x}, said[i])
         for i, x in enumerate((a, b))},
    )  # fmt: skip
    np.testing.assert_allclose(found["expert.0.w"], (3 * a + b) / 4, rtol=1e-6)  # by use
    np.testing.assert_array_equal(found["expert.1.w"], a)
    np.testing.assert_allclose(found["trunk.w"], (a + b) / 2, rtol=1e-6)  # by samples
    np.testing.assert_allclose(
        strategy.scores[1], [0.7 * 0.9 + 0.3 * 0.5, 0.7 * 0.8 + 0.3 * 0.25, 0.1]
    )
    np.testing.assert_allclose(strategy.scores[2], [0.7 * 0.9 + 0.3, 0.8, 0.1])
    other = FlexExperts(3, 2, lo=0, hi=2)
    other.load_state(strategy.state())
    assert other.assign([1, 2, 3], 2) == strategy.assign([1, 2, 3], 2)


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({}, "'masses' is missing"),
        ({BaselineKey.MASSES: [0.5, 0.5, 0.0]}, "'expert-accuracies' is missing"),
        ({BaselineKey.MASSES: [1.0, 1.0, 0.0]}, "in sum 2; allowed: at most 'num-examples', 1"),
        ({BaselineKey.MASSES: [1.0, -1.0, 0.0]}, "masses are"),
        ({BaselineKey.MASSES: [1.0, 0.0, 0.0], BaselineKey.ACCURACIES: [1.5, 0.0, 0.0]},
         "at most 1"),
        ({BaselineKey.MASSES: [1.0, 0.0, 0.0], BaselineKey.ACCURACIES: [float("nan"), 0.0, 0.0]},
         "expert-accuracies are"),
        ({BaselineKey.MASSES: [1.0, 0.0, 0.0], BaselineKey.ACCURACIES: [1.0]}, "3 finite numbers"),
    ],
)  # fmt: skip
def test_a_bad_reply_teaches_nothing(metrics: dict[str, Any], told: str) -> None:
    strategy = FlexExperts(3, 3)
    good = {NUM_EXAMPLES: 1, BaselineKey.MASSES: [1.0, 0.0, 0.0],
            BaselineKey.ACCURACIES: [0.5, 0.0, 0.0]}  # fmt: skip
    arrays = {name: value(3) for name in NAMES}
    round_of(strategy, 2, {0: (arrays, {NUM_EXAMPLES: 1, **metrics}), 1: (arrays, good)})
    (failure,) = strategy.last_exchange.failures
    assert re.search(told, failure["reason"])
    assert strategy.scores.keys() == {2}


def test_bounds_that_nobody_can_meet_are_named_before_a_run() -> None:
    config = Config.parse(
        {"run.system": "flex-moe", "baseline.experts": 4, "baseline.held": 1, "baseline.lo": 2,
         "baseline.hi": 3, "data.num-clients": 4, "data.train-per-client": 40}
    )  # fmt: skip
    data = configured_images(config)
    shares = configured_partition(config, data, num_clients=4)
    with pytest.raises(ConfigError, match=r"expert 0.*nearest feasible bounds"):
        rehearse(config, data, shares)
