"""Private sums: the joint sensitivity that the docstring derives, tried on the worst neighbours."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.privacy import (
    GaussianMechanism,
    audit_releases,
    labelled_latents,
    noise_in_scatter,
    sensitivity,
    sums_of_release,
    svec,
)
from nmoe_flower.privacy.sums import SHARE
from nmoe_flower.sums import Sums, covariance_shrunk, solve, total

CLASSES = 3


def packed(latents: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """svec of R without noise, as a client makes it."""
    correlation = GaussianMechanism(1.0, 1.0, len(labels)).correlation()
    correlation.add(labelled_latents(latents, labels, CLASSES))
    return np.asarray(svec(correlation.result()).numpy())


def test_a_release_without_noise_tells_the_sums_of_unit_latents() -> None:
    rng = np.random.default_rng(0)
    latents, labels = rng.normal(size=(40, 5)) + 1, rng.integers(0, CLASSES, 40)
    unit = latents / np.linalg.norm(latents, axis=1, keepdims=True)
    wanted = Sums.of(unit, labels, CLASSES)
    told = packed(torch.from_numpy(latents), torch.from_numpy(labels))
    found = sums_of_release(told, 40, CLASSES)
    for name in ("mean", "scatter", "class_counts", "class_sums"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-10)


@given(st.integers(0, 2**32), st.integers(2, 5))
def test_no_neighbour_is_further_than_the_sensitivity(seed: int, dim: int) -> None:
    """One sample is replaced by another of any direction, length and class."""
    rng = np.random.default_rng(seed)
    latents = torch.from_numpy(rng.normal(size=(4, dim)) * rng.uniform(0, 3, size=(4, 1)))
    labels = torch.from_numpy(rng.integers(0, CLASSES, 4))
    others, classes = latents.clone(), labels.clone()
    others[0] = torch.from_numpy(rng.normal(size=dim) * rng.choice([0.0, 1.0, 9.0]))
    classes[0] = int(rng.integers(0, CLASSES))
    distance = np.linalg.norm(packed(latents, labels) - packed(others, classes))
    assert distance <= sensitivity(1.0, 4) * (1 + 1e-9)


@pytest.mark.parametrize("same", [False, True])
def test_the_worst_neighbours_attain_the_sensitivity(same: bool) -> None:
    """Other classes with orthogonal latents; or one class, with an angle of cosine -tan^2 a."""
    cosine = -(1 - SHARE) / SHARE if same else 0.0
    latents = torch.tensor([[1.0, 0.0], [0.3, 0.4]], dtype=torch.float64)
    others = latents.clone()
    others[0] = torch.tensor([cosine, math.sqrt(1 - cosine**2)])
    labels = torch.tensor([1, 2])
    classes = labels if same else torch.tensor([0, 2])
    distance = np.linalg.norm(packed(latents, labels) - packed(others, classes))
    assert distance == pytest.approx(sensitivity(1.0, 2), rel=1e-12)


def releases(noise_multiplier: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """Releases of R of one number and two classes: 3 x 3, which `audit_releases` looks at."""
    generator = torch.Generator().manual_seed(3)

    def release(features: np.ndarray, number: int) -> np.ndarray:
        rows = torch.from_numpy(features)
        v = labelled_latents(rows[:, :1], (rows[:, 1] > rows[:, 2]).long(), 2)
        mechanism = GaussianMechanism(noise_multiplier, 1.0, len(v))
        correlation = mechanism.correlation()
        correlation.add(v)
        matrix = correlation.result()
        return np.stack([mechanism.release(matrix, generator).numpy() for _ in range(number)])

    return release


def test_an_attack_finds_no_more_than_is_claimed() -> None:
    options: dict[str, Any] = {
        "noise_multiplier": 1.0, "clip": 1.0, "num_examples": 4, "trials": 300,
    }  # fmt: skip
    audit = audit_releases(releases(1.0), rng=np.random.default_rng(0), **options)
    assert audit.passed
    loud = audit_releases(releases(0.2), rng=np.random.default_rng(0), **options)
    assert not loud.passed


def test_noise_has_no_larger_eigenvalue_than_is_told() -> None:
    """The edge of random matrix theory, sqrt(2 d) deviations, on noise of two clients."""
    rng, dim = np.random.default_rng(0), 60
    size = (dim + CLASSES) * (dim + CLASSES + 1) // 2
    latents, labels = torch.from_numpy(rng.normal(size=(50, dim))), torch.arange(50) % CLASSES
    told = packed(latents, labels)
    exact = sums_of_release(told, 50, CLASSES)
    noisy = [
        sums_of_release(told + 0.01 * rng.normal(size=size), 50, CLASSES).scatter - exact.scatter
        for _ in range(2)
    ]
    largest = float(np.abs(np.linalg.eigvalsh(sum(noisy))).max())
    assert largest == pytest.approx(noise_in_scatter([0.01, 0.01], [50, 50], dim), rel=0.25)


def test_noisy_sums_are_solved_all_the_same() -> None:
    """Noise as large as the signal makes scatters that are none; heads stay finite and useful."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, 6)) * 2
    parts = []
    for _ in range(3):
        labels = rng.integers(0, CLASSES, 300)
        latents = centres[labels] + rng.normal(size=(300, 6))
        told = packed(torch.from_numpy(latents), torch.from_numpy(labels))
        parts.append(sums_of_release(told + 0.03 * rng.normal(size=told.size), 300, CLASSES))
    assert any(float(np.linalg.eigvalsh(part.scatter)[0]) < 0 for part in parts)
    solution = solve(parts, noise=noise_in_scatter([0.03] * 3, [300] * 3, 6))
    unit = latents / np.linalg.norm(latents, axis=1, keepdims=True)
    answers = solution.standard.apply(unit) @ solution.head.weight.T + solution.head.bias
    assert (answers.argmax(axis=1) == labels).mean() > 0.7
    assert np.isfinite(solution.gate.weight).all()


def test_noisy_means_leave_no_covariance_that_is_none() -> None:
    """Far from 0, the mean's noise is more than the noise of x x^T that ``floor`` covers."""
    rng, dim, clients, count, std = np.random.default_rng(0), 64, 10, 500, 0.01
    parts = []
    for _ in range(clients):
        latents, labels = 3 + rng.normal(size=(count, dim)), rng.integers(0, CLASSES, count)
        told = packed(torch.from_numpy(latents), torch.from_numpy(labels))
        parts.append(sums_of_release(told + std * rng.normal(size=told.size), count, CLASSES))
    together = total(parts)
    covariance, n = together.scatter / together.count, together.count
    floor = noise_in_scatter([std] * clients, [count] * clients, dim) / n
    least = float(np.linalg.eigvalsh(covariance)[0])
    assert least < -1.5 * floor
    values = np.maximum(np.linalg.eigvalsh(covariance), 0)  # of the nearest covariance
    shrunk = np.linalg.eigvalsh(covariance_shrunk(covariance, 0.1, floor))
    assert shrunk == pytest.approx(0.9 * values + 0.1 * values.mean() + floor)
    sure = covariance - least * np.eye(dim)  # it has no eigenvalue below 0
    by_hand = 0.9 * sure + (0.1 * sure.trace() / dim + floor) * np.eye(dim)
    assert covariance_shrunk(sure, 0.1, floor) == pytest.approx(by_hand, abs=1e-12)


def test_what_is_no_release_is_refused() -> None:
    with pytest.raises(ConfigError, match="a packed matrix has"):
        sums_of_release(np.ones(4), 10, CLASSES)
    with pytest.raises(DataError, match="holds no latent beside 3 labels"):
        sums_of_release(np.ones(6), 10, CLASSES)
