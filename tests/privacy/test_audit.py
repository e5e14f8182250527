"""The audit passes the mechanism and fails broken ones, each for the reason it is broken."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy import (
    GaussianMechanism,
    audit_releases,
    membership_auc,
    noise_edge,
    noise_multiplier_for,
    sensitivity,
)
from nmoe_flower.privacy.audit import _epsilon_bound, _mu_bound, _upper

SIZE, CLIP = 4, 2.0


def audit(release, **changes):
    settings = {"noise_multiplier": 1.0, "clip": CLIP, "num_examples": SIZE, "trials": 1000}
    return audit_releases(release, rng=np.random.default_rng(0), **(settings | changes))


def real(**options):
    """The mechanism as clients use it."""
    mechanism = GaussianMechanism(1.0, CLIP, SIZE, **options)
    generator = torch.Generator().manual_seed(0)

    def release(data, number):
        total = mechanism.correlation()
        total.add(torch.from_numpy(data))
        matrix = total.result()
        return torch.stack([mechanism.release(matrix, generator) for _ in range(number)]).numpy()

    return release


def made_of(noise, *, clip=True):
    """A mechanism written here once more in NumPy, whose noise is ``noise(rng, number)``."""
    rng = np.random.default_rng(1)

    def release(data, number):
        length = np.linalg.norm(data, axis=1, keepdims=True)
        z = data * np.minimum(1, CLIP / np.maximum(length, 1e-12)) if clip else data
        return z.T @ z / SIZE + sensitivity(CLIP, SIZE) * noise(rng, number)

    return release


def symmetric(rng, number):
    full = rng.standard_normal((number, 3, 3))
    return (full + full.transpose(0, 2, 1)) / 2


def bounds(result):
    return {finding.pair: finding.mu for finding in result.findings}


def test_the_mechanism_passes_and_the_bound_is_close():
    result = audit(real())
    assert result.passed, result
    assert result.claimed_mu == 1
    assert result.mu > 0.5
    assert 0.5 < result.epsilon < result.claimed_epsilon
    # Each pair attains the sensitivity: all three attacks see something.
    assert min(bounds(result).values()) > 0.3


def test_adding_or_removing_a_sample():
    result = audit(real(adjacency="add-remove"), adjacency="add-remove", trials=400)
    assert result.passed
    assert result.mu > 0.2


def test_the_mechanism_written_twice_is_the_same():
    assert audit(made_of(symmetric)).passed


def test_half_the_noise_fails():
    result = audit(made_of(lambda rng, number: symmetric(rng, number) / 2))
    assert not result.passed
    assert min(bounds(result).values()) > 1


def test_no_clipping_fails_for_features_outside_the_clip():
    result = audit(made_of(symmetric, clip=False))
    assert not result.passed
    found = bounds(result)
    assert found.pop("outside the clip") > 3
    assert max(found.values()) <= 1


@pytest.mark.parametrize("afterwards", ["as it is", "symmetrised"])
def test_noise_on_one_triangle_fails_where_entries_beside_the_diagonal_differ(afterwards):
    """Left as it is, the bare triangle gives R away; symmetrised, half of the noise is left."""

    def noise(rng, number):
        upper = np.triu(symmetric(rng, number))
        return upper if afterwards == "as it is" else (upper + upper.transpose(0, 2, 1)) / 2

    result = audit(made_of(noise))
    assert not result.passed
    found = bounds(result)
    assert found["diagonals"] > 1
    assert found["axes"] <= 1  # there only the diagonal differs, and its noise is whole


def test_one_triangle_mirrored_is_private():
    def noise(rng, number):
        upper = np.triu(rng.standard_normal((number, 3, 3)))
        return upper + np.triu(upper, 1).transpose(0, 2, 1)

    assert audit(made_of(noise)).passed


def test_no_noise_at_all_is_the_worst():
    result = audit(made_of(lambda rng, number: np.zeros((number, 3, 3))))
    assert not result.passed
    assert min(bounds(result).values()) > 4


def test_forgetting_the_square_root_of_two_fails():
    """As noise made for adding or removing a sample does, when one is replaced."""
    noise = made_of(lambda rng, number: symmetric(rng, number) / math.sqrt(2))
    assert not audit(noise, trials=4000).passed


@pytest.mark.parametrize(("hits", "total"), [(0, 50), (3, 50), (49, 50), (400, 1000)])
def test_clopper_pearson(hits, total):
    bound = _upper(hits, total, 0.01)
    assert binom.cdf(hits, total, bound) == pytest.approx(0.01)
    assert _upper(total, total, 0.01) == 1.0


def test_bounds_from_exact_rates():
    false_positives, true_positives = norm.sf(1.0), norm.sf(-0.5)  # mu = 1.5
    assert _mu_bound(false_positives, true_positives) == pytest.approx(1.5)
    assert _epsilon_bound(0.1, 0.5, 0.1) == pytest.approx(math.log(4))
    assert _mu_bound(0.5, 0.4) == _epsilon_bound(0.5, 0.4, 0.0) == 0.0
    assert _mu_bound(1.0, 0.4) == _mu_bound(0.4, 0.0) == 0.0


def sphere(rng, number, dim):
    z = rng.standard_normal((number, dim)) * np.linspace(1, 0.05, dim)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_membership_shows_without_noise_and_hides_in_it():
    """100 samples, 32 dimensions, 5 clients: enough to tell members, until noise is added."""
    rng = np.random.default_rng(5)
    clear, noisy, blind = [], [], []
    mechanism = GaussianMechanism(noise_multiplier_for(1, 1e-5, 1), 1.0, 100)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        members, outsiders = sphere(rng, 100, 32), sphere(rng, 500, 32)
        matrix = members.T @ members / 100
        released = mechanism.release(torch.from_numpy(matrix), generator).numpy()
        clear.append(membership_auc(matrix, members, outsiders))
        edge = noise_edge(mechanism.noise_std, 32)
        noisy.append(membership_auc(released, members, outsiders, ridge=edge))
        blind.append(membership_auc(np.eye(32), members, outsiders))
    assert np.mean(clear) > 0.8
    assert np.mean(noisy) < 0.6
    assert np.mean(blind) == pytest.approx(0.5, abs=0.05)


def test_membership_by_hand():
    # R = diag(1, 0), ridge 1: leverage of e1 is 1/2 and of e2 is 1
    one, two = np.eye(2)[:1], np.eye(2)[1:]
    released = np.diag([1.0, -0.5])
    assert membership_auc(released, one, two, ridge=1.0) == 1.0
    assert membership_auc(released, two, one, ridge=1.0) == 0.0
    assert membership_auc(released, one, one, ridge=1.0) == 0.5
    assert membership_auc(released, one, np.eye(2), ridge=1.0) == 0.75


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: audit(real(), trials=10), "at least 100 trials"),
        (lambda: audit(real(), noise_multiplier=0.0), "noise_multiplier must be"),
        (lambda: audit(real(), delta=1.0), "delta must be"),
        (lambda: audit(lambda data, n: np.zeros((n, 2, 2))), r"finite and \(1000, 3, 3\), got"),
        (lambda: audit(lambda data, n: np.full((n, 3, 3), np.nan)), "must be finite and"),
        (lambda: membership_auc(np.eye(2), np.eye(2), np.eye(2), ridge=0.0), "ridge must be"),
        (lambda: membership_auc(np.eye(2), np.eye(2), np.eye(2)[:0]), "got 2 and 0"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ConfigError, match=text):
        call()
