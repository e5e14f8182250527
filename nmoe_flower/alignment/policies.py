"""`align`: who trains which experts in a round (arXiv 2507.05685, section III-4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.alignment.arrays import AnyFloats, Bools, Ints
from nmoe_flower.alignment.solver import (
    Bound,
    Keys,
    Standing,
    client_keys,
    noise,
    solve_joint,
    top,
)
from nmoe_flower.catalogue import POLICIES, found
from nmoe_flower.errors import ConfigError

__all__ = [
    "Turn",
    "align",
    "choose_balanced",
    "choose_greedy",
    "choose_joint",
    "choose_oracle",
    "choose_random",
    "choose_sequential",
]


@dataclass(frozen=True)
class Turn:
    """What a policy decides by, in one round; sizes and meanings as in `align`."""

    desirability: AnyFloats
    fitness: AnyFloats | None
    truth: AnyFloats | None
    capacity: Ints
    keys: Keys
    lo: Bound
    hi: Bound
    load_weight: float
    standing: Standing | None
    changed: Bools | None


def align(
    desirability: npt.ArrayLike,
    capacity: npt.ArrayLike,
    *,
    policy: str = "joint",
    rng: np.random.Generator,
    clients: Sequence[int | str] | None = None,
    fitness: npt.ArrayLike | None = None,
    truth: npt.ArrayLike | None = None,
    lo: Bound = None,
    hi: Bound = None,
    load_weight: float = 1.0,
    standing: Standing | None = None,
    changed: npt.ArrayLike | None = None,
) -> Bools:
    """Assign experts to clients, bool [clients, experts]; never over capacity.

    Args:
        desirability: What each pair is worth, [clients, experts], larger is better; minus infinity:
            the pair is not allowed.
        capacity: How many experts each client can train, int [clients]; 0: none.
        policy: One of `nmoe_flower.catalogue.POLICIES`. ``random``; ``greedy``: the fittest
            experts; ``balanced``: the paper's independent top-k of desirability; ``sequential``:
            the same in random order, every assignment making its expert less desirable for the
            next client; no expert left out, but where pairs are not allowed, one that no single
            swap gives a client; ``joint``: the optimum within the load bounds; ``oracle``: the
            joint optimum of the true affinities.
        rng: One number is drawn from it. The rest follows from the clients' names, so the order of
            the rows does not matter.
        clients: Names of the clients; row numbers by default.
        fitness: Scores [clients, experts] for ``greedy``; ``desirability`` by default.
        truth: The true affinities [clients, experts], which ``oracle`` needs.
        lo: Least clients per expert under ``joint`` and ``oracle``; an even share by default.
        hi: Most clients per expert under ``joint`` and ``oracle``; an even share by default.
        load_weight: What the mean load of this round costs under ``sequential``.
        standing: The last assignment under ``joint``, empty at first; it is brought up to date.
        changed: Clients with another row or capacity than last, bool [clients]. With a last
            assignment of the same size, only they and some others, by lot, are assigned anew, which
            is close to the optimum and much faster; None: everybody is.

    Raises:
        ConfigError: A value is not usable; its client is named.
        InfeasibleBoundsError: No assignment meets the bounds, or there are fewer slots than experts
            and ``lo`` does not allow experts to wait.

    >>> wanted = [[0.9, 0.5], [0.8, 0.1]]
    >>> align(wanted, [1, 1], policy="greedy", rng=np.random.default_rng(0)).astype(int).tolist()
    [[1, 0], [1, 0]]
    >>> align(wanted, [1, 1], policy="joint", rng=np.random.default_rng(0)).astype(int).tolist()
    [[0, 1], [1, 0]]
    """
    if policy not in POLICIES:
        raise ConfigError(f"policy {policy!r} is unknown; allowed: {', '.join(POLICIES)}")
    row = POLICIES[policy]
    if not row.bounds and not (lo is None and hi is None):
        bounded = " and ".join(name for name, other in POLICIES.items() if other.bounds)
        raise ConfigError(f"policy {policy!r} takes no lo or hi; {bounded} do")
    if policy != "joint" and not (standing is None and changed is None):
        raise ConfigError(f"policy {policy!r} takes no standing or changed; joint does")
    wanted = _matrix("desirability", desirability)
    names = range(len(wanted)) if clients is None else clients
    if len(names) != len(wanted):
        raise ConfigError(f"{len(names)} client names for {len(wanted)} rows of desirability")
    _refuse_nan("desirability", wanted, names)
    others = {
        name: None if value is None else _like(name, value, wanted, names)
        for name, value in (("fitness", fitness), ("truth", truth))
    }
    counts = _capacities(capacity, wanted, names)
    keys = client_keys(names, rng)
    if row.truth and others["truth"] is None:
        raise ConfigError(f"policy {policy!r} needs truth: the real affinities [clients, experts]")
    if row.covers and lo is None and counts.sum() < wanted.shape[1]:
        raise ConfigError(
            f"{counts.sum()} slots of all clients together for {wanted.shape[1]} experts: some "
            "would have no client; allowed: more capacity, fewer experts, or policy 'joint' with "
            "lo=0, which lets experts wait for another round"
        )
    turn = Turn(
        wanted, others["fitness"], others["truth"], counts, keys, lo, hi, load_weight,
        standing, _changed(changed, standing, wanted),
    )  # fmt: skip
    chosen: Bools = found(row.chooser)(turn)
    return chosen


def _matrix(name: str, value: npt.ArrayLike) -> AnyFloats:
    matrix = np.asarray(value)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind not in "iufb":
        raise ConfigError(
            f"{name} has shape {matrix.shape} and type {matrix.dtype}; "
            "allowed: numbers [clients, experts], at least one of each"
        )
    kept = matrix.dtype in (np.float32, np.float64)
    return matrix if kept else matrix.astype(np.float64)


def _like(
    name: str, value: npt.ArrayLike, wanted: AnyFloats, names: Sequence[int | str]
) -> AnyFloats:
    matrix = _matrix(name, value)
    if matrix.shape != wanted.shape:
        raise ConfigError(f"{name} has shape {matrix.shape}; desirability has {wanted.shape}")
    _refuse_nan(name, matrix, names)
    banned = np.isneginf(wanted)
    return np.where(banned, -np.inf, matrix) if banned.any() else matrix


def _refuse_nan(name: str, matrix: AnyFloats, names: Sequence[int | str]) -> None:
    peaks = matrix.max(axis=1)  # NaN if any is
    bad = np.flatnonzero(np.isnan(peaks) | np.isposinf(peaks))
    if len(bad):
        raise ConfigError(
            f"{name} of client {names[int(bad[0])]!r} has {peaks[bad[0]]}; allowed: finite "
            "numbers, and minus infinity for a pair that is not allowed"
        )


def _changed(
    value: npt.ArrayLike | None, standing: Standing | None, wanted: AnyFloats
) -> Bools | None:
    if value is None:
        return None
    changed = np.asarray(value)
    if changed.shape != (len(wanted),) or changed.dtype != bool:
        raise ConfigError(
            f"changed has shape {changed.shape} and type {changed.dtype}; allowed: one bool for "
            f"each of the {len(wanted)} clients"
        )
    if standing is None:
        raise ConfigError("changed says what is not as it was, but there is no standing")
    return changed


def _capacities(capacity: npt.ArrayLike, wanted: AnyFloats, names: Sequence[int | str]) -> Ints:
    """Slots [clients]: capacity, at most the experts the client may hold."""
    values = np.asarray(capacity)
    if values.shape != (len(wanted),) or values.dtype.kind not in "iuf":
        raise ConfigError(f"capacity has shape {values.shape}; allowed: one per client")
    bad = np.flatnonzero(~(values >= 0) | (values != np.floor(values)) | np.isinf(values))
    if len(bad):
        raise ConfigError(
            f"capacity of client {names[int(bad[0])]!r} is {values[bad[0]]}; "
            "allowed: whole numbers, 0 or more"
        )
    able: Any = wanted.shape[1]
    if np.isneginf(wanted.min()):
        able = (~np.isneginf(wanted)).sum(axis=1)
    counts: Ints = np.minimum(values.astype(np.int64), able)
    if not counts.any():
        raise ConfigError(f"none of the {len(counts)} clients can hold any expert")
    return counts


def choose_random(turn: Turn) -> Bools:
    """As many experts as fit, by lot."""
    lots = noise(turn.keys, turn.desirability.shape[1])
    lots[np.isneginf(turn.desirability)] = -1.0
    return top(lots, turn.capacity, turn.keys)


def choose_greedy(turn: Turn) -> Bools:
    """The fittest experts, whoever else has them."""
    scores = turn.desirability if turn.fitness is None else turn.fitness
    return top(scores, turn.capacity, turn.keys)


def choose_balanced(turn: Turn) -> Bools:
    """The most desirable experts, whoever else has them (III-4)."""
    return top(turn.desirability, turn.capacity, turn.keys)


def choose_sequential(turn: Turn) -> Bools:
    """One client after the other; what one takes is less desirable for the next."""
    clients, experts = turn.desirability.shape
    chosen = np.zeros((clients, experts), dtype=bool)
    loads = np.zeros(experts)
    unit = turn.load_weight * experts / turn.capacity.sum()
    for row in np.argsort(turn.keys, kind="stable").tolist():
        count = int(turn.capacity[row])
        if count:
            lots = noise(turn.keys[row : row + 1], experts)[0]
            order = np.lexsort((lots, turn.desirability[row] - unit * loads))
            best = order[experts - count :]
            chosen[row, best] = True
            loads[best] += 1
    return _fill_empty(turn, chosen)


def _fill_empty(turn: Turn, chosen: Bools) -> Bools:
    """Give each expert without a client one whose swap costs least."""
    loads = chosen.sum(axis=0)
    for expert in np.flatnonzero(loads == 0):
        gain = turn.desirability[:, expert, None] - turn.desirability
        gain[~chosen | (loads < 2)] = -np.inf
        client, given = np.unravel_index(np.argmax(gain), gain.shape)
        if np.isfinite(gain[client, given]):
            chosen[client, given], chosen[client, expert] = False, True
            loads[given] -= 1
            loads[expert] += 1
    return chosen


def choose_joint(turn: Turn) -> Bools:
    """The most desirable assignment of all within the load bounds."""
    return solve_joint(
        turn.desirability, turn.capacity, turn.keys, lo=turn.lo, hi=turn.hi,
        standing=turn.standing, changed=turn.changed,
    )  # fmt: skip


def choose_oracle(turn: Turn) -> Bools:
    """The same with the true affinities, which no server knows."""
    assert turn.truth is not None
    return solve_joint(turn.truth, turn.capacity, turn.keys, lo=turn.lo, hi=turn.hi)
