import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from nmoe_flower.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    bytes_per_sample,
    local_ratio,
    macro_f1,
    routing_matrix,
)

SCORES = (accuracy, balanced_accuracy, macro_f1, auc)


@st.composite
def predictions(draw):
    """Probabilities with many ties, and labels that often miss a class."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    classes, samples = draw(st.integers(2, 6)), draw(st.integers(1, 40))
    probs = rng.integers(1, draw(st.sampled_from([2, 4, 1000])) + 1, (samples, classes))
    labels = rng.integers(0, draw(st.integers(1, classes)), samples)
    return probs / probs.sum(axis=1, keepdims=True), labels


def auc_of_pairs(probs, labels):
    """The definition: every pair of a positive and a negative, one class at a time."""
    areas = []
    for label in range(probs.shape[1]):
        own, other = probs[labels == label, label], probs[labels != label, label]
        pairs = [(a > b) + 0.5 * (a == b) for a in own for b in other]
        if pairs:
            areas.append(sum(pairs) / len(pairs))
    return sum(areas) / len(areas) if areas else math.nan


@settings(max_examples=100, deadline=None)
@given(predictions())
def test_against_independent_versions(case):
    probs, labels = case
    guess, classes = probs.argmax(axis=1), range(probs.shape[1])
    present = sorted(set(labels.tolist()))
    recalls = oracle.recall_score(labels, guess, labels=present, average=None, zero_division=0)
    assert accuracy(probs, labels) == pytest.approx(oracle.accuracy_score(labels, guess))
    assert balanced_accuracy(probs, labels) == pytest.approx(recalls.mean())
    assert macro_f1(probs, labels) == pytest.approx(
        oracle.f1_score(labels, guess, labels=classes, average="macro", zero_division=0)
    )
    assert auc(probs, labels) == pytest.approx(auc_of_pairs(probs, labels), nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(predictions())
def test_auc_against_scikit_learn(case):
    probs, labels = case
    areas = [
        oracle.roc_auc_score(labels == c, probs[:, c])
        for c in range(probs.shape[1])
        if 0 < (labels == c).sum() < len(labels)
    ]
    expected = np.mean(areas) if areas else math.nan
    assert auc(probs, labels) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(predictions(), st.integers(0, 1000))
def test_order_of_samples_does_not_matter(case, seed):
    probs, labels = case
    order = np.random.default_rng(seed).permutation(len(labels))
    for score in SCORES:
        assert score(probs[order], labels[order]) == pytest.approx(
            score(probs, labels), nan_ok=True
        )


@pytest.mark.parametrize(("tau", "f1"), [(0.5, 0.0800), (0.3, 0.0870), (0.2, 0.0909)])
def test_the_constant_predictor_of_the_paper_s_tables(tau, f1):
    # dominant share p = 1 / (1 + tau); accuracy p, macro F1 = 2p / (1 + p) / 10, AUC one half
    share = 1 / (1 + tau)
    own = round(share * 9000)
    labels = np.concatenate([np.zeros(own, int), 1 + np.arange(9000 - own) % 9])
    probs = np.tile([0.91] + [0.01] * 9, (9000, 1))
    assert accuracy(probs, labels) == pytest.approx(share, abs=1e-4)
    assert macro_f1(probs, labels) == pytest.approx(f1, abs=1e-4)
    assert balanced_accuracy(probs, labels) == pytest.approx(0.1)
    assert auc(probs, labels) == 0.5


def test_confusion_by_hand():
    # labels 0 0 0 1, guesses 0 0 1 1, class 2 never occurs:
    # recalls 2/3 and 1; F1 2*2/(2+3) = .8, 2*1/(2+1) = 2/3, 0
    probs = np.eye(3)[[0, 0, 1, 1]]
    labels = [0, 0, 0, 1]
    assert accuracy(probs, labels) == 0.75
    assert balanced_accuracy(probs, labels) == pytest.approx(5 / 6)
    assert macro_f1(probs, labels) == pytest.approx((0.8 + 2 / 3) / 3)


def test_one_class_leaves_auc_undefined():
    assert math.isnan(auc([[0.4, 0.6], [0.9, 0.1]], [1, 1]))


def test_tensors_are_welcome():
    probs, labels = torch.eye(2)[[0, 1, 1]], torch.tensor([0, 1, 0])
    assert accuracy(probs, labels) == pytest.approx(2 / 3)
    assert auc(probs, labels) == pytest.approx(0.75)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (np.zeros((0, 3)), [], "at least one sample, got none"),
        ([0.5, 0.5], [0, 1], r"probs must be \[N, C\] and labels \[N\]"),
        (np.eye(2), [0, 1, 1], r"got shapes \(2, 2\) and \(3,\)"),
        ([[math.nan, 1.0], [0.5, 0.5]], [0, 1], "NaN in 1 rows"),
        (np.eye(2), [0, 2], r"labels must be in 0\.\.1, got 0 to 2"),
        (np.eye(2), [-1, 1], r"labels must be in 0\.\.1, got -1 to 1"),
        (np.eye(2), [0.0, 0.9], r"labels must be whole numbers, got 0\.9"),
        (np.eye(2), [0.0, math.nan], "labels must be whole numbers, got nan"),
    ],
)
def test_bad_predictions_are_refused(score, probs, labels, message):
    with pytest.raises(ValueError, match=message):
        score(probs, labels)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3))
def test_routing_matrix_against_loops(seed, clients, top_k):
    rng = np.random.default_rng(seed)
    origin = np.concatenate([np.arange(clients), rng.integers(0, clients, 20)])
    ids = rng.integers(0, 6, (len(origin), top_k))
    expected = np.zeros((clients, 6))
    for asking, row in zip(origin, ids, strict=True):
        for expert in row:
            expected[asking, expert] += 1 / top_k / (origin == asking).sum()
    matrix = routing_matrix(ids, origin, clients, num_experts=6)
    np.testing.assert_allclose(matrix, expected)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)


def test_local_ratio_is_the_share_that_stays():
    ids, origin = [[0, 1], [1, 2], [2, 0], [2, 1]], [0, 1, 2, 2]
    # stays: client 0 one of two, client 1 one of two, client 2 two of four
    assert local_ratio(routing_matrix(ids, origin, 3)) == pytest.approx(0.5)
    assert local_ratio(np.eye(4)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: routing_matrix(np.zeros((0, 1)), [], 2), "at least one sample"),
        (lambda: routing_matrix([0, 1], [0, 1], 2), r"\[N, K\]"),
        (lambda: routing_matrix([[0], [1]], [0], 2), r"got shapes \(2, 1\) and \(1,\)"),
        (lambda: routing_matrix([[2]], [0], 2), r"expert_ids must be in 0\.\.1, got 2 to 2"),
        (lambda: routing_matrix([[0]], [-1], 2), r"origin must be in 0\.\.1, got -1 to -1"),
        (lambda: routing_matrix([[0.5]], [0], 2), r"expert_ids must be whole numbers, got 0\.5"),
        (lambda: routing_matrix([[0]], [-0.5], 2), r"origin must be whole numbers, got -0\.5"),
        (lambda: routing_matrix([[0]], [1], 3), r"clients \[0, 2\] have no routed sample"),
        (lambda: local_ratio(np.ones((2, 3))), r"square matrix, got shape \(2, 3\)"),
        (lambda: local_ratio(np.ones((0, 0))), "square matrix"),
        (lambda: bytes_per_sample([], [], latent_dim=1, num_classes=1), r"\[N, K\]"),
    ],
)
def test_bad_routes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bytes_follow_the_accounting():
    # top-2 of two samples: 3 of 4 choices are remote, 1.5 per sample; a remote expert costs
    # 128 int8 numbers + 16 out, 10 halves + 16 back: 144 + 36 = 180
    cost = bytes_per_sample(
        [[0, 1], [2, 1]],
        [0, 0],
        latent_dim=128,
        num_classes=10,
        latent_bytes=1,
        output_bytes=2,
        header_bytes=16,
    )
    assert cost == 1.5 * 180


def test_bytes_and_local_ratio_agree_for_one_expert():
    rng = np.random.default_rng(0)
    origin = np.repeat(np.arange(4), 25)
    ids = rng.integers(0, 4, (100, 1))
    ratio = local_ratio(routing_matrix(ids, origin, 4))
    cost = bytes_per_sample(ids, origin, latent_dim=512, num_classes=10)
    assert cost == pytest.approx(2088 * (1 - ratio))
