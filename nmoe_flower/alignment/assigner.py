"""The server's memory of clients and experts, and its decision of every round. No Flower here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.alignment.arrays import Bools, Floats, Ints
from nmoe_flower.alignment.capacity import Capacity
from nmoe_flower.alignment.desirability import desirability
from nmoe_flower.alignment.fitness import Fitness, reward
from nmoe_flower.alignment.policies import align
from nmoe_flower.alignment.solver import Bound
from nmoe_flower.alignment.usage import DeficitQueue, Usage, load_variation
from nmoe_flower.catalogue import POLICIES
from nmoe_flower.errors import CheckpointError, ConfigError
from nmoe_flower.seeds import numpy_stream

__all__ = ["Assigner", "Decision", "Feedback"]


@dataclass(frozen=True, eq=False)
class Decision:
    """Who trains what in a round, and why.

    Attributes:
        round: Number of the round.
        chosen: Which client trains which expert, bool [clients, experts].
        online: Who could be reached, bool [clients].
        capacity: How many experts each could take, int [clients].
        fitness: Fitness as it was, [clients, experts].
        usage: Relative usage, [experts].
        deficits: What each expert lacked, in mean loads, [experts].
        desirability: What each pair was worth, [clients, experts].
    """

    round: int
    chosen: Bools
    online: Bools
    capacity: Ints
    fitness: Floats
    usage: Floats
    deficits: Floats
    desirability: Floats

    def why(self, client: int) -> dict[str, Any]:
        """One client's line of the audit log."""
        held = self.chosen[client]
        line: dict[str, Any] = {
            "client": client,
            "experts": np.flatnonzero(held).tolist(),
            "capacity": int(self.capacity[client]),
        }
        if not held.any():
            idle = "capacity 0" if self.online[client] else "offline"
            return line | {"why": "no load left" if self.capacity[client] else idle}
        terms = {"fitness": self.fitness[client], "desirability": self.desirability[client]}
        terms |= {"usage": self.usage, "deficit": self.deficits}
        better = self.desirability[client] > self.desirability[client][held].min()
        return line | {
            **{name: values[held].round(4).tolist() for name, values in terms.items()},
            "passed-over": int((better & ~held).sum()),  # they went to others
        }


@dataclass(frozen=True, eq=False)
class Feedback:
    """One client's feedback of one round.

    Attributes:
        client: Number of the client.
        experts: The k experts it trained.
        losses: Mean loss of each on held-out samples, [k].
        samples: How many samples trained each, [k].
        shares: Share of its held-out samples that its gate sends to every expert, [experts].
        seconds: How long the training took.
    """

    client: int
    experts: npt.NDArray[np.int64]
    losses: Floats
    samples: Floats
    shares: Floats
    seconds: float


class Assigner:
    """Fitness, usage, deficits and capacity of a federation; `assign`, then `learn`.

    Args:
        clients: Number of clients at the start; `meet` adds more.
        experts: Number of experts.
        policy: One of `nmoe_flower.catalogue.POLICIES`, see `align`.
        capacity: Experts per client: one number, one per client, or a `Capacity` that estimates
            it. Clients that come later take the sequence from its start; in a `Capacity` they get
            a place, and train nothing until they `report` to it.
        fitness: Fitness of the pairs; one with the library's defaults if left out.
        usage: Usage of the experts; one with the library's defaults if left out.
        deficits: What experts lack; one with the library's defaults if left out.
        truth: The true affinities, [clients, experts], which policy ``oracle`` needs.
        lo: Least clients per expert, for joint and oracle.
        hi: Most clients per expert, for joint and oracle.
        loss_weight: Weight of the held-out loss in the reward, 0 to 1; the selection share has the
            rest.
        weights: wF, wU and wQ of the desirability.
        scale: Common scale of fitness in the desirability: ``z``, ``rank`` or ``none``.
        samples: Samples of a client's round, to estimate its seconds.
        seed: Seed of lots and ties; each round has a stream of its own.

    Raises:
        ConfigError: The policy is unknown, or a capacity is not usable.
    """

    def __init__(
        self,
        clients: int,
        experts: int,
        *,
        policy: str = "joint",
        capacity: int | Sequence[int] | Capacity = 1,
        fitness: Fitness | None = None,
        usage: Usage | None = None,
        deficits: DeficitQueue | None = None,
        truth: npt.ArrayLike | None = None,
        lo: Bound = None,
        hi: Bound = None,
        loss_weight: float = 0.5,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        scale: str = "z",
        samples: float = 1.0,
        seed: int = 0,
    ) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"policy {policy!r} is unknown; allowed: {', '.join(POLICIES)}")
        self.policy, self.capacity, self.truth = policy, _capacity(capacity), truth
        self.fitness = fitness or Fitness(clients, experts)
        self.usage, self.deficits = usage or Usage(experts), deficits or DeficitQueue(experts)
        self.lo, self.hi, self.loss_weight, self.scale = lo, hi, loss_weight, scale
        self.weights, self.samples, self.seed = weights, samples, seed
        self.times: Ints = np.zeros((clients, experts), dtype=np.int64)
        self.routed: Floats = np.zeros(experts)  # of the last round, summing to 1

    @property
    def clients(self) -> int:
        """How many clients are known."""
        return len(self.times)

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return int(self.times.shape[1])

    def meet(self, clients: int) -> None:
        """Make room for clients up to number ``clients - 1``."""
        more = clients - self.clients
        if more > 0:
            self.fitness.grow(clients)
            if isinstance(self.capacity, Capacity):
                self.capacity.grow(clients)
            self.times = np.vstack([self.times, np.zeros((more, self.experts), dtype=np.int64)])

    def capacities(self) -> Ints:
        """How many experts each client can train now, int [clients]."""
        if isinstance(self.capacity, Capacity):
            found = self.capacity.experts(self.samples)
            unknown = np.zeros(max(self.clients - len(found), 0), dtype=np.int64)
            return np.concatenate([found, unknown])[: self.clients]
        return np.minimum(np.resize(self.capacity, self.clients), self.experts)

    def assign(self, server_round: int, online: npt.ArrayLike) -> Decision:
        """Decide who trains what; whoever is not ``online`` (bool [clients]) gets nothing.

        Raises:
            ConfigError: Nobody can hold any expert.
            InfeasibleBoundsError: The load bounds contradict each other.
        """
        there = np.asarray(online, dtype=bool)
        capacity = np.where(there, self.capacities(), 0)
        wanted = desirability(
            self.fitness,
            self.usage,
            deficits=self.deficits if POLICIES[self.policy].deficits else None,
            fitness_weight=self.weights[0],
            usage_weight=self.weights[1],
            deficit_weight=self.weights[2],
            scale=self.scale,
        )
        policy, lo = self.policy, self.lo
        if capacity.sum() < self.experts and POLICIES[policy].covers:
            # experts wait; one at a time cannot promise that none is forgotten, so: joint
            policy = policy if POLICIES[policy].bounds else "joint"
            lo = 0 if lo is None else lo
        bounded = POLICIES[policy].bounds
        chosen = align(
            wanted,
            capacity,
            policy=policy,
            rng=numpy_stream(self.seed, "align", server_round),
            fitness=self.fitness.scores,
            truth=self.truth,
            lo=lo if bounded else None,
            hi=self.hi if bounded else None,
        )
        return Decision(
            round=server_round,
            chosen=chosen,
            online=there,
            capacity=capacity,
            fitness=self.fitness.scores,
            usage=self.usage.relative,
            deficits=self.deficits.relative,
            desirability=wanted,
        )

    def learn(self, decision: Decision, feedback: Sequence[Feedback]) -> None:
        """Take in a round's feedback, each checked by the server; order does not matter."""
        known = sorted(feedback, key=lambda one: one.client)
        rewards = [
            reward(one.losses, one.shares[one.experts], loss_weight=self.loss_weight)
            for one in known
        ]
        who = [one.client for one in known for _ in one.experts]
        what = [int(expert) for one in known for expert in one.experts]
        flat = np.concatenate(rewards) if rewards else np.zeros(0)
        self.fitness.update(who, what, flat, assigned=decision.chosen)
        loads = np.zeros(self.experts)
        for one in known:
            loads[one.experts] += one.samples
            self.times[one.client, one.experts] += 1
        self.usage.update(loads)
        self.deficits.update(loads)
        routed = np.sum([one.shares * one.samples.sum() for one in known], axis=0)
        if np.sum(routed) > 0:
            self.routed = np.asarray(routed / routed.sum())

    def observe(self, decision: Decision, seconds: Mapping[int, float]) -> dict[int, str]:
        """Correct estimated capacities by what clients needed, also those that were too late.

        Args:
            decision: Who trained which experts.
            seconds: By client, how long that took; those who are not there showed nothing.

        Returns:
            The clients whose measurement was left out, with the reason.
        """
        if not isinstance(self.capacity, Capacity):
            return {}
        timed = list(seconds)
        return self.capacity.observe(
            timed,
            decision.chosen[timed].sum(axis=1),
            [self.samples] * len(timed),
            [seconds[client] for client in timed],
        )

    def place(self) -> Bools:
        """The fittest experts on every client within its capacity: for inference."""
        rng = numpy_stream(self.seed, "place")
        return align(self.fitness.values, self.capacities(), policy="greedy", rng=rng)

    @property
    def load_variation(self) -> float:
        """Coefficient of variation of all loads so far."""
        return load_variation(self.usage.total)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that changes, as arrays: `load_state` brings it back bit by bit."""
        found = {"times": self.times.copy(), "routed": self.routed.copy()}
        parts = {
            "fitness": self.fitness.state(),
            "usage": self.usage.state(),
            "deficits": self.deficits.state(),
        }
        if isinstance(self.capacity, Capacity):
            parts["capacity"] = self.capacity.state()
        for name, part in parts.items():
            found |= {f"{name}/{key}": value for key, value in part.items()}
        return found

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a `state`.

        Raises:
            CheckpointError: It belongs to another federation.
        """
        shapes = [state[name].shape[-1:] for name in ("times", "routed") if name in state]
        if shapes != [self.times.shape[1:]] * 2:
            raise CheckpointError(f"alignment state does not fit: keys {sorted(state)}")
        self.fitness.load_state(_part(state, "fitness/"))
        self.usage.load_state(_part(state, "usage/"))
        self.deficits.load_state(_part(state, "deficits/"))
        if isinstance(self.capacity, Capacity):
            self.capacity.load_state(_part(state, "capacity/"))
        self.times, self.routed = np.array(state["times"]), np.array(state["routed"])


def _part(state: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _capacity(value: int | Sequence[int] | Capacity) -> Ints | Capacity:
    if isinstance(value, Capacity):
        return value
    counts = np.atleast_1d(np.asarray(value, dtype=float))
    bad = np.flatnonzero(~(counts >= 0) | (counts != np.floor(counts)) | np.isinf(counts))
    if len(bad) or not len(counts):
        wrong = f"of client {bad[0]} is {counts[bad[0]]}" if len(bad) else "is empty"
        raise ConfigError(f"capacity {wrong}; allowed: whole numbers, 0 or more")
    return counts.astype(np.int64)
