"""FedJETs' server half: who trains which expert, and who anchors one."""

import re
from typing import Any

import numpy as np
import pytest

from nmoe_flower.baselines.fedjets import ChosenExperts, choose_anchors
from nmoe_flower.config import Config
from nmoe_flower.data import configured_images, configured_partition
from nmoe_flower.errors import ConfigError
from nmoe_flower.records import NUM_EXAMPLES, BaselineKey, FeedbackKey
from nmoe_flower.rehearsal import rehearse
from tests.strategies.test_partial_experts import INITIAL, NAMES, round_of, value

COUNTS = {0: [5, 5, 0], 1: [9, 1, 0], 2: [8, 2, 0], 3: [0, 1, 9], 4: [0, 8, 2]}


def test_the_gate_chooses_and_unknown_clients_draw() -> None:
    strategy = ChosenExperts(4, 2, anchors=False)
    strategy.scores = {1: np.array([0.1, 0.5, 0.1, 0.3]), 2: np.array([0.4, 0.0, 0.6, 0.0])}
    chosen = strategy.assign([1, 2], 1)
    assert chosen == {1: [1, 3], 2: [0, 2]}
    drawn = strategy.assign(range(3, 40), 1)
    assert all(len(set(held)) == 2 for held in drawn.values())
    assert {expert for held in drawn.values() for expert in held} == {0, 1, 2, 3}
    assert drawn == ChosenExperts(4, 2, anchors=False).assign(range(3, 40), 5)
    other = ChosenExperts(4, 2, anchors=False)
    other.load_state(strategy.state())
    assert other.assign([1, 2], 7) == chosen


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({0: [1, 2], 1: [1, 2, 3]}, "client 1 are of 3 classes, those of client 0 of 2"),
        ({0: [], 1: []}, r"client 0 are \[\]; allowed: 0 or more images"),
        ({0: [1, 2], 1: [3, float("nan")]}, r"client 1 are \[3, nan\]; allowed: 0 or more"),
        ({0: [1, 2], 1: [3, -1]}, r"client 1 are \[3, -1\]"),
        ({0: [1, 2], 1: [0, 0]}, r"client 1 are \[0, 0\]; allowed: .* in sum 1 or more"),
        ({0: [1, 2], 1: ["a", "b"]}, r"client 1 are \['a', 'b'\]; allowed: 0 or more images"),
        ({0: [1, 2], 1: None}, "client 1 are None; allowed: 0 or more images"),
    ],
)
def test_counts_that_are_none_of_one_set_of_classes_are_refused(counts: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        choose_anchors(counts, 2)


def test_anchors_train_their_own_expert_and_are_told() -> None:
    # 1 has the largest share of a class; 3 shares nothing with it but class 1; then 4 is farthest.
    assert choose_anchors(COUNTS, 3) == [1, 3, 4]
    assert choose_anchors(dict(reversed(COUNTS.items())), 3) == [1, 3, 4]
    strategy = ChosenExperts(3, 2, anchors=True)
    strategy.class_counts = COUNTS
    strategy.scores = {client: np.array([0.1, 0.4, 0.5]) for client in COUNTS}
    chosen = strategy.assign(list(COUNTS), 1)
    assert chosen == {0: [1, 2], 1: [0], 2: [1, 2], 3: [1], 4: [2]}
    for client, held in chosen.items():
        told = strategy.words(client, held)
        assert told[FeedbackKey.EXPERTS] == held
        assert told.get(BaselineKey.ANCHOR) == {1: 0, 3: 1, 4: 2}.get(client)
    # If all are anchors, each expert is one client's own.
    every = ChosenExperts(5, 2, anchors=True)
    every.class_counts = COUNTS
    assert sorted(held[0] for held in every.assign(list(COUNTS), 1).values()) == list(range(5))


def test_anchors_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"baseline\.anchors = true.*told of none"):
        ChosenExperts(2, 1, anchors=True).assign([0, 1], 1)
    config = Config.parse(
        {"run.system": "fedjets", "baseline.experts": 5, "data.num-clients": 4,
         "data.train-per-client": 40}
    )  # fmt: skip
    data = configured_images(config)
    shares = configured_partition(config, data, num_clients=4)
    with pytest.raises(ConfigError, match=r"baseline\.experts = 5 is above 4"):
        rehearse(config, data, shares)


def test_the_gate_is_everybodys_and_an_expert_its_trainers() -> None:
    strategy = ChosenExperts(4, 2, anchors=False)
    gate = "gate.2.w"
    first = {**INITIAL, "expert.3.w": value(7), gate: value(8)}
    strategy.scores = {1: np.array([0.9, 0, 0.1, 0]), 2: np.array([0, 0.9, 0.1, 0])}
    for client, expert in ((1, 0), (2, 1)):
        part = strategy.part(first, client, strategy.assigned(client, 1))
        assert part.keys() == {"trunk.w", "gate.w", gate, f"expert.{expert}.w", "expert.2.w"}
    a, b = value(1), value(2)
    answers = {
        i: ({"trunk.w": x, "gate.w": x, f"expert.{i}.w": x, "expert.2.w": x},
            {NUM_EXAMPLES: 1 + 2 * i, BaselineKey.USAGE: [0.2, 0.5, 0.3, 0.0]})
        for i, x in enumerate((a, b))
    }  # fmt: skip
    found = round_of(strategy, 2, answers, first)
    for name in ("trunk.w", "gate.w", "expert.2.w"):
        np.testing.assert_allclose(found[name], (a + 3 * b) / 4, rtol=1e-6)
    np.testing.assert_allclose(found["expert.0.w"], a, rtol=1e-6)
    np.testing.assert_allclose(found["expert.1.w"], b, rtol=1e-6)
    for untouched in ("expert.3.w", gate):
        np.testing.assert_array_equal(found[untouched], first[untouched])
    assert strategy.scores.keys() == {1, 2}


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({}, "'usage' is missing"),
        ({BaselineKey.USAGE: [0.5, 0.5]}, "3 finite numbers"),
        ({BaselineKey.USAGE: [float("nan"), 0.0, 0.0]}, "usage are"),
        ({BaselineKey.USAGE: [-0.1, 0.5, 0.6]}, "usage are"),
        ({BaselineKey.USAGE: [0.5, 0.5, 0.002]}, "in sum 1.002; allowed: 1"),
        ({BaselineKey.USAGE: [0.0, 0.0, 0.0]}, "in sum 0; allowed: 1"),
    ],
)
def test_a_bad_reply_is_named_and_counts_for_nothing(metrics: dict[str, Any], told: str) -> None:
    strategy, arrays = ChosenExperts(3, 3, anchors=False), {name: value(3) for name in NAMES}
    good = {NUM_EXAMPLES: 1, BaselineKey.USAGE: [0.5, 0.5, 0.0]}
    round_of(strategy, 2, {0: (arrays, {NUM_EXAMPLES: 1, **metrics}), 1: (arrays, good)})
    (failure,) = strategy.last_exchange.failures
    assert re.search(told, failure["reason"])
    assert strategy.scores.keys() == {2}
