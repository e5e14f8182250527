"""Who is asked for which rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.inference.ask.plan import Cells, group_by_expert, next_best, prefer_healthy, split


def choices(draw: st.DrawFn, rows: int, experts: int, top_k: int) -> np.ndarray:
    return np.array(
        [draw(st.permutations(range(experts)))[:top_k] for _ in range(rows)], np.int64
    ).reshape(rows, top_k)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, K] that differ within a row, and scores [B, E] with many ties."""
    experts = draw(st.integers(1, 5))
    top_k, rows = draw(st.integers(1, experts)), draw(st.integers(0, 6))
    scores = [[draw(st.integers(-3, 3)) for _ in range(experts)] for _ in range(rows)]
    return choices(draw, rows, experts, top_k), np.array(scores, np.float32).reshape(rows, experts)


@given(batches())
def test_every_choice_is_in_exactly_one_group(batch: tuple[np.ndarray, np.ndarray]) -> None:
    ids, _ = batch
    groups = group_by_expert(ids, skip={0})
    found = np.full(ids.shape, -1)
    for expert, cells in groups.items():
        assert (found[cells.rows, cells.slots] == -1).all()
        found[cells.rows, cells.slots] = expert
    assert np.array_equal(found, np.where(ids == 0, -1, ids))


def test_more_rows_than_allowed_are_cut_in_order() -> None:
    cells = Cells(np.arange(5), np.arange(5) + 10)
    parts = list(split(cells, 2))
    assert [part.rows.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [part.slots.tolist() for part in parts] == [[10, 11], [12, 13], [14]]


@given(batches(), st.data())
def test_the_next_best_is_what_a_loop_finds(
    batch: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    _, scores = batch
    experts = scores.shape[1]
    bools = st.lists(st.booleans(), min_size=experts, max_size=experts)
    available = np.array(data.draw(bools))
    tried = np.array([data.draw(bools) for _ in scores], bool).reshape(scores.shape)
    own = data.draw(st.integers(0, experts - 1))
    for row, expert in enumerate(next_best(scores, tried, available, own=own).tolist()):
        left = [e for e in range(experts) if e == own or (available[e] and not tried[row, e])]
        assert expert == max(left, key=lambda e: (scores[row, e], -e))


def test_a_score_that_is_no_number_is_the_lowest() -> None:
    scores = np.array([[np.nan, -1e30, np.nan]], np.float32)
    assert next_best(scores, np.zeros((1, 3), bool), np.ones(3, bool), own=2).tolist() == [1]
    assert prefer_healthy(np.array([[1]]), scores, [0, 0, 0], margin=0.0).tolist() == [[1]]


@given(batches(), st.data())
def test_preference_moves_only_to_the_healthier_within_the_margin(
    batch: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    """The gate's own choice, the best first, is what the penalties then may change."""
    _, scores = batch
    experts = scores.shape[1]
    top_k = data.draw(st.integers(1, experts))
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    penalty = np.array([data.draw(st.sampled_from([0.0, 0.25, 1.0])) for _ in range(experts)])
    margin = data.draw(st.sampled_from([0.0, 0.5, 2.0]))
    preferred = prefer_healthy(ids, scores, penalty, margin=margin)
    assert all(len(set(row)) == top_k for row in preferred.tolist())
    for row, slot in zip(*np.nonzero(preferred != ids), strict=True):
        new, old = preferred[row, slot], ids[row, slot]
        assert penalty[new] < penalty[old]
        assert scores[row, new] > scores[row, old] - margin


def test_two_slots_do_not_move_to_the_same_expert() -> None:
    scores = np.array([[3.0, 2.9, 2.8, 2.0]], np.float32)
    moved = prefer_healthy(np.array([[0, 1]]), scores, [1, 1, 0, 0], margin=1.0)
    assert moved.tolist() == [[2, 3]]  # 2.8 beats 2.0 and 1.9, then 2.0 beats 1.9
    assert prefer_healthy(np.array([[0, 1]]), scores, [1, 1, 0, 0], margin=0.5).tolist() == [[2, 1]]
