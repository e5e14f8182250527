"""The steps of a query, and who is asked for which rows: no clock, no network."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.inference.ask.query import (
    SILENT,
    Call,
    Cells,
    ExpertRequest,
    Outcome,
    group_by_expert,
    next_best,
    prefer_healthy,
    split_rows,
)

EXPERTS, CLASSES, OWN = 4, 2, 0
SCORES = np.array([[0.0, 4.0, 3.0, 2.0], [0.0, 2.0, 3.0, 4.0]], np.float32)
ALL = {1, 2, 3}


def logits_of(expert: int, rows: np.ndarray) -> np.ndarray:
    """The answer of an expert says who it is and which row it is for."""
    return np.stack([np.full(len(rows), 10 * expert), rows], axis=1).astype(np.float32)


def start(ids: list[list[int]], *, up: set[int] = ALL, **options: object) -> Call:
    options = {"scores": SCORES} | options
    return Call(np.array(ids), CLASSES, own=OWN, available=lambda: up, **options)  # type: ignore[arg-type]


def reply(call: Call, request: ExpertRequest) -> None:
    call.answered(request, logits_of(request.expert, request.rows))


def finish(call: Call) -> Outcome:
    outcome = call.finish(lambda rows: logits_of(OWN, rows), logits_of(OWN, call.own_cells.rows))
    for row, slot in zip(*np.nonzero(outcome.answered_by != SILENT), strict=True):
        expected = [10 * outcome.answered_by[row, slot], row]
        assert outcome.logits[row, slot].tolist() == expected
    assert np.isnan(outcome.logits[outcome.answered_by == SILENT]).all()
    return outcome


def asked(requests: list[ExpertRequest]) -> list[tuple[int, list[int], str]]:
    return [(one.expert, one.rows.tolist(), one.why) for one in requests]


def test_rows_are_grouped_by_expert_and_own_rows_stay() -> None:
    call = start([[1, 0], [3, 1]])
    requests = call.begin()
    assert asked(requests) == [(1, [0, 1], "chosen"), (3, [1], "chosen")]
    for request in requests:
        assert not call.settled
        reply(call, request)
    assert call.settled
    assert finish(call).answered_by.tolist() == [[1, 0], [3, 1]]


def test_a_failure_is_followed_by_the_next_best_and_then_by_the_local_one() -> None:
    call = start([[1], [3]])
    first, other = call.begin()
    reply(call, other)
    (second,) = call.failed(first)
    assert asked([second]) == [(2, [0], "next-best")]
    (third,) = call.failed(second)
    assert asked([third]) == [(3, [0], "next-best")]
    assert call.failed(third) == []
    assert call.settled
    assert finish(call).answered_by.tolist() == [[0], [3]]


def test_the_answer_of_the_next_best_takes_the_place() -> None:
    call = start([[1], [3]])
    first, other = call.begin()
    (second,) = call.failed(first)
    reply(call, second)
    assert not call.settled
    reply(call, other)
    assert call.settled
    assert finish(call).answered_by.tolist() == [[2], [3]]


def test_fallbacks_are_counted() -> None:
    call = start([[1], [1]], fallbacks=1)
    (first,) = call.begin()
    again = call.failed(first)
    assert asked(again) == [(2, [0], "next-best"), (3, [1], "next-best")]
    assert [call.failed(one) for one in again] == [[], []]
    assert finish(call).answered_by.tolist() == [[0], [0]]


def test_without_scores_the_local_expert_follows_at_once() -> None:
    call = start([[1], [3]], scores=None)
    assert [call.failed(one) for one in call.begin()] == [[], []]
    assert call.settled
    assert finish(call).answered_by.tolist() == [[0], [0]]


def test_the_local_expert_goes_before_worse_ones() -> None:
    scores = np.array([[3.0, 4.0, 2.0, 1.0]], np.float32)
    call = start([[1]], scores=scores)
    assert call.failed(call.begin()[0]) == []
    assert finish(call).answered_by.tolist() == [[0]]


def test_who_is_down_is_not_asked() -> None:
    call = start([[1], [3]], up={2})
    requests = call.begin()
    assert asked(requests) == [(2, [0, 1], "next-best")]
    assert call.skipped == {1: 1, 3: 1}
    reply(call, requests[0])
    assert finish(call).answered_by.tolist() == [[2], [2]]


def test_with_nobody_up_everything_is_local() -> None:
    call = start([[1, 2], [3, 0]], up=set())
    assert call.begin() == []
    assert call.settled
    assert finish(call).answered_by.tolist() == [[0, SILENT], [SILENT, 0]]


def test_a_row_with_one_answer_leaves_the_silent_out() -> None:
    """No third expert is asked: the second already is the next best."""
    call = start([[1, 2], [3, 2]])
    one, two, three = call.begin()
    reply(call, two)
    assert call.failed(one) == []
    assert call.failed(three) == []
    assert finish(call).answered_by.tolist() == [[SILENT, 2], [SILENT, 2]]


def test_a_row_whose_choices_all_fail_asks_the_next_best() -> None:
    call = start([[1, 2], [3, 2]])
    one, two, three = call.begin()
    assert call.failed(one) == []
    reply(call, three)
    (again,) = call.failed(two)
    assert asked([again]) == [(3, [0], "next-best")]
    reply(call, again)
    assert finish(call).answered_by.tolist() == [[3, SILENT], [3, SILENT]]


def test_a_hedge_is_for_rows_without_any_answer() -> None:
    call = start([[1], [3]])
    slow, quick = call.begin()
    reply(call, quick)
    (hedge,) = call.hedge()
    assert asked([hedge]) == [(2, [0], "hedge")]
    assert call.hedge() == []  # one at a time
    reply(call, hedge)
    assert call.settled  # without the slow one
    assert finish(call).answered_by.tolist() == [[2], [3]]
    assert slow.expert == 1


def test_the_chosen_expert_wins_if_both_have_answered() -> None:
    call = start([[1], [3]])
    slow, quick = call.begin()
    reply(call, quick)
    (hedge,) = call.hedge()
    reply(call, slow)
    assert call.settled
    reply(call, hedge)
    assert finish(call).answered_by.tolist() == [[1], [3]]


def test_a_failure_beside_a_hedge_waits_for_the_hedge() -> None:
    call = start([[1], [3]])
    slow, quick = call.begin()
    reply(call, quick)
    (hedge,) = call.hedge()
    assert call.failed(slow) == []
    assert not call.settled
    (last,) = call.failed(hedge)
    assert asked([last]) == [(3, [0], "next-best")]
    assert call.failed(last) == []
    assert finish(call).answered_by.tolist() == [[0], [3]]


def test_after_a_failed_hedge_the_next_one_is_asked_besides() -> None:
    call = start([[1], [3]])
    slow, quick = call.begin()
    reply(call, quick)
    (hedge,) = call.hedge()
    (again,) = call.failed(hedge)
    assert asked([again]) == [(3, [0], "hedge")]
    assert call.failed(again) == []
    assert not call.settled
    reply(call, slow)
    assert finish(call).answered_by.tolist() == [[1], [3]]


def test_a_slow_next_best_is_hedged_too() -> None:
    call = start([[1], [3]])
    dead, quick = call.begin()
    reply(call, quick)
    (slow,) = call.failed(dead)
    assert asked([slow]) == [(2, [0], "next-best")]
    (hedge,) = call.hedge()
    assert asked([hedge]) == [(3, [0], "hedge")]
    reply(call, hedge)
    assert call.settled
    assert finish(call).answered_by.tolist() == [[3], [3]]


def test_what_is_still_on_its_way_at_the_deadline_is_replaced() -> None:
    call = start([[1], [3]])
    call.begin()
    assert finish(call).answered_by.tolist() == [[0], [0]]


def test_rows_that_must_stay_are_answered_here() -> None:
    call = start([[1, 2], [3, 2]], keep=np.array([True, False]))
    requests = call.begin()
    assert asked(requests) == [(2, [1], "chosen"), (3, [1], "chosen")]
    for request in requests:
        call.failed(request)
    assert finish(call).answered_by.tolist() == [[0, SILENT], [0, SILENT]]


def test_a_local_answer_that_is_no_number_is_no_answer() -> None:
    call = start([[1], [0]], up=set())
    call.begin()
    nan = np.full((1, CLASSES), np.nan, np.float32)
    outcome = call.finish(lambda rows: nan, nan)
    assert outcome.answered_by.tolist() == [[SILENT], [SILENT]]


def test_large_groups_are_cut_and_fail_part_by_part() -> None:
    call = Call(np.ones((5, 1), int), CLASSES, own=0, available=lambda: {1}, max_rows=2)
    parts = call.begin()
    assert [part.rows.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    reply(call, parts[2])
    call.failed(parts[0])
    reply(call, parts[1])
    assert finish(call).answered_by.tolist() == [[0], [0], [1], [1], [1]]


def test_an_empty_batch_is_settled() -> None:
    call = Call(np.zeros((0, 2), int), CLASSES, own=0, available=lambda: ALL)
    assert call.begin() == []
    assert call.settled
    assert finish(call).logits.shape == (0, 2, CLASSES)


@given(st.data())
def test_whatever_fails_every_row_has_a_right_answer(data: st.DataObject) -> None:
    """Random choices, replies in random order, some fail, hedges at any time, any cut."""
    rows, top_k = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    ids = np.stack([rng.permutation(EXPERTS)[:top_k] for _ in range(rows)])
    scores = rng.normal(size=(rows, EXPERTS)).astype(np.float32)
    up = set(data.draw(st.sets(st.sampled_from([1, 2, 3]))))
    call = Call(
        ids, CLASSES, own=OWN, available=lambda: up, scores=scores,
        fallbacks=data.draw(st.integers(0, 3)), max_rows=data.draw(st.integers(1, 4)),
    )  # fmt: skip
    pending = call.begin()
    failed: set[tuple[int, int]] = set()
    replied: set[tuple[int, int]] = set()
    while pending and not call.settled:
        event = data.draw(st.sampled_from(["reply", "reply", "fail", "hedge", "down", "cut"]))
        if event == "cut":
            break
        if event == "down":
            up.discard(data.draw(st.sampled_from([1, 2, 3])))
        elif event == "hedge":
            pending += call.hedge()
        else:
            request = pending.pop(data.draw(st.integers(0, len(pending) - 1)))
            asked_for = {(request.expert, row) for row in request.rows.tolist()}
            assert not asked_for & (failed | replied)  # nobody is asked twice for a row
            if event == "reply":
                replied |= asked_for
                reply(call, request)
            else:
                failed |= asked_for
                pending += call.failed(request)
    if not pending:
        assert call.settled
    outcome = finish(call)
    for row in range(rows):
        by = [expert for expert in outcome.answered_by[row].tolist() if expert != SILENT]
        assert by
        chosen = ids[row].tolist()
        due = {e for e in chosen if e == OWN or (e, row) in replied}
        if due:
            assert set(by) == due
        else:
            assert len(by) == 1
            assert by[0] == OWN or (by[0], row) in replied


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
    parts = list(split_rows(cells, 2))
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
