import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import BudgetError, ConfigError
from nmoe_flower.privacy import (
    Accountant,
    Budget,
    epsilon_spent,
    mu_of,
    noise_multiplier_for,
    refresh_interval,
)

RELEASES = (1, 10, 20, 50, 100, 200)
# epsilon -> mu_total and the noise per release at delta 1e-5, from mpmath with 40 digits
TABLE = {
    0.5: (".142", "7.03", "22.2", "31.4", "49.7", "70.3", "99.4"),
    1: (".268", "3.73", "11.8", "16.7", "26.4", "37.3", "52.8"),
    2: (".502", "1.99", "6.30", "8.92", "14.1", "19.9", "28.2"),
    4: (".925", "1.08", "3.42", "4.84", "7.64", "10.8", "15.3"),
    8: ("1.666", ".60", "1.90", "2.68", "4.24", "6.00", "8.49"),
}


def printed(value, like):
    return f"{value:.{len(like.split('.')[1])}f}"


@pytest.mark.parametrize("epsilon", TABLE)
def test_the_calibration_table_to_its_digits(epsilon):
    mu, *noises = TABLE[epsilon]
    assert printed(mu_of(epsilon, 1e-5), mu) == printed(float(mu), mu)
    for releases, noise in zip(RELEASES, noises, strict=True):
        found = noise_multiplier_for(epsilon, 1e-5, releases)
        assert printed(found, noise) == printed(float(noise), noise)


@pytest.mark.parametrize(
    ("noise", "releases", "epsilon"), [(7.0, 50, "4.43"), (5.0, 50, "6.57"), (0.919, 1, "4.83")]
)
def test_costs_worked_out_elsewhere(noise, releases, epsilon):
    assert f"{epsilon_spent(noise, releases, 1e-5):.2f}" == epsilon


def test_the_published_noise_holds_for_one_round_only():
    # FedSC's released code adds noise of std 1.04e-3 for 200 rounds, on a ball of radius sqrt(mu):
    # sensitivity sqrt(2) mu / n, CIFAR-10 n = 5000 and mu = 4, SVHN n = 73257 / 5 and mu = 2
    for size, mu, once, composed in ((5000, 4, "4.83", "183"), (73257 / 5, 2, "0.67", "14")):
        noise = 1.04e-3 * size / (2**0.5 * mu)
        assert f"{epsilon_spent(noise, 1, 1e-5):.2f}" == once
        assert f"{epsilon_spent(noise, 200, 1e-5):.0f}" == composed


@pytest.mark.parametrize(("noise", "releases"), [(7.0, 50), (2.68, 20), (3.73, 1)])
def test_opacus_agrees(noise, releases):
    exact = epsilon_spent(noise, releases, 1e-5)
    prv = epsilon_spent(noise, releases, 1e-5, method="prv")
    rdp = epsilon_spent(noise, releases, 1e-5, method="rdp")
    assert exact <= prv <= exact + 0.011  # Opacus computes to 0.01
    assert exact < rdp < 1.15 * exact


def test_opacus_agrees_on_unequal_noise():
    accountant = Accountant()
    for noise in (3.0, 5.0, 3.0, 8.0):
        accountant.spend(0, noise_multiplier=noise, num_examples=100)
    exact = accountant.epsilon(0, delta=1e-5)
    assert exact == pytest.approx(
        epsilon_spent((2 / 9 + 1 / 25 + 1 / 64) ** -0.5, 1, 1e-5), rel=1e-12
    )
    assert exact <= accountant.epsilon(0, delta=1e-5, method="prv") <= exact + 0.011
    assert exact < accountant.epsilon(0, delta=1e-5, method="rdp") < 1.2 * exact


def test_without_opacus_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(ConfigError, match=r"method rdp needs Opacus: .*\[privacy\]"):
        epsilon_spent(1.0, 1, 1e-5, method="rdp")
    assert epsilon_spent(1.0, 1, 1e-5) > 0


@given(epsilon=st.floats(0.05, 20), delta=st.floats(1e-9, 1e-3), releases=st.integers(1, 300))
def test_noise_fitted_to_a_budget_lasts_exactly_as_long(epsilon, delta, releases):
    noise = noise_multiplier_for(epsilon, delta, releases)
    assert epsilon_spent(noise, releases, delta) == pytest.approx(epsilon, rel=1e-6)
    assert epsilon_spent(noise, releases, delta) <= epsilon
    assert epsilon_spent(noise, releases + 1, delta) > epsilon
    assert epsilon_spent(noise * 0.999, releases, delta) > epsilon


@given(releases=st.integers(1, 40))
def test_the_accountant_allows_what_was_planned_and_no_more(releases):
    accountant = Accountant(Budget(2.0, 1e-5))
    noise = noise_multiplier_for(2.0, 1e-5, releases)
    for _ in range(releases):
        accountant.spend(4, noise_multiplier=noise, num_examples=2500)
    assert accountant.epsilon(4, delta=1e-5) == pytest.approx(2.0)
    with pytest.raises(BudgetError, match=f"client 4 has made {releases} releases at epsilon 2; "):
        accountant.spend(4, noise_multiplier=noise, num_examples=2500)
    assert accountant.releases(4) == releases  # the refused one does not count
    accountant.spend(5, noise_multiplier=noise, num_examples=2500)  # others have their own budget


def test_clients_pay_for_their_own_releases():
    accountant = Accountant()
    for client in (0, 0, 0, 1):
        accountant.spend(client, noise_multiplier=4.0, num_examples=100)
    assert accountant.epsilon(0, delta=1e-5) == epsilon_spent(4.0, 3, 1e-5)
    assert accountant.epsilon(1, delta=1e-5) == epsilon_spent(4.0, 1, 1e-5)
    assert accountant.epsilon(2, delta=1e-5) == 0.0
    assert accountant.worst(delta=1e-5) == accountant.epsilon(0, delta=1e-5)
    assert accountant.history(0) == [(4.0, 3)]
    assert Accountant().worst(delta=1e-5) == 0.0


def test_a_resumed_accountant_has_forgotten_nothing():
    budget = Budget(2.0, 1e-5)
    noise = noise_multiplier_for(2.0, 1e-5, 3)
    first = Accountant(budget)
    first.spend(7, noise_multiplier=noise, num_examples=100)
    first.spend(7, noise_multiplier=2 * noise, num_examples=100)
    second = Accountant(budget)
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert second.epsilon(7, delta=1e-5) == first.epsilon(7, delta=1e-5)
    second.spend(7, noise_multiplier=noise, num_examples=100)
    with pytest.raises(BudgetError):
        second.spend(7, noise_multiplier=noise, num_examples=100)
    with pytest.raises(ConfigError, match="loading would forget them"):
        second.load_state(first.state())


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"spent": [1]},
        {"spent": {"a": []}},
        {"spent": {"0": [[1.0]]}},
        {"spent": {"0": [[0.0, 3]]}},
        {"spent": {"0": [[1.0, -3]]}},
        {"spent": {"0": [["nan", 3]]}},
        {"spent": {}, "weights": {"0": [5, -1.0, 1.0]}},
        {"spent": {}, "weights": {"0": [5, 1.0, "nan"]}},
        {"spent": {}, "released": "nothing"},
    ],
)
def test_a_malformed_state_is_refused(state):
    accountant = Accountant()
    with pytest.raises(ConfigError):
        accountant.load_state(state)
    assert accountant.state() == {"spent": {}}


def test_the_statement_says_what_is_not_covered():
    accountant = Accountant()
    accountant.spend(0, noise_multiplier=2.68, num_examples=2500)
    text = accountant.statement(delta=1e-5)
    spent = f"epsilon {epsilon_spent(2.68, 1, 1e-5):.4g} at delta 1e-05"
    for part in (spent, "at most 1)", "one sample with", "replace one sample",
                 "Not covered: the weights", "not differentially private"):  # fmt: skip
        assert part in text, text
    other = accountant.statement(delta=1e-5, adjacency="add-remove")
    assert "add or remove one sample" in other
    assert "replace one sample" not in other


def test_refresh_interval():
    assert [refresh_interval(200, n) for n in (1, 20, 30, 200, 500)] == [200, 10, 7, 1, 1]
    assert len(range(0, 200, refresh_interval(200, 30))) <= 30


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: noise_multiplier_for(0, 1e-5, 1), "epsilon must be positive and finite, got 0"),
        (lambda: noise_multiplier_for(1, 1e-3, 1, num_examples=1000), "delta must be below 1/1000"),
        (lambda: noise_multiplier_for(1, 1e-5, 0), "releases must be at least 1, got 0"),
        (lambda: epsilon_spent(0.0, 1, 1e-5), "noise_multiplier must be positive and finite"),
        (lambda: epsilon_spent(1.0, -1, 1e-5), "releases must not be negative, got -1"),
        (lambda: epsilon_spent(1.0, 1, 1e-5, method="gdp"), "exact, rdp or prv, got 'gdp'"),
        (lambda: Budget(-1.0, 1e-5), "epsilon must be"),
        (lambda: Budget(1.0, 1.0), "delta must be"),
        (lambda: refresh_interval(0, 1), "rounds must be at least 1"),
        (
            lambda: Accountant(Budget(1.0, 1e-2)).spend(0, noise_multiplier=9, num_examples=100),
            "delta must be below 1/100",
        ),
        (lambda: Accountant().spend(0, noise_multiplier=-1, num_examples=9), "noise_multiplier"),
        (lambda: Accountant().spend(0, noise_multiplier=1, num_examples=0), "num_examples must"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ConfigError, match=text):
        call()
