"""How much each expert has been trained (2507.05685, III-2), and what it still lacks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.alignment.arrays import Floats, State
from nmoe_flower.errors import CheckpointError, ConfigError

__all__ = ["DeficitQueue", "Usage", "load_variation"]


def load_variation(loads: npt.ArrayLike) -> float:
    """Coefficient of variation of loads: 0 if even, ``sqrt(E - 1)`` if one expert has all.

    >>> load_variation([2, 0])
    1.0
    """
    values = np.asarray(loads, dtype=float)
    mean = values.mean()
    return float(values.std() / mean) if mean else 0.0


def _loads(loads: npt.ArrayLike, experts: int) -> Floats:
    values = np.asarray(loads, dtype=np.float64)
    if values.shape != (experts,):
        raise ConfigError(f"loads have shape {values.shape}; allowed: [{experts}], one per expert")
    bad = np.flatnonzero(~(values >= 0) | np.isinf(values))
    if len(bad):
        raise ConfigError(f"load of expert {bad[0]} is {values[bad[0]]}; allowed: 0 or more")
    return values


def _restore(name: str, state: Mapping[str, npt.NDArray[Any]], like: State) -> State:
    if set(state) != set(like) or any(state[key].shape != like[key].shape for key in like):
        raise CheckpointError(f"{name} state does not fit: keys {sorted(state)}")
    return {key: np.array(value, dtype=np.float64) for key, value in state.items()}


class Usage:
    """Decayed load per expert, ``U <- b U + (1-b) L``, and the total without decay.

    The unit (samples, FLOPs, updates) is the caller's; one unit throughout.

    Args:
        experts: Number of experts.
        decay: b; the window is about ``1 / (1 - b)`` rounds.
    """

    def __init__(self, experts: int, *, decay: float = 0.8) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"decay is {decay}; allowed: 0 or more, below 1")
        self.decay = decay
        self.recent: Floats = np.zeros(experts)
        self.total: Floats = np.zeros(experts)

    def update(self, loads: npt.ArrayLike) -> None:
        """Take in a round.

        Args:
            loads: Load of every expert, [experts]: for example ``samples @ assignment``, with
                samples [clients], or that times the FLOPs per sample.

        Raises:
            ConfigError: A load is negative or NaN; nothing was changed.
        """
        values = _loads(loads, len(self.recent))
        self.recent = self.decay * self.recent + (1 - self.decay) * values
        self.total = self.total + values

    @property
    def relative(self) -> Floats:
        """``U / mean(U) - 1`` in [-1, 2]: 0 is an even share. Zeros before the first round."""
        mean = self.recent.mean()
        return np.clip(self.recent / mean - 1, -1, 2) if mean else np.zeros_like(self.recent)

    def state(self) -> State:
        """All that changes, as arrays: `load_state` brings it back bit by bit."""
        return {"recent": self.recent.copy(), "total": self.total.copy()}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a `state`.

        Raises:
            CheckpointError: Keys or shapes do not fit; nothing was changed.
        """
        found = _restore("usage", state, self.state())
        self.recent, self.total = found["recent"], found["total"]


class DeficitQueue:
    """What each expert lacks: ``Q <- max(0, Q + target - L)`` (drift plus penalty).

    The total target of a round is the total load; only its distribution is held to the targets.

    Args:
        experts: Number of experts.
        shares: Target share of the load of every expert, [experts]; even by default.
    """

    def __init__(self, experts: int, *, shares: npt.ArrayLike | None = None) -> None:
        weights = _loads(np.ones(experts) if shares is None else shares, experts)
        if not weights.sum() > 0:
            raise ConfigError("shares are all 0; allowed: at least one above 0")
        self.shares: Floats = weights / weights.sum()
        self.queue: Floats = np.zeros(experts)
        self._round: Floats = np.zeros(1)  # mean load of the last round

    def update(self, loads: npt.ArrayLike) -> None:
        """Take in a round's loads [experts], in any unit.

        Raises:
            ConfigError: A load is negative or NaN; nothing was changed.
        """
        values = _loads(loads, len(self.queue))
        self.queue = np.maximum(0.0, self.queue + values.sum() * self.shares - values)
        self._round = np.array([values.mean()])

    @property
    def relative(self) -> Floats:
        """The queue in mean loads of the last round, so that it has the scale of a fitness."""
        unit = self._round[0]
        return self.queue / unit if unit else np.zeros_like(self.queue)

    def state(self) -> State:
        """All that changes, as arrays: `load_state` brings it back bit by bit."""
        return {"queue": self.queue.copy(), "round": self._round.copy()}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a `state`.

        Raises:
            CheckpointError: Keys or shapes do not fit; nothing was changed.
        """
        found = _restore("deficit", state, self.state())
        self.queue, self._round = found["queue"], found["round"]
