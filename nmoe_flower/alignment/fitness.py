"""How well each expert suits each client: a moving average of rewards (2507.05685, III-1)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.alignment.arrays import Bools, Floats, Ints, State
from nmoe_flower.errors import CheckpointError, ConfigError

__all__ = ["Fitness", "reward"]


def reward(losses: npt.ArrayLike, shares: npt.ArrayLike, *, loss_weight: float = 0.5) -> Floats:
    """A client's reward per expert in [0, 1]: low held-out loss, and chosen often by its gate.

    Args:
        losses: [..., experts]: mean loss of each candidate on the client's held-out samples.
        shares: [..., experts]: share of its samples the gate sent to each.
        loss_weight: Weight of ``exp(-(loss - least loss))``, 0 to 1; the share has the rest.

    >>> reward([0.5, 0.5], [1.0, 0.0]).tolist()
    [1.0, 0.5]
    """
    loss = np.asarray(losses, dtype=float)
    quality = np.exp(-(loss - loss.min(axis=-1, keepdims=True)))
    return np.asarray(loss_weight * quality + (1 - loss_weight) * np.asarray(shares, dtype=float))


class Fitness:
    """Scores [clients, experts]: ``F <- (1-a) F + a r``; without interaction ``F0 + g (F - F0)``.

    Clients are row numbers (partition ids); `grow` adds rows for new ones, at the prior.

    Args:
        clients: Number of clients.
        experts: Number of experts.
        rate: a, weight of the newest reward.
        decay: g, what stays of the distance to the prior per round without interaction. The
            prior is not zero, so that a pair never tried stays as attractive as at the start.
        prior: F0, the fitness before any feedback.
        centred: `scores` are relative to the column's mean over clients that know the expert:
            experts trained longer are better for everybody, which is not affinity.
        exploration: c of the bonus ``c sqrt(ln t / (1 + visits))``.
    """

    def __init__(
        self,
        clients: int,
        experts: int,
        *,
        rate: float = 0.3,
        decay: float = 0.98,
        prior: float = 0.5,
        centred: bool = False,
        exploration: float = 0.0,
    ) -> None:
        for name, value in (("rate", rate), ("decay", decay)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}; allowed: 0 to 1")
        if not exploration >= 0 or not np.isfinite(prior) or np.isinf(exploration):
            raise ConfigError(f"exploration is {exploration} and prior {prior}; allowed: finite")
        self.rate, self.decay, self.prior = rate, decay, prior
        self.centred, self.exploration = centred, exploration
        self.rounds = 0
        self.values: Floats = np.full((clients, experts), prior, dtype=np.float64)
        self.visits: Ints = np.zeros((clients, experts), dtype=np.int64)

    @property
    def scores(self) -> Floats:
        """Fitness [clients, experts], centred by column if asked."""
        if not self.centred:
            return self.values.copy()
        known = self.visits > 0
        sums = np.where(known, self.values, 0.0).sum(axis=0)
        means = np.where(known.any(axis=0), sums / np.maximum(known.sum(axis=0), 1), self.prior)
        return np.where(known, self.values - means + self.prior, self.prior)

    @property
    def bonus(self) -> Floats:
        """The exploration bonus [clients, experts]: larger for pairs seldom tried."""
        time = np.log(max(self.rounds, 1))
        return np.asarray(self.exploration * np.sqrt(time / (1 + self.visits)))

    def grow(self, clients: int) -> None:
        """Add rows at the prior until there are ``clients``; never takes one away."""
        more = clients - len(self.values)
        if more > 0:
            rows = (more, self.values.shape[1])
            self.values = np.vstack([self.values, np.full(rows, self.prior)])
            self.visits = np.vstack([self.visits, np.zeros(rows, dtype=np.int64)])

    def probe(self, client: int, rewards: npt.ArrayLike) -> None:
        """A first guess for a client never seen: rewards [experts] count as one interaction.

        No visit is counted and nobody else's fitness decays.

        Raises:
            ConfigError: The rewards are not one finite number per expert; nothing was changed.
        """
        got = np.asarray(rewards, dtype=np.float64)
        if got.shape != self.values.shape[1:] or not np.isfinite(got).all():
            raise ConfigError(f"client {client}: probed rewards {got.tolist()} are not usable")
        self.values[client] = (1 - self.rate) * self.prior + self.rate * got

    def update(
        self,
        clients: npt.ArrayLike,
        experts: npt.ArrayLike,
        rewards: npt.ArrayLike,
        *,
        assigned: Bools | None = None,
    ) -> dict[int, str]:
        """Take in a round's feedback; several rewards for a pair are averaged.

        Args:
            clients: Who reports, int [feedback].
            experts: On which expert, int [feedback].
            rewards: The rewards, [feedback].
            assigned: bool [clients, experts]: the pairs that may report; all if left out.

        Returns:
            The clients whose feedback was dropped, each with the reason. Their pairs decay as if
            there had been none.
        """
        who, what = np.asarray(clients, dtype=np.int64), np.asarray(experts, dtype=np.int64)
        got = np.asarray(rewards, dtype=np.float64)
        if not who.shape == what.shape == got.shape or who.ndim != 1:
            raise ConfigError(f"feedback of shapes {who.shape}, {what.shape}, {got.shape}")
        dropped = self._unusable(who, what, got, assigned)
        good = ~np.isin(who, list(dropped))
        flat = who[good] * self.values.shape[1] + what[good]
        times = np.bincount(flat, minlength=self.values.size).reshape(self.values.shape)
        sums = np.bincount(flat, weights=got[good], minlength=self.values.size)
        seen = times > 0
        means = sums.reshape(self.values.shape)[seen] / times[seen]
        changed = self.prior + self.decay * (self.values - self.prior)
        changed[seen] = (1 - self.rate) * self.values[seen] + self.rate * means
        self.values = changed
        self.visits += seen
        self.rounds += 1
        return dropped

    def _unusable(
        self, who: Ints, what: Ints, got: Floats, assigned: Bools | None
    ) -> dict[int, str]:
        rows, columns = self.values.shape
        known = (who >= 0) & (who < rows) & (what >= 0) & (what < columns)
        held = known.copy()
        if assigned is not None:
            if assigned.shape != self.values.shape:
                raise ConfigError(f"assigned has shape {assigned.shape}; not {self.values.shape}")
            held[known] = assigned[who[known], what[known]]
        dropped: dict[int, str] = {}
        for at in np.flatnonzero(~known | ~held | ~np.isfinite(got)).tolist():
            client, expert = int(who[at]), int(what[at])
            if not known[at]:
                text = f"client {client}, expert {expert}: unknown; there are {rows} x {columns}"
            elif not held[at]:
                text = f"client {client}: feedback for expert {expert}, which it was not assigned"
            else:
                text = f"client {client}: reward {got[at]} for expert {expert} is not finite"
            dropped.setdefault(client, text)
        return dropped

    def state(self) -> State:
        """All that changes, as arrays: `load_state` brings it back bit by bit."""
        return {
            "values": self.values.copy(),
            "visits": self.visits.copy(),
            "rounds": np.array(self.rounds, dtype=np.int64),
        }

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a `state`; the number of clients is taken from it.

        Raises:
            CheckpointError: Keys or shapes do not fit; nothing was changed.
        """
        if set(state) != {"values", "visits", "rounds"}:
            raise CheckpointError(f"fitness state has keys {sorted(state)}")
        values, visits = state["values"], state["visits"]
        if values.shape != visits.shape or values.shape[1:] != self.values.shape[1:]:
            raise CheckpointError(f"fitness state of {values.shape}, not [*, experts] as here")
        self.values = np.array(values, dtype=np.float64)
        self.visits = np.array(visits, dtype=np.int64)
        self.rounds = int(state["rounds"])
