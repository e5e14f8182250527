import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.strategies.aggregation import WeightedMean


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
