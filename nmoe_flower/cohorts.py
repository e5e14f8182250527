"""How many clients a round asks."""

import math

__all__ = ["cohort_size"]


def cohort_size(num_nodes: int, fraction: float) -> int:
    """Exactly ``fraction * num_nodes`` rounded half up.

    Args:
        num_nodes: How many could be asked.
        fraction: The share of them that is asked, 0 to 1.

    >>> [cohort_size(n, 0.7) for n in (5, 10, 15)]
    [4, 7, 11]
    """
    return math.floor(fraction * num_nodes + 0.5)
