"""Windows of tokens: where they begin, what is scored, and how many bytes that is."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.data.text import TextSplit, packed_windows


def split(sizes: list[list[int]]) -> TextSplit:
    codes = np.zeros(len(sizes), np.int64)
    array = np.array(sizes, np.uint16)
    return TextSplit(np.zeros_like(array), array, codes, np.arange(len(sizes)), codes)


def test_bytes_of_what_is_scored() -> None:
    """Window of 5: the first two are given; of the other three one ends a document (0 bytes)."""
    windows = split([[1, 2, 3, 0, 4], [9, 9, 1, 1, 1]])
    assert windows.scored_bytes(2).tolist() == [3 + 4, 3]
    # place t predicts token t + 1, so the first scored one is place 1
    assert windows.scored(2).tolist() == [[False, True, False, True], [False, True, True, True]]
    assert windows.scored().sum() == 3 + 4


@given(
    st.lists(st.lists(st.integers(0, 400), min_size=6, max_size=6), min_size=1, max_size=4),
    st.integers(1, 5),
)
def test_scored_bytes_are_those_of_the_mask(sizes: list[list[int]], prefix: int) -> None:
    windows = split(sizes)
    masked = np.where(windows.scored(prefix), windows.sizes[:, 1:], 0).sum(axis=1)
    assert windows.scored_bytes(prefix).tolist() == masked.tolist()


def test_rows_are_taken_together() -> None:
    windows = split([[1, 1], [2, 2], [3, 3]])
    assert windows.take(np.array([2])).sizes.tolist() == [[3, 3]]
    assert len(windows.of_client(0)) == 3
    assert windows.take(slice(0, 2)).domains.tolist() == [0, 1]


@st.composite
def documents(draw: st.DrawFn) -> tuple[list[int], int]:
    lengths = draw(st.lists(st.integers(1, 30), max_size=6))
    return [0, *np.cumsum(lengths).tolist()][:-1] if lengths else [], sum(lengths)


@given(documents(), st.integers(2, 9))
def test_windows_cover_a_stream_once(place: tuple[list[int], int], window: int) -> None:
    starts, length = place
    first, after = packed_windows(np.array(starts, np.int64), length, window=window)
    assert (after - first == window).all()
    held = [token for a, b in zip(first, after, strict=True) for token in range(a, b)]
    assert held == list(range(length - length % window))


@given(documents(), st.integers(2, 9), st.data())
def test_windows_of_single_documents_lose_nothing(
    place: tuple[list[int], int], window: int, data: st.DataObject
) -> None:
    """Every token is in a window, none of two documents; with overlap all but it is new."""
    starts, length = place
    stride = data.draw(st.integers(1, window))
    first, after = packed_windows(
        np.array(starts, np.int64), length, window=window, stride=stride, alone=True
    )
    seen: set[int] = set()
    for a, b in zip(first.tolist(), after.tolist(), strict=True):
        assert 1 <= b - a <= window
        assert len({int(np.searchsorted(starts, token, "right")) for token in range(a, b)}) == 1
        assert not set(range(a, b)) <= seen  # each window brings something new
        seen |= set(range(a, b))
    assert seen == set(range(length))
