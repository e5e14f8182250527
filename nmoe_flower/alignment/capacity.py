"""How many experts a client can train in a round (2507.05685, III-3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.alignment.arrays import Floats, Ints, State
from nmoe_flower.errors import CheckpointError, ConfigError

__all__ = ["Capacity", "ExpertCost"]


_QUANTITIES = ("compute", "memory", "download", "upload", "latency")


@dataclass(frozen=True, kw_only=True)
class ExpertCost:
    """What one expert costs a client.

    Attributes:
        size: Bytes on the wire, each way.
        memory: Bytes to train it: about 4 x its weights (gradient, momentum, activations).
        flops: Per sample of local work, forward and backward, all local passes included.
        base_memory: Bytes that extractor and gate take.
        base_seconds: A round's seconds that do not depend on the number of experts.
    """

    size: float
    memory: float
    flops: float
    base_memory: float = 0.0
    base_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < np.inf:
                raise ConfigError(f"{name} is {value}; allowed: finite, 0 or more")


class Capacity:
    """Profiles of clients, from reports and from measured rounds.

    Seconds of a round with k experts and n samples:
    ``t = base + latency + k (flops n / compute + size / download + size / upload)``.
    `observe` compares that with the clock: a client that claims more speed than it shows is
    believed what it shows. Who has not reported can train nothing.

    Args:
        clients: Number of clients at the start; `grow` adds more.
        cost: What one expert costs a client.
        deadline: Seconds for a round.
        most: The greatest number of experts for any client.
        rate: Weight of the newest measurement, in the logarithm.
        fastest: FLOP/s no client can have; a report above it is dropped.
    """

    def __init__(
        self,
        clients: int,
        cost: ExpertCost,
        *,
        deadline: float = np.inf,
        most: int,
        rate: float = 0.5,
        fastest: float = 1e16,
    ) -> None:
        if not deadline > 0 or most < 0 or not 0 < rate <= 1:
            raise ConfigError(
                f"deadline={deadline}, most={most}, rate={rate}; "
                "allowed: deadline above 0, most 0 or more, rate above 0 up to 1"
            )
        self.cost, self.deadline, self.most = cost, deadline, most
        self.rate, self.fastest = rate, fastest
        self.profile: Floats = np.zeros((clients, len(_QUANTITIES)))
        self.slowdown: Floats = np.ones(clients)  # measured over predicted seconds
        self.measured: Ints = np.zeros(clients, dtype=np.int64)

    def grow(self, clients: int) -> None:
        """Make room for clients up to number ``clients - 1``; never takes one away."""
        more = clients - len(self.profile)
        if more > 0:
            self.profile = np.vstack([self.profile, np.zeros((more, len(_QUANTITIES)))])
            self.slowdown = np.concatenate([self.slowdown, np.ones(more)])
            self.measured = np.concatenate([self.measured, np.zeros(more, dtype=np.int64)])

    def report(self, clients: npt.ArrayLike, **quantities: npt.ArrayLike) -> dict[int, str]:
        """Take in what clients say of themselves.

        Args:
            clients: Numbers of the clients that report, int [reports].
            **quantities: ``compute`` (FLOP/s), ``memory`` (bytes), ``download``, ``upload``
                (bytes/s), ``latency`` (s): [reports] each.

        Returns:
            The clients whose report was dropped (negative, NaN, impossible), with the reason; what
            was known of them stays.
        """
        if set(quantities) != set(_QUANTITIES):
            raise ConfigError(f"reported {sorted(quantities)}; allowed: {', '.join(_QUANTITIES)}")
        who = np.asarray(clients, dtype=np.int64)
        values = np.column_stack(
            [np.asarray(quantities[name], dtype=float) for name in _QUANTITIES]
        )
        wrong = ~(values >= 0)
        wrong[:, 4] |= np.isinf(values[:, 4])
        wrong[:, 0] |= values[:, 0] > self.fastest
        dropped = self._strangers(who)
        for at, column in zip(*np.nonzero(wrong), strict=True):
            text = f"client {who[at]}: {_QUANTITIES[column]} is {values[at, column]}"
            limit = f" up to {self.fastest:g}" if column == 0 else ""
            dropped.setdefault(int(who[at]), f"{text}; allowed: 0 or more{limit}")
        good = ~np.isin(who, list(dropped))
        self.profile[who[good]] = values[good]
        return dropped

    def observe(
        self,
        clients: npt.ArrayLike,
        experts: npt.ArrayLike,
        samples: npt.ArrayLike,
        seconds: npt.ArrayLike,
    ) -> dict[int, str]:
        """Learn from completion times, [observations] each.

        Returns:
            The clients whose measurement was dropped, with the reason.
        """
        who = np.asarray(clients, dtype=np.int64)
        held, took = np.asarray(experts, dtype=float), np.asarray(seconds, dtype=float)
        dropped = self._strangers(who)
        for at in np.flatnonzero(~((took > 0) & (held > 0) & np.isfinite(took))).tolist():
            text = f"client {who[at]}: {took[at]} s for {held[at]:g} experts; allowed: above 0"
            dropped.setdefault(int(who[at]), text)
        good = ~np.isin(who, list(dropped))
        who, held, took = who[good], held[good], took[good]
        fixed, each = self._seconds(np.asarray(samples, dtype=float)[good], who)
        expected = fixed + held * each
        known = np.isfinite(expected) & (expected > 0)
        ratio = np.log(took[known] / expected[known])
        who = who[known]
        weight = np.where(self.measured[who] == 0, 1.0, self.rate)
        past = np.log(self.slowdown[who])
        self.slowdown[who] = np.exp((1 - weight) * past + weight * ratio)
        self.measured[who] += 1
        return dropped

    def experts(self, samples: npt.ArrayLike) -> Ints:
        """How many experts each client can train, int [clients]; 0: do not select it.

        Args:
            samples: Samples of a round, [clients], or one number for all.
        """
        everyone = np.arange(len(self.profile))
        count = np.broadcast_to(np.asarray(samples, dtype=float), everyone.shape)
        fixed, each = self._seconds(count, everyone)
        room = self.profile[:, 1] - self.cost.base_memory
        with np.errstate(divide="ignore", invalid="ignore"):
            in_memory = (
                room / self.cost.memory if self.cost.memory else np.where(room >= 0, np.inf, 0)
            )
            in_time = (self.deadline / self.slowdown - fixed) / each
        if np.isinf(self.deadline):
            in_time = np.where(np.isfinite(each), np.inf, 0.0)
        in_time = np.where(np.isnan(in_time), 0.0, in_time)
        found = np.clip(np.floor(np.minimum(in_memory, in_time) + 1e-9), 0, self.most)
        return found.astype(np.int64)

    def _seconds(self, samples: Floats, clients: Ints) -> tuple[Floats, Floats]:
        """Predicted seconds: those of every round, and those per expert."""
        compute, _, download, upload, latency = self.profile[clients].T
        cost = self.cost
        work = cost.flops * samples

        def over(amount: Any, speed: Floats) -> Floats:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.where(np.asarray(amount) == 0, 0.0, amount / speed)

        each = over(work, compute) + over(cost.size, download) + over(cost.size, upload)
        return cost.base_seconds + latency, each

    def _strangers(self, clients: Ints) -> dict[int, str]:
        size = len(self.profile)
        unknown = clients[(clients < 0) | (clients >= size)].tolist()
        return {client: f"client {client} is unknown; there are {size}" for client in unknown}

    def state(self) -> State:
        """All that changes, as arrays: `load_state` brings it back bit by bit."""
        return {
            "profile": self.profile.copy(),
            "slowdown": self.slowdown.copy(),
            "measured": self.measured.copy(),
            "fixed": np.full(len(self.profile), -1, dtype=np.int64),  # checkpoints have had it
        }

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a `state`; the number of clients is taken from it.

        Raises:
            CheckpointError: Keys or shapes do not fit; nothing was changed.
        """
        own = self.state()
        clients = state["profile"].shape[:1] if "profile" in state else ()
        shapes = {key: (*clients, *array.shape[1:]) for key, array in own.items()}
        if set(state) != set(own) or any(state[key].shape != shapes[key] for key in own):
            raise CheckpointError(f"capacity state does not fit: keys {sorted(state)}")
        self.profile, self.slowdown = np.array(state["profile"]), np.array(state["slowdown"])
        self.measured = np.array(state["measured"])
