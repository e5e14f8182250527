"""Randomness is an argument: named, independent streams derived from one seed."""

import hashlib

import numpy as np


def derive_seed(seed: int, *path: str | int) -> int:
    """Derive a 63-bit seed for the stream named by ``path``.

    Two different paths give independent streams, and the same path always gives the same one, in
    any process and in any order: that is what makes a resumed run equal an uninterrupted one. A
    number of NumPy is the same as Python's.

    >>> derive_seed(0, "batches", 3, 7) == derive_seed(0, "batches", 3, 7)
    True
    >>> derive_seed(0, "batches", 3, 7) == derive_seed(0, "batches", 37)
    False
    >>> derive_seed(np.int64(0), "batches", np.int32(3)) == derive_seed(0, "batches", 3)
    True
    """
    parts = (part.item() if isinstance(part, np.generic) else part for part in (seed, *path))
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_stream(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for the stream named by ``path``."""
    return np.random.default_rng(derive_seed(seed, *path))
