"""The joint policy against two slow second versions: enumeration, and a linear program."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from nmoe_flower.alignment import InfeasibleBoundsError, Standing, align, price_bound
from nmoe_flower.alignment.solver.bounds import fillable, nearest_lo


def stream(seed=0):
    return np.random.default_rng(seed)


def best_by_enumeration(values, counts, lo, hi):
    """(slots filled, value) of the best assignment, or None; tries every one."""
    experts = values.shape[1]
    choices = []
    for row, count in zip(values, counts, strict=True):
        able = np.flatnonzero(np.isfinite(row))
        choices.append([c for k in range(count + 1) for c in itertools.combinations(able, k)])
    best = None
    for picks in itertools.product(*choices):
        loads = np.bincount([e for pick in picks for e in pick], minlength=experts)
        if (loads >= lo).all() and (loads <= hi).all():
            value = sum(values[i, e] for i, pick in enumerate(picks) for e in pick)
            best = max(best or (-1, 0.0), (int(loads.sum()), value))
    return best


@st.composite
def problems(draw):
    clients, experts = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    seed, forbid = draw(st.integers(0, 10_000)), draw(st.booleans())
    rng = stream(seed)
    values = rng.integers(-3, 4, (clients, experts)).astype(float)  # many ties
    if forbid:
        values[rng.random(values.shape) < 0.3] = -np.inf
    counts = rng.integers(0, experts + 1, clients)
    lo = rng.integers(0, 3, experts)
    return values, counts, lo, lo + rng.integers(0, 3, experts)


@settings(max_examples=250, deadline=None)
@given(problems())
def test_joint_equals_enumeration(problem):
    values, counts, lo, hi = problem
    able = np.minimum(counts, np.isfinite(values).sum(axis=1))
    if not able.any():
        return
    expected = best_by_enumeration(values, able, lo, hi)
    if expected is None:
        with pytest.raises(InfeasibleBoundsError) as caught:
            align(values, counts, rng=stream(), lo=lo, hi=hi)
        error = caught.value
        assert best_by_enumeration(values, able, error.lo, error.hi) is not None
        smaller = itertools.product(*(range(bound + 1) for bound in lo))
        feasible = [s for s in smaller if best_by_enumeration(values, able, s, error.hi)]
        assert error.lo.sum() == max(map(sum, feasible))
        return
    chosen = align(values, counts, rng=stream(), lo=lo, hi=hi)
    loads = chosen.sum(axis=0)
    assert (loads >= lo).all()
    assert (loads <= hi).all()
    assert (chosen.sum(axis=1) <= able).all()
    assert (int(chosen.sum()), values[chosen].sum()) == pytest.approx(expected)


def lp_optimum(values, counts, lo, hi):
    clients, experts = values.shape
    rows = sp.kron(sp.eye(clients), np.ones(experts))
    columns = sp.kron(np.ones((1, clients)), sp.eye(experts))
    solved = linprog(
        -values.ravel(), A_eq=rows.tocsr(), b_eq=counts, bounds=(0, 1), method="highs",
        A_ub=sp.vstack([columns, -columns]).tocsr(), b_ub=np.concatenate([hi, -lo]),
    )  # fmt: skip
    return -solved.fun


@pytest.mark.parametrize("kind", ["noise", "classes", "popular", "flat"])
def test_joint_equals_the_linear_program(kind):
    rng = stream(3)
    values = {
        "noise": rng.random((120, 12)),
        "classes": rng.random((5, 12))[rng.integers(0, 5, 120)],
        "popular": rng.random((120, 12)) + 3 * rng.random(12),
        "flat": np.zeros((120, 12)),
    }[kind]
    counts = rng.integers(0, 5, 120)
    lo, hi = np.full(12, counts.sum() // 12 - 2), np.full(12, counts.sum() // 12 + 3)
    chosen = align(values, counts, rng=rng, lo=lo, hi=hi)
    assert (chosen.sum(axis=1) == counts).all()
    assert values[chosen].sum() == pytest.approx(lp_optimum(values, counts, lo, hi), abs=1e-6)


def test_default_bounds_share_the_slots_evenly():
    values = stream(1).random((23, 5)) + np.arange(5)
    loads = align(values, np.full(23, 2), rng=stream()).sum(axis=0)
    assert sorted(loads) == [9, 9, 9, 9, 10]  # 46 slots


def test_large_samples_lead_to_the_optimum():
    """Growing samples are used from 4,097 clients on; the result is still the optimum."""
    values = stream(2).random((4200, 6)).astype(np.float32)
    counts = np.ones(4200, dtype=int)
    chosen = align(values, counts, rng=stream())
    assert (chosen.sum(axis=0) == 700).all()
    bound = np.full(6, 700)
    optimum = lp_optimum(values.astype(float), counts, bound, bound)
    assert values[chosen].sum(dtype=float) == pytest.approx(optimum, abs=1e-3)


def test_contradictory_bounds_name_the_cut_and_the_way_out():
    # Experts 0 and 1 need 3 + 3; three clients of one slot have 3 slots for them.
    with pytest.raises(InfeasibleBoundsError) as caught:
        align(np.zeros((3, 3)), [1, 1, 1], rng=stream(), lo=[3, 3, 0], hi=[3, 3, 3])
    error = caught.value
    assert error.experts.tolist() == [0, 1]
    assert error.clients.tolist() == [0, 1, 2]
    assert error.lo.sum() == 3
    assert "experts 0, 1 need 6" in str(error)
    assert "have 3 slots" in str(error)
    assert align(np.zeros((3, 3)), [1, 1, 1], rng=stream(), lo=error.lo, hi=error.hi).sum() == 3


def test_the_cut_of_forbidden_pairs_leaves_out_innocent_experts():
    barred = np.array([[0.0, -np.inf, -np.inf], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    with pytest.raises(InfeasibleBoundsError) as caught:
        align(barred, [1, 1, 1], rng=stream(), lo=[0, 2, 1], hi=[3, 3, 3])
    assert caught.value.experts.tolist() == [1, 2]  # need 3, only clients 1 and 2 can hold them
    assert caught.value.clients.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("lo", "hi", "text"),
    [(-1, None, "lo=-1"), ([1, 1], None, "shape"), (2, 1, "above hi=1"), (0.5, None, "lo=0.5")],
)
def test_bad_bounds(lo, hi, text):
    with pytest.raises(ValueError, match=text):
        align(np.zeros((3, 3)), [1, 1, 1], rng=stream(), lo=lo, hi=hi)


def test_a_low_upper_bound_leaves_slots_free():
    values = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 5.0]])
    chosen = align(values, [1, 1, 1], rng=stream(), lo=0, hi=1)
    assert chosen.astype(int).tolist() == [[1, 0], [0, 0], [0, 1]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 1000))
def test_closed_forms_equal_maximum_flow(counts, seed):
    experts = 4
    caps = stream(seed).integers(0, 6, experts)
    everyone = np.ones((len(counts), experts), dtype=bool)
    by_flow = nearest_lo(np.array(counts), everyone, caps)
    closed = nearest_lo(np.array(counts), None, caps)
    assert closed.sum() == by_flow.sum() == fillable(np.array(counts), caps)
    assert (closed <= caps).all()
    assert (nearest_lo(np.array(counts), everyone, closed) == closed).all()


# --- the last assignment is brought up to date ---


def even(total, experts):
    return np.full(experts, total // experts), np.full(experts, -(-total // experts))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 30), st.booleans())
def test_a_mended_assignment_is_one(seed, few, forbid):
    """Capacities, bounds and barred pairs hold, those by lot included; most keep what they have."""
    rng = stream(seed)
    values = rng.random((300, 4))
    counts = rng.integers(0, 4, 300)
    standing = Standing()
    before = align(values, counts, rng=stream(1), standing=standing)
    assert standing.chosen is before
    changed = np.zeros(300, dtype=bool)
    changed[:few] = True
    values[:few] = rng.random((few, 4))
    counts[:few] = rng.integers(0, 4, few)
    if forbid:
        values[:few][rng.random((few, 4)) < 0.2] = -np.inf
    chosen = align(values, counts, rng=stream(2), standing=standing, changed=changed)
    able = np.minimum(counts, np.isfinite(values).sum(axis=1))
    assert (chosen.sum(axis=1) == able).all()
    assert np.isfinite(values[chosen]).all()
    low, high = even(able.sum(), 4)
    assert (chosen.sum(axis=0) >= low).all()
    assert (chosen.sum(axis=0) <= high).all()
    assert (chosen != before).any(axis=1).sum() <= max(2 * few, few + 16)


def test_a_mended_assignment_is_close_to_its_bound():
    rng = stream(4)
    popular = 2 * rng.random(8)
    values = rng.random((4000, 8)) + popular
    counts = rng.integers(1, 4, 4000)
    standing = Standing()
    for number in range(5):  # every round, another hundredth changes
        changed = rng.random(4000) < 0.01
        values[changed] = rng.random((changed.sum(), 8)) + popular
        chosen = align(values, counts, rng=stream(number), standing=standing, changed=changed)
        bound = price_bound(values, counts, standing.prices)
        best = values[align(values, counts, rng=stream())].sum()
        assert values[chosen].sum() <= best + 1e-9
        assert best <= bound + 1e-9
        assert (bound - values[chosen].sum()) / bound < 0.001


def test_where_the_rest_cannot_stay_everybody_is_assigned():
    """One expert is barred for most: those who hold it and did not change must give it up."""
    values = stream(5).random((400, 4))
    counts = np.ones(400, dtype=int)
    standing = Standing()
    align(values, counts, rng=stream(), standing=standing)
    changed = np.zeros(400, dtype=bool)
    changed[0] = True
    bounds = {"lo": [0, 0, 0, 0], "hi": [0, 200, 200, 200]}
    chosen = align(values, counts, rng=stream(), standing=standing, changed=changed, **bounds)
    whole = align(values, counts, rng=stream(), **bounds)
    assert (chosen == whole).all()


def test_who_is_not_said_to_have_changed_is_noticed_where_it_shows():
    values = stream(6).random((400, 4))
    counts = np.ones(400, dtype=int)
    standing = Standing()
    before = align(values, counts, rng=stream(), standing=standing)
    counts[7], nobody = 2, np.zeros(400, dtype=bool)
    values[8, before[8]] = -np.inf
    chosen = align(values, counts, rng=stream(), standing=standing, changed=nobody)
    assert (chosen.sum(axis=1) == counts).all()
    assert not chosen[8, before[8]].any()


def test_another_size_is_solved_whole():
    standing = Standing(np.ones((3, 2), dtype=bool), np.zeros(2))
    values = stream(7).random((40, 4))
    changed = np.zeros(40, dtype=bool)
    chosen = align(values, np.ones(40), rng=stream(), standing=standing, changed=changed)
    assert (chosen == align(values, np.ones(40), rng=stream())).all()
    assert standing.chosen is chosen


@pytest.mark.parametrize("kind", ["noise", "popular"])
def test_the_prices_prove_the_optimum(kind):
    """At the optimum's prices the bound is the optimum; at any others it is above."""
    rng = stream(8)
    values = rng.random((120, 12)) + (3 * rng.random(12) if kind == "popular" else 0.0)
    counts = rng.integers(0, 5, 120)
    lo, hi = np.full(12, counts.sum() // 12 - 2), np.full(12, counts.sum() // 12 + 3)
    standing = Standing()
    chosen = align(values, counts, rng=rng, lo=lo, hi=hi, standing=standing)
    bound = price_bound(values, counts, standing.prices, lo=lo, hi=hi)
    assert bound == pytest.approx(values[chosen].sum(), abs=1e-9)
    assert price_bound(values, counts, np.zeros(12), lo=lo, hi=hi) >= bound


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"changed": [True]}, r"changed has shape \(1,\)"),
        ({"changed": [1, 0, 0]}, "changed has shape .* type int64; allowed: one bool for each"),
        ({"changed": [True] * 3, "standing": None}, "there is no standing"),
        ({"policy": "greedy"}, "policy 'greedy' takes no standing or changed; joint does"),
    ],
)
def test_what_cannot_be_brought_up_to_date(more, text):
    with pytest.raises(ValueError, match=text):
        align(np.zeros((3, 3)), [1, 1, 1], rng=stream(), **({"standing": Standing()} | more))
