import tracemalloc
import weakref
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.strategies import aggregation
from nmoe_flower.strategies.aggregation import Largest, WeightedMean


def averaged(replies: list[tuple[dict[str, np.ndarray], float]]) -> dict[str, np.ndarray]:
    mean = WeightedMean()
    for arrays, weight in replies:
        mean.add(arrays, weight)
    return mean.result()


def random_replies(
    count: int, dtype: type[np.generic], seed: int = 0
) -> list[tuple[dict[str, np.ndarray], float]]:
    rng = np.random.default_rng(seed)
    return [
        (
            {"w": (10 * rng.normal(size=(3, 4))).astype(dtype), "s": np.array(i, dtype)},
            float(rng.integers(1, 100)),
        )
        for i in range(count)
    ]


def test_by_hand() -> None:
    """(1 * [1, 2] + 3 * [5, -2]) / 4 = [4, -1]."""
    mean = averaged([({"w": np.float32([1, 2])}, 1), ({"w": np.float32([5, -2])}, 3)])
    np.testing.assert_array_equal(mean["w"], np.float32([4, -1]))
    assert mean["w"].dtype == np.float32


@given(
    st.integers(1, 12),
    st.sampled_from([(np.float16, 2e-3), (np.float32, 1e-6), (np.float64, 1e-14)]),
    st.integers(0, 99),
)
def test_equals_the_slow_mean(count: int, kind: tuple[type[np.floating], float], seed: int) -> None:
    """Stack in float64, weigh, divide; the tolerance is a few units in the dtype's last place."""
    dtype, tolerance = kind
    replies = random_replies(count, dtype, seed)
    weights = np.array([weight for _, weight in replies])
    mean = averaged(replies)
    for name in ("w", "s"):
        stacked = np.stack([arrays[name].astype(np.float64) for arrays, _ in replies])
        slow = np.tensordot(weights / weights.sum(), stacked, axes=1)
        assert mean[name].dtype == dtype
        assert mean[name].shape == replies[0][0][name].shape
        np.testing.assert_allclose(mean[name], slow, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_counters_keep_their_dtype_and_are_rounded(dtype: type[np.integer]) -> None:
    """BatchNorm's counter at 3, 4 and 4 with equal weights: 3.67 -> 4."""
    mean = averaged([({"n": np.array(n, dtype)}, 2.0) for n in (3, 4, 4)])
    assert (mean["n"], mean["n"].dtype) == (4, dtype)


def test_counters_above_24_bits_are_exact() -> None:
    """A float32 sum would lose the last digit of 2 ** 30 + 1."""
    mean = averaged([({"n": np.array(2**30 + 1)}, 1.0)] * 3)
    assert mean["n"] == 2**30 + 1


def test_flags_are_voted_on() -> None:
    mean = averaged([({"f": np.array([True, False])}, 1), ({"f": np.array([True, True])}, 3)])
    assert mean["f"].tolist() == [True, True]
    assert mean["f"].dtype == bool


def test_the_same_order_gives_the_same_bits() -> None:
    replies = random_replies(20, np.float32)
    one, same = averaged(replies), averaged(replies)
    other = averaged(replies[::-1])
    assert one["w"].tobytes() == same["w"].tobytes()
    np.testing.assert_allclose(one["w"], other["w"], rtol=1e-5)
    assert one["w"].tobytes() != other["w"].tobytes()  # or the test above shows nothing


def test_memory_does_not_grow_with_the_replies() -> None:
    """No reply outlives its turn, and the sums stay as large as one model."""
    mean, alive = WeightedMean(), []
    for number in range(30):
        value = np.full(1000, number, np.float32)
        alive.append(weakref.ref(value))
        mean.add({"w": value}, 1.0)
        del value
        assert [ref() for ref in alive if ref() is not None] == []
    assert (mean.count, mean.total) == (30, 30.0)
    np.testing.assert_allclose(mean.result()["w"], 14.5)


def test_what_was_added_is_left_alone_and_the_result_is_new() -> None:
    value = np.float32([1, 2])
    value.flags.writeable = False
    mean = WeightedMean()
    mean.add({"w": value}, 1.0)
    first = mean.result()["w"]
    mean.add({"w": np.float32([3, 4])}, 1.0)
    assert first.tolist() == [1.0, 2.0]
    assert mean.result()["w"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("weights", [[], [0.0], [0.0, 0.0]])
def test_no_weight_is_no_mean(weights: list[float]) -> None:
    with pytest.raises(ZeroDivisionError, match="weights of all replies sum to zero"):
        averaged([({"w": np.ones(1)}, weight) for weight in weights])


def test_a_client_of_weight_zero_does_not_count() -> None:
    mean = averaged([({"w": np.float32([7])}, 0.0), ({"w": np.float32([2])}, 5.0)])
    assert mean["w"].tolist() == [2.0]


# --- exact, and never infinite ---


def exact_mean(values: list[int], weights: list[float]) -> int:
    """In Python's fractions, whose round() takes ties to even."""
    total = sum(map(Fraction, weights))
    return round(sum(Fraction(w) * v for w, v in zip(weights, values, strict=True)) / total)


INTEGERS = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]
WHOLE = st.one_of(st.integers(0, 10**6).map(float), st.floats(0, 1e40), st.just(0.1))


@given(st.data())
def test_integers_are_exact_for_every_dtype_and_weight(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(INTEGERS)))
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    replies = data.draw(
        st.lists(st.tuples(st.integers(int(low), int(high)), WHOLE), min_size=1, max_size=6)
    )
    values, weights = [v for v, _ in replies], [w for _, w in replies]
    if not any(weights):
        return
    mean = averaged(
        [({"x": np.array(v, dtype), "y": np.full((2, 1), v, dtype)}, w) for v, w in replies]
    )
    expected = exact_mean(values, weights)
    assert mean["x"].dtype == mean["y"].dtype == dtype
    assert int(mean["x"]) == expected
    assert mean["y"].tolist() == [[expected]] * 2


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([2**53 + 1] * 3, np.int64),
        ([2**63 - 1, 2**63 - 3, 2**63 - 5], np.int64),
        ([-(2**63)] * 3, np.int64),
        ([2**64 - 1] * 3, np.uint64),
        ([2**64 - 1, 0, 2**64 - 1], np.uint64),
    ],
)
def test_integers_above_53_bits(values: list[int], dtype: type[np.integer]) -> None:
    weights = [1.0, 2.0, 1.0]
    mean = averaged(
        [({"x": np.array([v], dtype)}, w) for v, w in zip(values, weights, strict=True)]
    )
    assert mean["x"].tolist() == [exact_mean(values, weights)]


def test_empty_arrays_and_zero_dimensions() -> None:
    value = {"e": np.zeros((0, 3), np.int64), "f": np.zeros((2, 0), np.float32)}
    mean = averaged([(value, 1.0), (value, 2.0)])
    assert [(a.shape, a.dtype) for a in mean.values()] == [
        ((0, 3), np.int64),
        ((2, 0), np.float32),
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "weights",
    [[60000.0] * 3, [1e39, 10.0, 10.0], [10.0, 1e39, 10.0], [1e308] * 3, [1e-46] * 3, [5e-324] * 3],
    ids=str,
)
@pytest.mark.parametrize("share", [1.0, 0.5, 1e-4])
def test_finite_replies_have_a_finite_mean(
    dtype: type[np.floating], weights: list[float], share: float
) -> None:
    """All alike: the mean is that value, up to the largest number the dtype holds."""
    value = dtype(share) * np.finfo(dtype).max
    mean = averaged([({"w": np.array([value, -value, 0], dtype)}, w) for w in weights])["w"]
    assert mean.dtype == dtype
    np.testing.assert_allclose(mean.astype(float), [value, -value, 0], rtol=1e-6)


def test_a_sum_that_overflows_half_way_goes_on_as_a_mean() -> None:
    """(1e38 + 3 * 3e38) / 4 = 2.5e38, whose sum float32 cannot hold; the small array is as ever."""
    small = random_replies(4, np.float32)
    large = [1e38, 3e38, 3e38, 3e38]
    replies = [
        ({**arrays, "x": np.float32([value])}, 1.0)
        for (arrays, _), value in zip(small, large, strict=True)
    ]
    mean = averaged(replies)
    np.testing.assert_allclose(mean["x"], [2.5e38], rtol=1e-6)
    alone = averaged([(arrays, 1.0) for arrays, _ in small])
    assert mean["w"].tobytes() == alone["w"].tobytes()


@given(
    st.lists(
        st.tuples(
            st.floats(-1e308, 1e308),
            st.one_of(st.floats(0, 1e308), st.integers(0, 1000).map(float)),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_the_mean_lies_among_the_replies(replies: list[tuple[float, float]]) -> None:
    counted = [value for value, weight in replies if weight > 0]
    if not counted:
        return
    (mean,) = averaged([({"w": np.array([v])}, w) for v, w in replies])["w"].tolist()
    slack = 1e-12 * max(map(abs, counted))
    assert min(counted) - slack <= mean <= max(counted) + slack


def test_the_client_with_the_largest_values_is_known() -> None:
    largest = Largest()
    for client, value in enumerate([3.0, 5.0, 4.0]):
        largest.note(client, {"w": value**2})
    assert largest.of("w") == "client 1 sent the largest, of norm 5"
    assert largest.of("v") == "nobody sent it"


def test_the_other_byte_order() -> None:
    mean = averaged(
        [({"w": np.array([1.0, 2.0], ">f4")}, 1.0), ({"w": np.array([3, 4], ">f4")}, 1)]
    )
    assert mean["w"].tolist() == [2.0, 3.0]
    assert mean["w"].dtype == np.dtype(">f4")


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_sum_in_blocks_has_the_bits_of_a_sum_at_once(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "_BLOCK", 4)
    rng = np.random.default_rng(1)
    values = [np.asarray(v, order=order) for v in rng.normal(size=(5, 3, 7)).astype(np.float32)]
    mean, expected = WeightedMean(), np.zeros((3, 7), np.float32)
    for weight, value in enumerate(values, 1):
        mean.add({"w": value}, weight)
        expected = expected + value * np.float32(weight)
    np.testing.assert_array_equal(mean.result()["w"], expected / np.float32(15))


def test_a_sum_that_overflows_in_a_later_block_goes_on_as_the_right_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Entries of the first two blocks have the third reply already when the last overflows."""
    monkeypatch.setattr(aggregation, "_BLOCK", 4)
    small = np.arange(10, dtype=np.float32)
    large = np.where(np.arange(10) == 9, np.float32(3e38), small)
    replies = [(small, 1.0), (large, 0.5), (2 * small, 2.0), (large, 1.0), (small, 0.5)]
    mean = WeightedMean()
    for value, weight in replies:
        mean.add({"w": value}, weight)
    assert mean._sums["w"]._ahead == 8
    expected = sum(weight * value.astype(np.float64) for value, weight in replies) / 5
    np.testing.assert_allclose(mean.result()["w"], expected, rtol=1e-6)


def test_adding_takes_no_memory_of_a_further_model() -> None:
    mean, value = WeightedMean(), np.ones(1_000_000, np.float32)
    mean.add({"w": value}, 3.0)
    tracemalloc.start()
    try:
        for _ in range(3):
            mean.add({"w": value}, 3.0)
        assert tracemalloc.get_traced_memory()[1] < 0.2 * value.nbytes
    finally:
        tracemalloc.stop()
    assert mean.result()["w"].tolist()[:2] == [1.0, 1.0]
