"""Arguments that several benchmarks take."""

import argparse
from collections.abc import Callable, Sequence

__all__ = ["names", "positive"]


def names(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names, each one of ``allowed``.

    >>> names(["tiny", "short"])("short,tiny")
    ['short', 'tiny']
    """

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is unknown; allowed: {', '.join(allowed)}"
                )
        return chosen

    return parse


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small; allowed: 1 or more")
    return value
