"""FedMoE's server half: in turn, then by use, with trades; experts averaged over their owners."""

import re
from typing import Any

import numpy as np
import pytest

from nmoe_flower.baselines.fedmoe import UsedExperts
from nmoe_flower.records import NUM_EXAMPLES, BaselineKey
from tests.strategies.test_partial_experts import INITIAL, NAMES, round_of, value

USES = {
    0: [0.5, 0.4, 0.05, 0.05],
    1: [0.5, 0.1, 0.35, 0.05],  # nearest to 0
    2: [0.0, 0.1, 0.1, 0.8],
}


def play(strategy: UsedExperts, rounds: int) -> list[dict[int, list[int]]]:
    """What every client held in rounds in which all replied."""
    held = []
    for server_round in range(1, rounds + 1):
        chosen = {c: list(e) for c, e in strategy.assign(list(USES), server_round).items()}
        held.append(chosen)
        strategy._found = {client: np.array(USES[client]) for client in USES}
        strategy.learn()
    return held


def test_all_are_tried_then_the_most_used_are_held_and_one_is_traded() -> None:
    held = play(UsedExperts(4, 2), 8)
    for client in USES:
        assert sorted(held[0][client] + held[1][client]) == [0, 1, 2, 3]
    for at in range(2, 7):
        assert held[at] == {0: [0, 1], 1: [0, 2], 2: [1, 3]}
    # Client 0 gives up 1 (0.4 < 0.5) for what 1 uses most beside 0; 1 gives up 2 for 1. Nearest to
    # 2 is 1 by the cosine (0.085 / 0.62 / 0.81 = 0.17, of 0: 0.085 / 0.65 / 0.81 = 0.16).
    assert held[7] == {0: [0, 2], 1: [0, 1], 2: [0, 3]}


def test_it_goes_on_from_its_state() -> None:
    whole, first, second = UsedExperts(4, 2), UsedExperts(4, 2), UsedExperts(4, 2)
    held = play(whole, 14)
    assert play(first, 7) == held[:7]
    second.load_state(first.state())
    assert play(second, 7) == held[7:]


def test_who_holds_all_has_the_mean_of_all_and_one_owner_is_copied() -> None:
    answers = {
        i: ({name: value(10 * i + k) for k, name in enumerate(NAMES)},
            {NUM_EXAMPLES: 1 + i, BaselineKey.USAGE: [0.2, 0.5, 0.3]})
        for i in range(2)
    }  # fmt: skip
    found = round_of(UsedExperts(3, 3), 2, answers)
    for name in NAMES:
        mean = (answers[0][0][name] + 2 * answers[1][0][name]) / 3
        np.testing.assert_allclose(found[name], mean, rtol=1e-5, atol=1e-6)
    uses = [[0.0, 0.4, 0.6], [0.1, 0.0, 0.9]]  # clients 1 and 2 begin with 1 and 2, and 2 and 0
    mine = {
        i: ({n: v for n, v in arrays.items() if n in (f"expert.{own}.w", "trunk.w")},
            {**said, BaselineKey.USAGE: uses[i]})
        for (i, (arrays, said)), own in zip(answers.items(), (1, 0), strict=True)
    }  # fmt: skip
    found = round_of(UsedExperts(3, 2), 2, mine)
    for i, own in ((0, 1), (1, 0)):
        np.testing.assert_array_equal(found[f"expert.{own}.w"], answers[i][0][f"expert.{own}.w"])
    np.testing.assert_array_equal(found["expert.2.w"], INITIAL["expert.2.w"])  # nobody sent it


def test_a_use_of_an_expert_that_was_not_assigned_is_refused() -> None:
    strategy, arrays = UsedExperts(4, 2), {"trunk.w": value(1)}  # node i begins with i and i + 1
    told = [{NUM_EXAMPLES: 1, BaselineKey.USAGE: [0.0, 0.5, 0.5, 0.0]}] * 2
    round_of(strategy, 2, {i: (arrays, said) for i, said in enumerate(told)})
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 2
    assert failure["reason"] == "a use of expert 1, which this client was not assigned"
    assert strategy.used.keys() == {1}


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({}, "'usage' is missing"),
        ({BaselineKey.USAGE: [0.5, 0.5]}, "3 finite numbers"),
        ({BaselineKey.USAGE: [1.5, 0.0, 0.0]}, "at most 1"),
        ({BaselineKey.USAGE: [0.9, 0.9, 0.0]}, "in sum 1.8; allowed: 1"),
        ({BaselineKey.USAGE: [0.0, 0.0, 0.0]}, "in sum 0; allowed: 1"),
        ({BaselineKey.USAGE: [float("inf"), 0.0, 0.0]}, "usage are"),
    ],
)
def test_a_bad_reply_is_named_and_counts_for_nothing(metrics: dict[str, Any], told: str) -> None:
    strategy, arrays = UsedExperts(3, 3), {name: value(3) for name in NAMES}
    good = {NUM_EXAMPLES: 1, BaselineKey.USAGE: [0.5, 0.5, 0.0]}
    round_of(strategy, 2, {0: (arrays, {NUM_EXAMPLES: 1, **metrics}), 1: (arrays, good)})
    (failure,) = strategy.last_exchange.failures
    assert re.search(told, failure["reason"])
    assert strategy.used.keys() == {2}
