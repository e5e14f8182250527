"""Sums over latents: they add up to the pooled data's, whatever the skew, and what follows."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import DataError
from nmoe_flower.sums import (
    Standardisation,
    Sums,
    discriminants,
    from_moments,
    packed_bytes,
    ridge,
    solve,
    standardisation,
    total,
    within_covariance,
)

CLASSES = 3


@st.composite
def clients(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray]]:
    """Latents and labels of some clients: of any skew, far from zero, in any unit."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim = draw(st.integers(1, 6))
    offset, unit = draw(st.sampled_from([0.0, 1e3])), draw(st.sampled_from([1e-3, 1.0, 50.0]))
    found = []
    for _ in range(draw(st.integers(2, 5))):
        size = draw(st.integers(1, 30))
        own = rng.normal(size=dim)
        latents = offset + unit * (own + rng.normal(size=(size, dim)))
        held = rng.permutation(CLASSES)[: draw(st.integers(1, CLASSES))]
        found.append((latents, rng.choice(held, size)))
    return found


def sums_of(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Sums]:
    return [Sums.of(latents, labels, CLASSES) for latents, labels in parts]


def close(one: Sums, other: Sums, tolerance: float, *, spread: float) -> bool:
    """Whether two sums agree: relative to the spread of all latents, and to float64's digits."""
    count, size = other.count, float(np.abs(other.mean).max())
    assert one.count == count
    np.testing.assert_allclose(one.class_counts, other.class_counts, atol=1e-9)
    allowed = {
        "mean": tolerance * spread + 1e-13 * size,
        "class_sums": count * (tolerance * spread + 1e-13 * size),
        "scatter": count * spread * (tolerance * spread + 1e-12 * size),
    }
    return all(
        np.abs(getattr(one, name) - getattr(other, name)).max() <= largest
        for name, largest in allowed.items()
    )


def spread_of(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    return float(np.concatenate([latents for latents, _ in parts]).std(axis=0).max())


@given(clients(), st.randoms())
def test_sums_of_clients_are_those_of_the_pooled_data_in_any_order(
    parts: list[Any], random: Any
) -> None:
    pooled = Sums.of(
        np.concatenate([latents for latents, _ in parts]),
        np.concatenate([labels for _, labels in parts]),
        CLASSES,
    )
    found = sums_of(parts)
    assert close(total(found), pooled, 1e-9, spread=spread_of(parts))
    random.shuffle(found)
    one_by_one = found[0]
    for part in found[1:]:
        one_by_one = one_by_one + part
    assert close(one_by_one, pooled, 1e-9, spread=spread_of(parts))


@given(clients())
def test_who_was_added_and_subtracted_was_never_there(parts: list[Any]) -> None:
    *rest, leaver = sums_of(parts)
    assert close(total([*rest, leaver]) - leaver, total(rest), 1e-6, spread=spread_of(parts))


@given(clients())
def test_ridge_is_that_of_the_pooled_data_whatever_the_skew(parts: list[Any]) -> None:
    """By the normal equations of the pooled rows, directly."""
    latents = np.concatenate([latents for latents, _ in parts])
    one_hot = np.eye(CLASSES)[np.concatenate([labels for _, labels in parts])]
    centred = latents - latents.mean(axis=0)
    dim, size = centred.shape[1], len(centred)
    covariance = centred.T @ centred / size
    if covariance.trace() < 1e-9 * np.square(latents).mean():
        return  # all latents alike: there is nothing to solve
    shrunk = 0.9 * covariance + 0.1 * covariance.trace() / dim * np.eye(dim)
    weight = np.linalg.solve(shrunk, centred.T @ (one_hot - one_hot.mean(axis=0)) / size).T
    bias = one_hot.mean(axis=0) - weight @ latents.mean(axis=0)
    found = ridge(total(sums_of(parts)), shrinkage=0.1)
    answers = latents @ found.weight.T + found.bias
    np.testing.assert_allclose(answers, latents @ weight.T + bias, rtol=0, atol=1e-6)


@given(clients())
def test_what_travels_gives_the_same_within_float32(parts: list[Any]) -> None:
    sums = total(sums_of(parts))
    read = Sums.read(sums.packed())
    assert close(read, sums, 1e-6, spread=spread_of(parts))
    assert read.packed().keys() == sums.packed().keys()


def test_a_standardised_latent_has_mean_0_and_variance_1() -> None:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(500, 4)) * [1, 10, 100, 0] + [5, 0, -3, 7]
    sums = Sums.of(latents, np.zeros(500, int), 1)
    standard = standardisation(sums)
    found = standard.apply(latents)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=0), [1, 1, 1, 0], atol=1e-5)
    assert close(sums.under(standard), Sums.of(found, np.zeros(500, int), 1), 1e-6, spread=1.0)
    squares = sums.scatter.diagonal()
    moments = from_moments([{"count": np.array(500), "mean": sums.mean, "squares": squares}])
    assert moments.arrays()["scale"].tolist() == standard.arrays()["scale"].tolist()


def test_components_are_those_of_the_largest_variance() -> None:
    """Two numbers that say one thing and one of its own: the first component is their mean."""
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(2, 2000))
    latents = np.stack([shared, 3 * shared, own], axis=1)
    sums = Sums.of(latents, np.zeros(2000, int), 1)
    standard = standardisation(sums, components=2)
    assert standard.weight.shape == (2, 3)
    scores = standard.apply(latents)
    first = abs(np.corrcoef(scores[:, 0], shared)[0, 1])
    second = abs(np.corrcoef(scores[:, 1], own)[0, 1])
    assert min(first, second) > 0.99
    np.testing.assert_allclose(scores.var(axis=0).mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(scores.var(axis=0), [4 / 3, 2 / 3], rtol=0.1)  # eigenvalues 2, 1
    assert abs(np.corrcoef(scores.T)[0, 1]) < 1e-5


def test_discriminants_are_the_posterior_of_normals() -> None:
    """p(i | x) of three normals with one covariance, from their densities."""
    rng = np.random.default_rng(1)
    means, root = rng.normal(size=(3, 4)), rng.normal(size=(4, 4))
    covariance = root @ root.T + np.eye(4)
    latents = rng.normal(size=(50, 4))
    apart = latents[:, None] - means
    densities = np.exp(-0.5 * np.einsum("nid,de,nie->ni", apart, np.linalg.inv(covariance), apart))
    posterior = densities / densities.sum(axis=1, keepdims=True)
    found = discriminants(means, covariance, shrinkage=0.0)
    scores = np.exp(latents @ found.weight.T + found.bias)
    np.testing.assert_allclose(scores / scores.sum(axis=1, keepdims=True), posterior, rtol=1e-8)
    standard = Standardisation(rng.normal(size=4), rng.uniform(1, 2, 4))
    raw = found.before(standard)
    np.testing.assert_allclose(
        latents @ raw.weight.T + raw.bias,
        standard.apply(latents) @ found.weight.T + found.bias,
        rtol=1e-8,
    )


@given(clients())
def test_all_is_solved_from_one_pass_over_the_clients(parts: list[Any]) -> None:
    found = sums_of(parts)
    sums = total(found)
    if np.sqrt(sums.scatter.diagonal() / sums.count).max() < 1e-9 * np.abs(sums.mean).max():
        return
    solution = solve(iter(found), sharpness=6.0)
    standard = standardisation(sums)
    head = ridge(sums.under(standard), shrinkage=0.1, sharpness=6.0)
    np.testing.assert_array_equal(solution.head.weight, head.weight)
    gate = discriminants(
        standard.apply(np.stack([part.mean for part in found])),
        standard.around(within_covariance(found)),
        shrinkage=0.1,
    )
    np.testing.assert_array_equal(solution.gate.weight, gate.weight)


def test_fewer_latents_than_numbers_are_enough() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=(5, 40)), rng.integers(0, CLASSES, 5)) for _ in range(2)]
    solution = solve(sums_of(parts))
    assert np.isfinite(solution.head.weight).all()
    assert np.isfinite(solution.gate.weight).all()
    latents, labels = parts[0]
    answers = solution.standard.apply(latents) @ solution.head.weight.T + solution.head.bias
    assert (answers.argmax(axis=1) == labels).mean() > 0.9
    with pytest.raises(DataError, match="not shrunk"):
        ridge(Sums.of(np.eye(3)[:2], np.array([0, 1]), 2), shrinkage=0.0)


ONE = Sums.of(np.arange(12.0).reshape(4, 3) ** 1.5, np.array([0, 1, 2, 0]), CLASSES)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scatter": ONE.scatter + np.triu(np.ones((3, 3)), 1) * 100}, "not symmetric"),
        ({"scatter": ONE.scatter * np.nan}, "scatter has NaN"),
        ({"scatter": ONE.scatter[:2, :2]}, r"scatter has the shape \(2, 2\), wanted \(3, 3\)"),
        ({"mean": ONE.mean[:2]}, "wanted"),
        ({"class_sums": ONE.class_sums[:2]}, r"class-sums has the shape \(2, 3\)"),
        ({"class_counts": ONE.class_counts * np.inf}, "class-counts has NaN or infinite"),
        ({"count": 0}, "count of 0"),
    ],
)
def test_numbers_that_are_no_sums_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        replace(ONE, **change)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("scatter", lambda v: -v, "not below 0"),
        ("scatter", lambda v: v[:-1], "the upper triangle for a mean of shape"),
        ("scatter", lambda v: v * np.float32(np.nan), "scatter has NaN"),
        ("scatter", lambda v: v * np.array([1, 9, 1, 1, 1, 1], np.float32), "no sum of squares"),
        ("class-sums", lambda v: v + 1, "class-sums about the mean do not add up"),
        ("mean", lambda v: v[None], "for a mean of shape"),
        ("count", lambda v: v + 1, "count is 5, but class-counts add up to 4"),
        ("count", lambda v: v.astype(np.float32), "one whole number"),
        ("count", lambda v: np.array([4, 4]), "one whole number"),
        ("class-counts", lambda v: v[:-1], "class-sums has the shape"),
        ("class-sums", lambda v: v[:, :-1], "class-sums has the shape"),
        ("class-sums", lambda v: v > 0, "class-sums is of dtype bool"),
        ("class-counts", lambda v: v[:0], "class-counts has the shape"),
    ],
)
def test_what_travels_is_refused_if_it_contradicts_itself(
    name: str, change: Any, text: str
) -> None:
    told = ONE.packed()
    told[name] = change(told[name])
    with pytest.raises(DataError, match=text):
        Sums.read(told)
    del told[name]
    with pytest.raises(DataError, match=f"'{name}' is missing"):
        Sums.read(told)


def test_nobody_leaves_who_is_not_part() -> None:
    with pytest.raises(DataError, match="4 latents of 4 are subtracted"):
        ONE - ONE
    two, other = ONE + ONE, Sums.of(np.ones((1, 2)), np.array([0]), CLASSES)
    with pytest.raises(DataError, match="sums of other latents: 3 numbers and 2"):
        two - other
    with pytest.raises(DataError, match="of other classes"):
        two + Sums.of(np.ones((1, 3)), np.array([0]), 2)
    with pytest.raises(DataError, match="more latents of a class"):
        two - Sums.of(np.ones((3, 3)), np.array([1, 1, 1]), CLASSES)


def test_sums_of_somebody_else_are_not_subtracted() -> None:
    """They have no more of a class, but lie elsewhere: the sums of squares would be below 0."""
    rng = np.random.default_rng(0)
    here = Sums.of(rng.normal(size=(20, 3)), np.arange(20) % CLASSES, CLASSES)
    wide = Sums.of(50 * rng.normal(size=(5, 3)), np.arange(5) % CLASSES, CLASSES)
    far = Sums.of(30 + rng.normal(size=(5, 3)), np.arange(5) % CLASSES, CLASSES)
    for other in (wide, far):
        with pytest.raises(DataError, match=r"5 latents .* not among these 20: .*-\d.* diagonal"):
            here - other


def test_rounding_and_noise_are_not_taken_for_somebody_else() -> None:
    for value in (0.1, 1e6 / 3):  # the scatter is nothing but rounding
        same = [
            Sums.of(np.full((size, 2), value), np.zeros(size, int), CLASSES) for size in (999, 7, 1)
        ]
        for leaver in same:
            assert (total(same) - leaver).count == 1007 - leaver.count
    noisy = replace(ONE, scatter=-np.eye(3), class_counts=ONE.class_counts + 0.25)
    assert (total([noisy, noisy]) - noisy).scatter.diagonal().max() < 0


def test_latents_too_wide_for_memory_are_refused_with_their_bytes() -> None:
    assert packed_bytes(1536) == 4 * 1536 * 1537 // 2
    with pytest.raises(DataError, match=r"20,000 numbers.*3,200,000,000 bytes.*11,585 numbers"):
        packed_bytes(20_000)
    with pytest.raises(DataError, match="20,000 numbers"):
        Sums.of(np.zeros((2, 20_000), np.float32), np.array([0, 1]), 2)


def test_latents_that_noise_has_drowned_are_refused() -> None:
    """The scatter is second moments less those of a noisy mean, which may be more."""
    drowned = replace(ONE, scatter=ONE.scatter - np.eye(3) * ONE.scatter.trace())
    variance = -2 * ONE.scatter.trace() / 4 / 3  # tr S - 3 tr S, over n = 4 and D = 3
    with pytest.raises(DataError, match=f"latents is {variance:.4g}: noise has drowned it"):
        standardisation(drowned, uniform=True)
    with pytest.raises(DataError, match="noise has drowned it"):
        solve([drowned], noise=1.0)


def test_latents_without_anything_to_tell_are_refused() -> None:
    same = Sums.of(np.ones((4, 3)), np.array([0, 1, 2, 0]), CLASSES)
    with pytest.raises(DataError, match="every latent is the same"):
        standardisation(same)
    with pytest.raises(DataError, match="components is 4; allowed: 0"):
        standardisation(ONE, components=4)
    with pytest.raises(DataError, match="at least 1 latent"):
        Sums.of(np.zeros((0, 3)), np.zeros(0, int), CLASSES)
    with pytest.raises(DataError, match="1 of 2 are not"):
        Sums.of(np.array([[0.0], [np.inf]]), np.array([0, 1]), 2)
    with pytest.raises(DataError, match="no client"):
        total([])
    with pytest.raises(DataError, match="moments need"):
        from_moments([{"count": np.array(0), "mean": np.ones(2), "squares": np.ones(2)}])


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, -1], r"labels must be in 0\.\.2, got -1 to 0"),
        ([0, 3], r"labels must be in 0\.\.2, got 0 to 3"),
        ([0.0, 1.0], "whole numbers, got float64"),
        ([0], r"labels must be \[2\] whole numbers, got int64 \(1,\)"),
    ],
)
def test_labels_of_no_class_are_refused(labels: list[float], text: str) -> None:
    with pytest.raises(DataError, match=text):
        Sums.of(np.eye(2), np.array(labels), CLASSES)


@pytest.mark.parametrize("name", ["mean", "squares"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_that_are_not_finite_are_refused(name: str, value: float) -> None:
    part = {"count": np.array(3), "mean": np.ones(2), "squares": np.ones(2)}
    from_moments([part])
    with pytest.raises(DataError, match="finite squares"):
        from_moments([part | {name: np.array([value, 1.0])}])


def test_memory_beside_the_latents_does_not_grow_with_their_number_times_the_classes() -> None:
    """Labels of 4,096 latents in one-hot form are 16 MB at 500 classes, those of all are 64 MB."""
    latents, labels = np.ones((16_384, 2), np.float32), np.arange(16_384) % 500
    tracemalloc.start()
    try:
        counts = Sums.of(latents, labels, 500).class_counts
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts.tolist() == np.unique_counts(labels).counts.tolist()
    assert peak < 40e6
