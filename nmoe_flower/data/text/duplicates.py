"""Documents that are in the test split, too: the same text, or most of it.

Texts are compared without regard to case, width and white space. A long document is compared by its
shingles: all runs of 64 characters, of which each is one number.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["duplicates", "normalised", "shingles", "text_number"]

Numbers = npt.NDArray[np.uint64]

SHINGLE = 64  # characters, a power of 2
_MOST_SHINGLES = 1 << 24  # of all held-out documents, kept in memory
_MARKS = 24  # first bits of a number that are looked at first
_SHIFT = np.uint64(64 - _MARKS)
_FACTOR = 0x9E3779B97F4A7C15


def normalised(text: str) -> str:
    """A text in lower case, compatible characters as one, white space as single spaces.

    >>> normalised("Ａ  Straße　 Ｂ ")
    'a strasse b'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_number(plain: str) -> int:
    """A number of 64 bits that stands for a normalised text.

    Args:
        plain: The normalised text.
    """
    return int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "little")


def shingles(plain: str) -> Numbers:
    """One number for each run of 64 characters, uint64 [max(0, characters - 63)].

    The same characters give the same number wherever they stand.

    Args:
        plain: The normalised text.
    """
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    found, length, factor = _mixed(points), 1, _FACTOR
    while length < SHINGLE and len(found) > length:  # runs of 2, 4, 8, ... characters
        found = found[:-length] * np.uint64(factor) + found[length:]
        length, factor = 2 * length, factor * factor % (1 << 64)
    return _mixed(found) if length == SHINGLE else np.zeros(0, np.uint64)


def _mixed(values: Numbers) -> Numbers:
    """Numbers whose every bit depends on all bits of those given (the finish of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def duplicates(texts: Sequence[str], held_out: Sequence[str], near: float) -> Iterator[str]:
    """Tell of each text whether it is among the held-out ones.

    Args:
        texts: Normalised texts to look for, such as a training split's.
        held_out: Normalised texts to look in.
        near: Share of a text's shingles that must be there for a near duplicate; 0: none are.

    Yields:
        ``duplicate``, ``near-duplicate`` or "" for each of ``texts``.
    """
    exact = {text_number(plain) for plain in held_out}
    size = sum(max(0, len(plain) - SHINGLE + 1) for plain in held_out)
    # Of very much text only the shingles are kept whose number is a multiple: on both sides.
    every = np.uint64(1 + size // _MOST_SHINGLES)
    kept = [found[found % every == 0] for found in map(shingles, held_out)] if near else []
    known = np.unique(np.concatenate([np.zeros(0, np.uint64), *kept]))
    marked = np.zeros(1 << _MARKS, bool)
    marked[known >> _SHIFT] = True
    for plain in texts:
        if text_number(plain) in exact:
            yield "duplicate"
            continue
        own = shingles(plain) if len(known) else known
        own = own[own % every == 0]
        maybe = own[marked[own >> _SHIFT]]  # few, so that few are searched for
        there = np.count_nonzero(known[np.searchsorted(known[:-1], maybe)] == maybe)
        yield "near-duplicate" if there and there >= near * len(own) else ""
