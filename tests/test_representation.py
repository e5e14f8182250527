import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.representation import (
    effective_rank,
    find_collapse,
    knn_accuracy,
    positive_pair_distance,
    probe_accuracy,
    uniformity,
)


def rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim))


def unit(row: np.ndarray) -> list[float]:
    length = math.sqrt(sum(float(v) ** 2 for v in row))
    return [float(v) / length for v in row]


def squared_distance(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


# --- positive pairs and uniformity ---


def test_positive_pairs_against_a_loop() -> None:
    one, other = rows(7, 3), rows(7, 3, seed=1)
    expected = sum(squared_distance(unit(a), unit(b)) for a, b in zip(one, other, strict=True)) / 7
    assert positive_pair_distance(one, other) == pytest.approx(expected, rel=1e-12)


def test_their_distance_is_between_0_and_4_and_knows_no_lengths() -> None:
    z = rows(5, 4)
    assert positive_pair_distance(z, 3 * z) == pytest.approx(0, abs=1e-12)
    assert positive_pair_distance(z, -z) == pytest.approx(4)


def test_uniformity_against_a_loop() -> None:
    z = rows(9, 3)
    unit_rows = [unit(row) for row in z]
    terms = [
        math.exp(-2 * squared_distance(unit_rows[i], unit_rows[j]))
        for i in range(9)
        for j in range(i)
    ]
    assert uniformity(z) == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-12)


def test_uniformity_of_known_features() -> None:
    assert uniformity(np.tile([3.0, 4.0], (5, 1))) == pytest.approx(0, abs=1e-12)
    # Orthogonal: |a - b|^2 = 2 for every pair, so log exp(-4).
    assert uniformity(np.eye(6)) == pytest.approx(-4)
    with pytest.raises(ValueError, match="at least two samples"):
        uniformity(np.ones((1, 3)))


def test_features_of_length_0_do_not_divide_by_0() -> None:
    assert positive_pair_distance(np.zeros((2, 3)), np.eye(3)[:2]) == 1.0
    assert uniformity(np.zeros((3, 2))) == pytest.approx(-4)  # as if orthogonal: no direction


# --- spectra ---


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_effective_rank_against_a_loop(values: list[float]) -> None:
    total = sum(values)
    entropy = -sum(v / total * math.log(v / total) for v in values)
    rank = effective_rank(np.array(values))
    assert rank == pytest.approx(math.exp(entropy), rel=1e-9)
    assert 1 - 1e-9 <= rank <= len(values) + 1e-9


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(np.array([5.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(np.array([2.0, 2, 2, 0])) == pytest.approx(3)
    # Shares 1/2, 1/4, 1/4: entropy 1.5 log 2.
    assert effective_rank(np.array([0.2, 0.1, 0.1])) == pytest.approx(2**1.5)
    assert effective_rank(np.array([0.2, 0.1, 0.1, -0.3])) == pytest.approx(2**1.5)  # noise
    assert effective_rank(np.zeros(4)) == 0.0


def decaying(dim: int, ratio: float) -> np.ndarray:
    return ratio ** np.arange(dim) / sum(ratio**k for k in range(dim))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.zeros(8), "collapsed to zero: the features have a mean squared length of 0"),
        (np.full(8, 1e-5), "collapsed to zero: the features have a mean squared length of 8e-05"),
        (np.array([0.91, 0.09]), "collapsed to the mean: one direction holds 91 % of the features"),
        (np.array([0.91, 0.09, -0.5]), "collapsed to the mean: one direction holds 91 %"),
        # Two of 128 directions hold all: rank 2 < 128 / 32.
        (np.repeat([0.5, 0.0], [2, 126]), "dimensional collapse: the effective rank is 2.0 of 128"),
        (np.full(8, 1 / 8), None),
        (np.array([0.89, 0.11]), None),
        # Halves, quarters, ...: entropy 2 log 2, so rank 4, below 160 / 32 and above 96 / 32.
        (decaying(160, 0.5), "dimensional collapse: the effective rank is 4.0 of 160"),
        (decaying(96, 0.5), None),
        (np.array([1.0]), None),  # one dimension cannot have two directions
    ],
)  # fmt: skip
def test_collapse_is_named(values: np.ndarray, text: str | None) -> None:
    found = find_collapse(values)
    assert (found is None) == (text is None), found
    if text is not None:
        assert str(found).startswith(text)


# --- probes ---


def slow_knn(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, neighbours: int, temperature: float
) -> list[int]:
    answers = []
    for row in test:
        cosines = [sum(a * b for a, b in zip(unit(row), unit(t), strict=True)) for t in train]
        nearest = sorted(range(len(train)), key=lambda i: -cosines[i])[:neighbours]
        votes: dict[int, float] = {}
        for i in nearest:
            label = int(labels[i])
            votes[label] = votes.get(label, 0.0) + math.exp(cosines[i] / temperature)
        answers.append(max(votes, key=lambda label: votes[label]))
    return answers


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.1), (7, 0.1), (7, 10.0), (40, 0.5)])
def test_knn_against_a_loop(neighbours: int, temperature: float) -> None:
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 4, 40), rng.integers(0, 4, 30)
    train = rows(40, 3) + np.eye(4, 3)[labels]
    test = rows(30, 3, seed=1) + np.eye(4, 3)[truth]
    answers = slow_knn(train, labels, test, neighbours=neighbours, temperature=temperature)
    expected = np.mean(np.array(answers) == truth)
    found = knn_accuracy(train, labels, test, truth, neighbours=neighbours, temperature=temperature)
    assert found == pytest.approx(expected)
    assert 0.25 < expected < 0.9  # so a wrong rule would be seen


@pytest.mark.parametrize(("temperature", "label"), [(0.1, 0), (10.0, 1)])
def test_one_very_near_neighbour_outvotes_two_when_it_is_cold(
    temperature: float, label: int
) -> None:
    """Cosines 1, 0.8, 0.8: votes 1 against 2 exp(-0.2 / t), which is 0.27 or 1.96."""
    train, labels = np.array([[1.0, 0], [0.8, 0.6], [0.8, -0.6]]), np.array([0, 1, 1])
    found = knn_accuracy(
        train, labels, np.array([[5.0, 0]]), np.array([label]), temperature=temperature
    )
    assert found == 1.0


def test_knn_with_fewer_images_than_neighbours_and_classes_never_seen() -> None:
    train, labels = np.eye(3), np.array([0, 1, 1])
    # Cosines 1, 0, 0 for the first (its one vote wins); the second is of class 5: a miss.
    test, truth = np.array([[2.0, 0, 0], [0, 2.0, 0]]), np.array([0, 5])
    assert knn_accuracy(train, labels, test, truth, neighbours=20) == 0.5


def test_the_probe_against_regression_on_an_extended_table() -> None:
    """Ridge is least squares with rows sqrt(ridge n) e_j added; here by lstsq, intercept apart."""
    rng = np.random.default_rng(3)
    labels, truth = rng.integers(0, 3, 60), rng.integers(0, 3, 50)
    directions = rng.normal(size=(3, 5))
    train = 2.0 + rows(60, 5) * [1, 2, 3, 4, 5] + directions[labels]
    test = 2.0 + rows(50, 5, seed=1) * [1, 2, 3, 4, 5] + directions[truth]
    answers = []
    scaled = [(x - train.mean(axis=0)) / train.std(axis=0) for x in (train, test)]
    for ridge in (0.05, 2.0):
        scores = []
        for label in range(3):
            target = (labels == label).astype(float)
            table = np.vstack([scaled[0], math.sqrt(ridge * 60) * np.eye(5)])
            wanted = np.concatenate([target - target.mean(), np.zeros(5)])
            solution = np.linalg.lstsq(table, wanted, rcond=None)[0]
            scores.append(scaled[1] @ solution + target.mean())
        expected = np.mean(np.argmax(scores, axis=0) == truth)
        found = probe_accuracy(train, labels, test, truth, ridge=ridge)
        assert found == pytest.approx(expected)
        answers.append(expected)
    assert 0.33 < answers[0] < 0.95


def test_the_probe_reads_what_is_linear_and_guesses_the_largest_class_otherwise() -> None:
    labels = np.array([0, 1, 2] * 20)
    train = np.eye(3)[labels] + 0.01 * rows(60, 3)
    assert probe_accuracy(train, labels, train, labels) == 1.0
    blind = np.ones((60, 3))
    skewed = np.array([2] * 40 + [0] * 20)
    assert probe_accuracy(blind, skewed, blind, skewed) == pytest.approx(40 / 60)
