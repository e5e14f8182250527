"""Random order that belongs to a client, not to its place in a list."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nmoe_flower.alignment.arrays import AnyFloats, Bools, Ints
from nmoe_flower.errors import ConfigError

__all__ = ["client_keys", "noise", "top"]

Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 20


def client_keys(clients: Sequence[int | str], rng: np.random.Generator) -> Keys:
    """One 64-bit key per client, from its name and one draw of ``rng``.

    Raises:
        ConfigError: Two clients have one name.
    """
    salt = rng.integers(0, 1 << 63, dtype=np.uint64)
    names = np.asarray(clients)
    if len(np.unique(names)) != len(names):
        found, times = np.unique(names, return_counts=True)
        twice = found[times > 1][0].item()
        raise ConfigError(f"client {twice!r} is listed twice; allowed: every client once")
    if names.dtype.kind in "iu":
        return _mix(names.astype(np.uint64) * _GOLDEN + salt)
    digests = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in clients]
    return _mix(np.frombuffer(b"".join(digests), dtype="<u8") + salt)


def noise(keys: Keys, experts: int) -> npt.NDArray[np.float32]:
    """Uniform numbers in [0, 1), [clients, experts]; a client's row depends on its key alone."""
    steps = (np.arange(1, experts + 1, dtype=np.uint64) * _GOLDEN)[None, :]
    return (_mix(keys[:, None] + steps) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


def _mix(value: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def top(scores: AnyFloats, counts: Ints, keys: Keys) -> Bools:
    """Mark the ``counts[i]`` largest of each row; equal scores are chosen among at random.

    Args:
        scores: Scores to choose by, float [clients, experts].
        counts: [clients], between 0 and the number of experts.
        keys: [clients]: see `client_keys`.

    >>> keys = client_keys([0, 1], np.random.default_rng(0))
    >>> top(np.array([[3.0, 1.0, 2.0], [5.0, 4.0, 6.0]]), np.array([2, 0]), keys).astype(int)
    array([[1, 0, 1],
           [0, 0, 0]])
    """
    chosen = np.zeros(scores.shape, dtype=bool)
    step = max(1, _BLOCK // max(1, scores.shape[1]))
    for count in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == count)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            chosen[part] = _top(scores[part], int(count), keys[part])
    return chosen


def _top(scores: AnyFloats, count: int, keys: Keys) -> Bools:
    experts = scores.shape[1]
    least = np.partition(scores, experts - count, axis=1)[:, experts - count, None]
    chosen: Bools = scores >= least
    row = np.flatnonzero(chosen.sum(axis=1) > count)
    if len(row):
        lots = np.where(scores[row] == least[row], noise(keys[row], experts), np.float32(2.0))
        lots[~chosen[row]] = -1.0
        best = np.argpartition(lots, experts - count, axis=1)[:, experts - count :]
        chosen[row] = False
        chosen[row[:, None], best] = True
    return chosen
