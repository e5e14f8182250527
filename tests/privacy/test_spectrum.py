import numpy as np
import pytest

from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.privacy import (
    check_release,
    mean_noise_std,
    noise_edge,
    packed_size,
    shrink_spectrum,
    smat,
    symmetrise,
)


def noise(dim, std, seed):
    return std * smat(np.random.default_rng(seed).standard_normal(packed_size(dim)))


def spikes(dim, values, seed=0):
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, len(values))))
    return (basis * np.asarray(values)) @ basis.T


def test_the_edge_is_where_the_noise_ends():
    # fluctuations of the largest eigenvalue are of order d^(-2/3): 2 % at d = 300
    top = np.linalg.eigvalsh(noise(300, 0.01, 0))[-1]
    assert top == pytest.approx(noise_edge(0.01, 300), rel=0.03)


def test_eigenvalues_are_put_right():
    """Over 30 draws: fluctuations of s / sqrt(30) = .001, raw excess d s^2 / (2 .12) = .0104."""
    truth = [0.3, 0.2, 0.12]  # the edge is .0707
    raw, found = [], []
    for seed in range(30):
        noisy = spikes(100, truth, seed) + noise(100, 0.005, 100 + seed)
        raw.append(np.linalg.eigvalsh(noisy)[::-1])
        shrunk = shrink_spectrum(noisy, 0.005, goal="eigenvalues")
        found.append(np.linalg.eigvalsh(shrunk)[::-1])
    np.testing.assert_allclose(np.mean(found, axis=0)[:3], truth, atol=0.003)
    assert np.mean(raw, axis=0)[2] - 0.12 > 0.008
    assert np.min(found) > -1e-12
    np.testing.assert_allclose(np.array(found)[:, 4:], 0, atol=0.05)


def test_shrinking_brings_the_matrix_closer_than_either_alternative():
    truth = spikes(100, [0.2, 0.1, 0.1, 0.08, 0.06])
    noisy = truth + noise(100, 0.003, 2)
    errors = [
        np.linalg.norm(truth - guess)
        for guess in (
            shrink_spectrum(noisy, 0.003),
            shrink_spectrum(noisy, 0.003, goal="eigenvalues"),
            noisy,
        )
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.4 * errors[2]


def test_limits():
    truth = spikes(6, [0.5, 0.3, 0.2])
    for goal in ("matrix", "eigenvalues"):
        np.testing.assert_allclose(shrink_spectrum(truth, 0.0, goal=goal), truth, atol=1e-12)
        assert not shrink_spectrum(noise(50, 0.1, 0), 0.12, goal=goal).any()
        assert np.linalg.eigvalsh(shrink_spectrum(9 * np.eye(3), 0.1, goal=goal)).max() <= 1 + 1e-9


def test_mean_noise_and_symmetry():
    # m equal clients: s / sqrt(m); unequal: sqrt(.75^2 .1^2 + .25^2 .3^2) = .10607
    assert mean_noise_std([0.2] * 16, [1 / 16] * 16) == pytest.approx(0.05)
    assert mean_noise_std([0.1, 0.3], [0.75, 0.25]) == pytest.approx(0.106066, rel=1e-5)
    np.testing.assert_array_equal(symmetrise(np.array([[1.0, 2], [4, 3]])), [[1, 3], [3, 3]])


@pytest.mark.parametrize("seed", range(5))
def test_honest_releases_pass(seed):
    truth = spikes(40, [0.5, 0.3, 0.2], seed)
    check_release(truth, dim=40)
    check_release(truth + noise(40, 0.05, seed), dim=40, noise_std=0.05)
    check_release(4 * truth, dim=40, clip=2.0)


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        (np.eye(3) / 3, r"must be \(4, 4\), got \(3, 3\)"),
        (np.full((4, 4), np.nan), "holds NaN or infinity"),
        (np.triu(np.ones((4, 4))) / 4, "is not symmetric"),
        (np.eye(4), "has trace 4; features of norm at most 1 and the noise allow .* fewer samples"),
        (-np.eye(4), r"has trace -4; .* [0-9.]+$"),
        (np.diag([3.0, -1.0, -1.0, -0.5]), "eigenvalues from -1 to 3"),
        (np.diag([0.9, 0.6, -0.6, 0.0]), "eigenvalues from -0.6 to 0.9"),
    ],
)
def test_impossible_releases_are_refused(matrix, text):
    with pytest.raises(ReplyError, match=text):
        check_release(matrix, dim=4, noise_std=0.01)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"noise_std": -1.0}, "noise_std must be"), ({"noise_std": 1.0, "goal": "x"}, "goal must be")],
)
def test_bad_input(change, text):
    with pytest.raises(ConfigError, match=text):
        shrink_spectrum(np.eye(2), **change)
