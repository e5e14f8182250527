"""Who is asked for which rows: plain functions of ids, scores and health."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Cells", "Floats", "Ints", "group_by_expert", "next_best", "prefer_healthy", "split"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Cells(NamedTuple):
    """Places in a batch of choices [B, K].

    Attributes:
        rows: [n], in 0..B-1.
        slots: [n], in 0..K-1.
    """

    rows: Ints
    slots: Ints


def group_by_expert(expert_ids: Ints, *, skip: Collection[int] = ()) -> dict[int, Cells]:
    """Where each expert of expert_ids [B, K] is chosen, without the experts in ``skip``.

    >>> groups = group_by_expert(np.array([[2, 0], [2, 1]]), skip={1})
    >>> {expert: cells.rows.tolist() for expert, cells in groups.items()}
    {0: [0], 2: [0, 1]}
    """
    groups = {}
    for expert in np.unique(expert_ids).tolist():
        if expert not in skip:
            rows, slots = np.nonzero(expert_ids == expert)
            groups[expert] = Cells(rows.astype(np.int64), slots.astype(np.int64))
    return groups


def split(cells: Cells, max_rows: int) -> Iterator[Cells]:
    """Cut into parts of at most ``max_rows`` rows: more do not fit into one request."""
    for start in range(0, len(cells.rows), max_rows):
        part = slice(start, start + max_rows)
        yield Cells(cells.rows[part], cells.slots[part])


def next_best(scores: Floats, tried: Bools, available: Bools, *, own: int) -> Ints:
    """The best expert of each row that was not tried and is available; ``own`` always is.

    So a row whose own expert scores higher than every other one left stays at home.

    Args:
        scores: Of the gate, [B, E].
        tried: Who was asked for this row already, [B, E].
        available: Who may be asked, [E].
        own: This device's expert.

    Returns:
        Expert ids [B].

    >>> scores = np.array([[9.0, 5.0, 3.0], [9.0, 1.0, 3.0]], np.float32)
    >>> tried = np.array([[True, False, False]] * 2)
    >>> next_best(scores, tried, np.array([True, True, True]), own=2).tolist()
    [1, 2]
    """
    left = ~tried & available
    left[:, own] = True
    return np.asarray(np.where(left, _comparable(scores), -np.inf).argmax(axis=1), np.int64)


def prefer_healthy(
    expert_ids: Ints, scores: Floats, penalty: npt.ArrayLike, *, margin: float
) -> Ints:
    """Replace experts by healthier ones that score almost as high.

    An expert loses up to ``margin`` of its score: ``margin`` times its penalty. Each chosen expert
    gives way to the one that then scores highest, if that is not chosen in its row already. So
    nobody takes over whose score is lower by ``margin`` or more.

    Args:
        expert_ids: The gate's choice, [B, K].
        scores: Of the gate, [B, E]; a difference of ``margin`` is a factor e^margin of probability.
        penalty: How unwell each expert is, [E], 0..1.
        margin: 0 or more.

    Returns:
        Expert ids [B, K].

    >>> scores = np.array([[2.0, 1.9, 0.0], [2.0, 1.0, 0.0]], np.float32)
    >>> prefer_healthy(np.array([[0], [0]]), scores, [1.0, 0.0, 0.0], margin=0.5).tolist()
    [[1], [0]]
    """
    ids, rows = expert_ids.copy(), np.arange(len(expert_ids))
    adjusted = _comparable(scores) - margin * np.asarray(penalty, np.float64)
    taken = np.zeros(adjusted.shape, dtype=bool)
    np.put_along_axis(taken, ids, True, axis=1)
    for slot in range(ids.shape[1]):
        best = np.where(taken, -np.inf, adjusted).argmax(axis=1)
        gives_way = ~taken[rows, best] & (adjusted[rows, best] > adjusted[rows, ids[:, slot]])
        ids[:, slot] = np.where(gives_way, best, ids[:, slot])
        taken[rows, ids[:, slot]] = True
    return ids


def _comparable(scores: Floats) -> npt.NDArray[np.float64]:
    """Scores as float64 with NaN below every number: argmax would take NaN for the highest."""
    return np.nan_to_num(scores.astype(np.float64), nan=-np.finfo(np.float64).max)
