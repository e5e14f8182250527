"""What DP-SGD costs, against Opacus's accountants and against exact Gaussians."""

import math
import sys

import pytest

from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy import (
    Accountant,
    WeightsCost,
    epsilon_of,
    noise_multiplier_for_steps,
    steps_epsilon,
)


@pytest.mark.parametrize(("method", "name"), [("rdp", "RDPAccountant"), ("prv", "PRVAccountant")])
def test_the_cost_is_that_of_opacus_for_the_same_history(method, name):
    accountants = pytest.importorskip("opacus.accountants")
    accountant = getattr(accountants, name)()
    for _ in range(12):
        accountant.step(noise_multiplier=1.1, sample_rate=0.05)
    for _ in range(5):
        accountant.step(noise_multiplier=2.0, sample_rate=0.1)
    # any order, and the same noise in two rows
    history = [(2.0, 0.1, 5), (1.1, 0.05, 7), (1.1, 0.05, 5)]
    assert steps_epsilon(history, 1e-5, method=method) == pytest.approx(
        accountant.get_epsilon(delta=1e-5), rel=1e-6
    )


def test_no_steps_cost_nothing():
    assert steps_epsilon([], 1e-5) == 0
    assert steps_epsilon([(1.0, 0.1, 0)], 1e-5, adjacency="replace-one") == 0


@pytest.mark.parametrize(("noise", "steps"), [(20.0, 30), (5.0, 10)])
def test_replacing_is_bounded_by_a_gaussian_of_twice_the_shift(noise, steps):
    """Without sampling the truth is known: mu = 2 sqrt(T) / noise. RDP is an upper bound."""
    truth = epsilon_of(2 * math.sqrt(steps) / noise, 1e-5)
    bound = steps_epsilon([(noise, 1.0, steps)], 1e-5, adjacency="replace-one")
    assert truth < bound < 1.2 * truth
    once = steps_epsilon([(noise, 1.0, steps)], 1e-5)
    assert epsilon_of(math.sqrt(steps) / noise, 1e-5) < once < bound


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(8.0, 0.2, 20), (1.0, 0.02, 300)])
def test_the_planned_noise_pays_for_the_steps_and_hardly_more(epsilon, rate, steps, adjacency):
    noise = noise_multiplier_for_steps(
        epsilon, 1e-5, sample_rate=rate, steps=steps, adjacency=adjacency
    )
    assert steps_epsilon([(noise, rate, steps)], 1e-5, adjacency=adjacency) <= epsilon
    less = [(0.99 * noise, rate, steps)]
    assert steps_epsilon(less, 1e-5, adjacency=adjacency) > 0.99 * epsilon


@pytest.mark.parametrize(
    ("history", "text"),
    [
        ([(0.0, 0.1, 1)], "noise_multiplier must be positive"),
        ([(1.0, 0.0, 1)], r"sample_rate must be in \(0, 1\], got 0"),
        ([(1.0, 1.5, 1)], r"sample_rate must be in \(0, 1\], got 1.5"),
        ([(1.0, 0.1, -1)], "must not be negative, got -1"),
    ],
)
def test_impossible_histories_are_refused(history, text):
    with pytest.raises(ConfigError, match=text):
        steps_epsilon(history, 1e-5)


def test_impossible_plans_are_refused():
    with pytest.raises(ConfigError, match="delta must be in"):
        steps_epsilon([], 1.0)
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        noise_multiplier_for_steps(1.0, 1e-5, sample_rate=0.1, steps=0)
    with pytest.raises(ConfigError, match="no noise keeps 10 steps"):
        noise_multiplier_for_steps(1e-3, 1e-5, sample_rate=1.0, steps=10)
    with pytest.raises(ConfigError, match="prv under add-remove"):
        steps_epsilon([(1.0, 0.1, 1)], 1e-5, adjacency="replace-one", method="prv")


def test_a_missing_opacus_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(ConfigError, match=r"\[privacy\]"):
        steps_epsilon([(3.21, 0.1, 1)], 1e-5)


# --- together with matrices -----------------------------------------------------------------------


def account(*, released=True, exposed=()):
    accountant = Accountant()
    if released:
        accountant.spend(0, noise_multiplier=2.0, num_examples=100)
        accountant.spend(1, noise_multiplier=1.0, num_examples=100)
    accountant.weights = {0: WeightsCost(7, 3.0, 8.0), 1: WeightsCost(5, 1.0, 2.5)}
    accountant.exposed = exposed
    return accountant


def test_matrices_and_weights_add_up_per_client():
    accountant = account()
    first, second = (accountant.epsilon(client, delta=1e-3) for client in (0, 1))
    assert accountant.together(delta=1e-3, adjacency="replace-one") == (
        max(first + 8.0, second + 2.5), 2e-3,
    )  # fmt: skip
    assert accountant.together(delta=1e-3, adjacency="add-remove") == (
        max(first + 3.0, second + 1.0), 2e-3,
    )  # fmt: skip
    alone = account(released=False)
    assert alone.together(delta=1e-3, adjacency="replace-one") == (8.0, 1e-3)


def test_end_to_end_is_said_only_if_nothing_leaves_without_noise():
    both = account().statement(delta=1e-3)
    total, _ = account().together(delta=1e-3, adjacency="replace-one")
    for part in ("Correlation matrices: epsilon", "DP-SGD with epsilon 3 at delta 0.001",
                 "one sample replaced 8 at", "at most 7)", f"epsilon {total:.4g} at delta 0.002",
                 "all that leaves a client while this model is trained, end to end",
                 "Not covered: what is sent after this training"):  # fmt: skip
        assert part in both, both
    leaky = account(exposed=("probes", "matrices")).statement(delta=1e-3)
    assert "without noise: probes, matrices" in leaky
    assert "not private end to end" in leaky
    assert "all that leaves a client" not in leaky
    weights = account(released=False).statement(delta=1e-3, adjacency="add-remove")
    assert "Correlation matrices" not in weights
    assert "In this adjacency: epsilon 3 at delta 0.001" in weights


def test_the_account_is_carried_over():
    other = Accountant()
    other.load_state(account(exposed=("probes",)).state())
    assert other.weights == account().weights
    assert other.exposed == ("probes",)
    assert other.statement(delta=1e-3) == account(exposed=("probes",)).statement(delta=1e-3)
    with pytest.raises(ConfigError, match="would forget"):
        other.load_state({"spent": {}})
