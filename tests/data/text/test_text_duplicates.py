"""Shingles and duplicates: the same text whatever its case and spaces, and most of a text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.data.text import duplicates, normalised, shingles


def noise(seed: int, length: int) -> str:
    letters = np.random.default_rng(seed).integers(97, 123, length)
    return "".join(map(chr, letters))


@given(st.text(min_size=64, max_size=200), st.text(max_size=20), st.text(max_size=20))
def test_a_shingle_is_the_same_number_wherever_it_stands(
    text: str, before: str, after: str
) -> None:
    alone, inside = shingles(text), shingles(before + text + after)
    assert len(alone) == len(text) - 63
    assert (inside[len(before) : len(before) + len(alone)] == alone).all()


@given(st.text(alphabet="ab", min_size=64, max_size=64), st.integers(0, 63))
def test_another_character_gives_another_number(text: str, place: int) -> None:
    other = text[:place] + "c" + text[place + 1 :]
    assert shingles(text)[0] != shingles(other)[0]


def test_numbers_of_noise_differ() -> None:
    assert len(np.unique(shingles(noise(0, 50_063)))) == 50_000
    assert len(shingles("a" * 63)) == 0


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    """But for the few characters that no longer compose once they are folded."""
    once = normalised(text)
    assert normalised(once.upper()) == normalised(once.lower()) or not text.isascii()
    assert "  " not in once


@pytest.mark.parametrize(("common", "said"), [(400, "near-duplicate"), (200, "")])
def test_most_of_a_text_makes_it_a_near_duplicate(common: int, said: str) -> None:
    """Of 600 characters with 400 (200) in common, 337 (137) of 537 shingles are: .63 (.26)."""
    tested, rest = noise(1, 600), noise(2, 600)
    assert list(duplicates([tested[:common] + rest[: 600 - common]], [tested], 0.5)) == [said]
    assert list(duplicates([tested[:common]], [tested], 0.0)) == [""]


def test_the_same_text_is_a_duplicate_however_short() -> None:
    assert list(duplicates(["a", "b"], ["b"], 0.5)) == ["", "duplicate"]
    assert list(duplicates(["a"], [], 0.5)) == [""]
