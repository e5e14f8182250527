"""Fitness, usage, deficits, capacity and desirability: hand arithmetic."""

import numpy as np
import pytest

from nmoe_flower.alignment import (
    Capacity,
    DeficitQueue,
    ExpertCost,
    Fitness,
    Usage,
    desirability,
    reward,
)
from nmoe_flower.errors import CheckpointError, ConfigError


def test_fitness_follows_its_equation():
    fitness = Fitness(2, 2, rate=0.3, decay=0.9, prior=0.5)
    fitness.update([0, 1, 1], [0, 1, 1], [1.0, 0.0, 0.4])
    # (0, 0): 0.7 * 0.5 + 0.3 * 1; (1, 1): reward is the mean, 0.2: 0.35 + 0.06
    assert fitness.values.ravel() == pytest.approx([0.65, 0.5, 0.5, 0.41])
    fitness.update([], [], [])
    # decay to the prior: 0.5 + 0.9 * 0.15 and 0.5 - 0.9 * 0.09
    assert fitness.values.ravel() == pytest.approx([0.635, 0.5, 0.5, 0.419])
    assert fitness.visits.tolist() == [[1, 0], [0, 1]]


def test_fitness_equals_a_slow_loop():
    rng = np.random.default_rng(0)
    fitness, slow = Fitness(6, 4), np.full((6, 4), 0.5)
    for _ in range(5):
        flat = rng.choice(24, 10, replace=False)
        rewards = rng.random(10)
        fitness.update(flat // 4, flat % 4, rewards)
        for pair in range(24):
            old = slow[pair // 4, pair % 4]
            if pair in flat:
                new = 0.7 * old + 0.3 * rewards[list(flat).index(pair)]
            else:
                new = 0.5 + 0.98 * (old - 0.5)
            slow[pair // 4, pair % 4] = new
    assert fitness.values == pytest.approx(slow)


@pytest.mark.parametrize(
    ("expert", "value", "text"),
    [
        (0, np.nan, "reward nan for expert 0"),
        (0, np.inf, "reward inf"),
        (1, 0.5, "feedback for expert 1, which it was not assigned"),
        (7, 0.5, "client 1, expert 7: unknown"),
    ],
)
def test_bad_feedback_is_dropped_by_name(expert, value, text):
    clean, fitness = Fitness(2, 2), Fitness(2, 2)
    assigned = np.array([[True, False], [True, False]])
    dropped = fitness.update([0, 1, 1], [0, 0, expert], [0.9, 0.9, value], assigned=assigned)
    clean.update([0], [0], [0.9])
    assert list(dropped) == [1]
    assert text in dropped[1]
    assert (fitness.values == clean.values).all()
    assert (fitness.visits == clean.visits).all()


def test_centred_scores_take_away_what_everybody_likes():
    fitness = Fitness(3, 2, rate=1.0, centred=True)
    fitness.update([0, 1, 0], [0, 0, 1], [0.9, 0.7, 0.2])
    # column 0: mean 0.8; column 1: one client, so no news; client 2 knows nothing: the prior
    assert fitness.scores.ravel() == pytest.approx([0.6, 0.5, 0.4, 0.5, 0.5, 0.5])


def test_exploration_bonus():
    fitness = Fitness(1, 2, exploration=2.0)
    for _ in range(3):
        fitness.update([0], [0], [0.5])
    # 2 sqrt(ln 3 / 4) and 2 sqrt(ln 3)
    assert fitness.bonus[0] == pytest.approx([np.sqrt(np.log(3)), 2 * np.sqrt(np.log(3))])
    used = desirability(fitness, np.zeros(2), scale="none")
    assert used[0] == pytest.approx(0.5 + fitness.bonus[0])


def test_new_clients_start_at_the_prior():
    fitness = Fitness(1, 2, rate=1.0)
    fitness.update([0], [0], [1.0])
    fitness.grow(3)
    assert fitness.values.tolist() == [[1.0, 0.5], [0.5, 0.5], [0.5, 0.5]]


def test_reward_is_relative_to_the_client_s_best_expert():
    # exp(0) and exp(-ln 2), half weight; shares 0.25 and 0.75, half weight
    assert reward([1.0, 1.0 + np.log(2)], [0.25, 0.75]) == pytest.approx([0.625, 0.625])


def test_usage_decays_and_the_total_does_not():
    usage = Usage(2, decay=0.8)
    assert usage.relative.tolist() == [0, 0]
    usage.update([10, 30])
    usage.update([0, 0])
    assert usage.recent == pytest.approx([0.8 * 2, 0.8 * 6])
    assert usage.total.tolist() == [10, 30]
    assert usage.relative == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("made", [Usage, DeficitQueue])
@pytest.mark.parametrize("loads", [[1, -1], [1, np.nan], [1, 2, 3]])
def test_bad_loads_leave_the_state_unharmed(made, loads):
    book = made(2)
    book.update([3, 1])
    before = book.state()
    with pytest.raises(ConfigError, match="load"):
        book.update(loads)
    assert all((before[key] == book.state()[key]).all() for key in before)


def test_deficit_queue():
    queue = DeficitQueue(2)
    queue.update([10, 2])  # targets 6: queue max(0, -4), 4
    assert queue.queue.tolist() == [0, 4]
    queue.update([0, 6])  # targets 3: 0 + 3, 4 + 3 - 6
    assert queue.queue.tolist() == [3, 1]
    assert queue.relative == pytest.approx([1, 1 / 3])


def test_desirability_has_one_scale():
    scores = [[1.0, 3.0], [5.0, 5.0]]
    assert desirability(scores, [1.0, -1.0]).tolist() == [[-2, 2], [-1, 1]]
    ranked = desirability(scores, [0, 0], scale="rank", fitness_weight=2.0)
    assert ranked.tolist() == [[0, 2], [1, 1]]
    queue = DeficitQueue(2)
    queue.update([4, 0])  # mean 2, targets 2: relative queue 0 and 1
    lacking = desirability(scores, [0, 0], deficits=queue, deficit_weight=3.0)
    assert lacking.tolist() == [[-1, 4], [0, 3]]
    with pytest.raises(ConfigError, match="scale 'log'"):
        desirability(scores, [0, 0], scale="log")


COST = ExpertCost(size=1e6, memory=4e6, flops=1e6, base_memory=2e6, base_seconds=1.0)
HONEST = {"compute": [1e8], "memory": [15e6], "download": [1e6], "upload": [2e6], "latency": [0.5]}


def world(clients=1, *, deadline=np.inf, most=8):
    capacity = Capacity(clients, COST, deadline=deadline, most=most, rate=0.5)
    everyone = {name: np.repeat(value, clients) for name, value in HONEST.items()}
    assert capacity.report(np.arange(clients), **everyone) == {}
    return capacity


def test_capacity_is_what_memory_and_deadline_allow():
    # memory: (15 - 2) / 4 = 3.25. Time, 100 samples: 1.5 + k (1 + 1 + 0.5) <= 6.5 gives k = 2.
    assert world().experts(100).tolist() == [3]
    assert world(deadline=6.5).experts(100).tolist() == [2]
    assert world(deadline=1.0).experts(100).tolist() == [0]
    assert world(most=1).experts(100).tolist() == [1]


def test_the_clock_corrects_a_client_that_lies():
    capacity = world(2, deadline=12.0)
    assert capacity.experts(100).tolist() == [3, 3]
    # predicted for k = 3: 1.5 + 7.5 = 9 s; client 1 takes 27 s: three times slower
    assert capacity.observe([0, 1], [3, 3], [100, 100], [9.0, 27.0]) == {}
    assert capacity.slowdown == pytest.approx([1.0, 3.0])
    assert capacity.experts(100).tolist() == [3, 1]  # 3 (1.5 + 2.5 k) <= 12
    capacity.observe([1], [1], [100], [4.0])  # as it claimed: half of the way, in the logarithm
    assert capacity.slowdown[1] == pytest.approx(np.sqrt(3))


def test_bad_reports_are_dropped_by_name_and_the_old_ones_stay():
    capacity = world(4)
    reports = {name: np.repeat(value, 4) for name, value in HONEST.items()}
    reports["memory"] = np.array([-1.0, 20e6, np.nan, 20e6])
    reports["compute"][3] = 1e30
    dropped = capacity.report([0, 1, 2, 3], **reports)
    assert sorted(dropped) == [0, 2, 3]
    assert "client 0: memory is -1" in dropped[0]
    assert "client 3: compute is 1e+30" in dropped[3]
    assert capacity.experts(1).tolist() == [3, 4, 3, 3]
    assert "unknown" in capacity.report([9], **HONEST)[9]


def test_bad_measurements_are_dropped_by_name():
    capacity = world(2)
    assert sorted(capacity.observe([0, 1, 5], [1, 0, 1], [1, 1, 1], [np.nan, 1.0, 1.0])) == [
        0,
        1,
        5,
    ]
    assert capacity.slowdown.tolist() == [1, 1]


def books():
    fitness, usage, queue, capacity = Fitness(2, 2), Usage(2), DeficitQueue(2), world(2)
    fitness.update([0], [1], [1 / 3])
    usage.update([1 / 3, 0.1])
    queue.update([1 / 3, 0.1])
    capacity.observe([0], [2], [100], [7.7])
    fresh = Fitness(1, 2), Usage(2), DeficitQueue(2), Capacity(2, COST, most=8)
    return list(zip((fitness, usage, queue, capacity), fresh, strict=True))


@pytest.mark.parametrize("at", range(4))
def test_state_comes_back_bit_by_bit(at):
    book, fresh = books()[at]
    fresh.load_state(book.state())
    for key, value in book.state().items():
        assert fresh.state()[key].tobytes() == value.tobytes()
        assert fresh.state()[key].dtype == value.dtype
    with pytest.raises(CheckpointError):
        fresh.load_state({"other": np.zeros(2)})
    assert fresh.state().keys() == book.state().keys()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Fitness(1, 1, rate=1.5),
        lambda: Fitness(1, 1, decay=np.nan),
        lambda: Usage(1, decay=1.0),
        lambda: DeficitQueue(2, shares=[0, 0]),
        lambda: ExpertCost(size=-1, memory=1, flops=1),
        lambda: Capacity(1, COST, most=-1),
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="allowed"):
        wrong()
