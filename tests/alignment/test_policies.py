import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.alignment import align, load_variation
from nmoe_flower.catalogue import POLICIES


def stream(seed=0):
    return np.random.default_rng(seed)


def assign(policy, values, counts, *, seed=0, **more):
    truth = {"truth": values} if policy == "oracle" else {}
    return align(values, counts, policy=policy, rng=stream(seed), **truth, **more)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), flat=st.booleans())
def test_invariants(policy, seed, flat):
    rng = stream(seed)
    clients, experts = int(rng.integers(3, 12)), int(rng.integers(1, 5))
    values = np.zeros((clients, experts)) if flat else rng.integers(0, 3, (clients, experts))
    counts = rng.integers(0, experts + 2, clients)
    counts[:2] = experts  # enough slots for all experts
    names = [f"device-{number}" for number in range(clients)]
    chosen = assign(policy, values, counts, clients=names)
    assert chosen.dtype == bool
    assert (chosen.sum(axis=1) == np.minimum(counts, experts)).all()
    assert (assign(policy, values, counts, clients=names) == chosen).all()
    order = rng.permutation(clients)
    moved = assign(policy, values[order], counts[order], clients=[names[i] for i in order])
    assert (moved == chosen[order]).all()
    if policy in ("sequential", "joint", "oracle"):
        assert (chosen.sum(axis=0) > 0).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_ties_are_broken_at_random(policy):
    """2,000 equal clients, 4 equal experts: 500 each on average, deviation 19.4."""
    flat, ones = np.zeros((2000, 4)), np.ones(2000, dtype=int)
    first, second = (assign(policy, flat, ones, seed=seed) for seed in (0, 1))
    assert (abs(first.sum(axis=0) - 500) < 100).all()
    agree = float((first & second).sum()) / 2000
    assert 0.18 < agree < 0.32  # 1/4 if independent


def test_ties_keep_what_is_better():
    values = np.tile([1.0, 0.0, 0.0, 0.0], (400, 1))
    chosen = assign("balanced", values, np.full(400, 2))
    assert chosen[:, 0].all()
    assert (abs(chosen[:, 1:].sum(axis=0) - 133) < 50).all()


def test_balanced_is_the_paper_s_top_k():
    values = stream(5).random((50, 7))
    counts = stream(6).integers(0, 8, 50)
    expected = np.zeros((50, 7), dtype=bool)
    for row, count in enumerate(counts):
        expected[row, sorted(range(7), key=lambda e: -values[row, e])[:count]] = True
    assert (assign("balanced", values, counts) == expected).all()


def test_greedy_looks_at_fitness_only():
    fitness = np.array([[1.0, 0.0]])
    chosen = align([[0.0, 9.0]], [1], policy="greedy", rng=stream(), fitness=fitness)
    assert chosen.tolist() == [[True, False]]


def test_sequential_and_joint_do_not_herd():
    values = np.tile([0.4, 0.3, 0.2, 0.1], (100, 1))
    spread = {p: load_variation(assign(p, values, np.ones(100, int)).sum(axis=0)) for p in POLICIES}
    assert spread["balanced"] == pytest.approx(np.sqrt(3))
    assert spread["joint"] == 0
    assert spread["sequential"] < 0.2


def test_oracle_uses_the_truth():
    chosen = align(np.zeros((2, 2)), [1, 1], policy="oracle", rng=stream(), truth=np.eye(2))
    assert chosen.tolist() == np.eye(2, dtype=bool).tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_forbidden_pairs_are_never_chosen(policy):
    values = stream(8).random((30, 6))
    values[stream(9).random((30, 6)) < 0.4] = -np.inf
    chosen = assign(policy, values, np.full(30, 6))
    assert (chosen == np.isfinite(values)).all()


@pytest.mark.parametrize(
    ("values", "counts", "more", "text"),
    [
        ([[0.0, np.nan]], [1], {}, "desirability of client 'a' has nan"),
        ([[0.0, 1.0]], [-1], {}, "capacity of client 'a' is -1"),
        ([[0.0, 1.0]], [np.nan], {}, "capacity of client 'a' is nan"),
        ([[0.0, 1.0]], [1, 1], {}, "one per client"),
        ([[0.0, 1.0]], [0], {}, "none of the 1 clients can hold any expert"),
        ([[0.0, 1.0]], [1], {}, "1 slots of all clients together for 2 experts"),
        ([[0.0, 1.0]], [2], {"policy": "best"}, "'best' is unknown; allowed: random, greedy"),
        ([[0.0, 1.0]], [2], {"policy": "greedy", "lo": 1}, "'greedy' takes no lo or hi"),
        ([[0.0, 1.0]], [2], {"policy": "oracle"}, "needs truth"),
        ([[0.0, 1.0]], [2], {"truth": [[1.0]]}, r"truth has shape \(1, 1\)"),
        ([0.0, 1.0], [2], {}, "desirability has shape"),
        ([[0.0], [0.0]], [1, 1], {"clients": ["a", "a"]}, "client 'a' is listed twice"),
    ],
)
def test_bad_input(values, counts, more, text):
    with pytest.raises(ValueError, match=text):
        align(values, counts, **{"rng": stream(), "clients": ["a"], **more})


def test_experts_may_wait_if_asked():
    assert align([[0.0, 1.0]], [1], rng=stream(), lo=0).tolist() == [[False, True]]
