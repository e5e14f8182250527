"""What a server does with the clients' mean change, read as a gradient (Reddi et al. 2021)."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from nmoe_flower.errors import CheckpointError

__all__ = ["AdamW", "Nesterov", "ServerOptimizer", "stepped"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ServerOptimizer(Protocol):
    """Turns a gradient into new weights, array by array."""

    def step(self, name: str, weights: np.ndarray, gradient: np.ndarray, rate: float) -> np.ndarray:
        """The new weights, in the dtype of the old."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Arrays carried from round to round."""
        ...

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""
        ...


def stepped(
    optimizer: ServerOptimizer,
    name: str,
    sent: np.ndarray,
    mean: np.ndarray,
    *,
    told: float = 1.0,
    rate: float,
) -> np.ndarray:
    """One array after the server's step from what was sent towards the clients' mean.

    Integers and running statistics of BatchNorm are averaged, never stepped.

    Args:
        optimizer: Takes the step.
        name: Name of the array.
        sent: What the clients started from.
        mean: Mean of what came back, in the dtype sent.
        told: The clients' own rate; with 0 they did not move.
        rate: Length of the server's step, at least 0.
    """
    if sent.dtype.kind != "f" or name.rpartition(".")[2] in _STATISTICS:
        return mean
    if told == 0.0:
        return sent
    wide = np.result_type(sent, np.float32)  # float16 holds neither rates nor squares
    weights = sent.astype(wide, copy=False)
    gradient = (weights - mean) / np.asarray(told, wide)
    return optimizer.step(name, weights, gradient, rate).astype(sent.dtype, copy=False)


class Nesterov:
    """m <- momentum m + g;  w <- w - rate (g + momentum m). Momentum 0 is plain SGD."""

    def __init__(self, momentum: float = 0.0) -> None:
        self.momentum = momentum
        self._buffers: dict[str, np.ndarray] = {}

    def step(self, name: str, weights: np.ndarray, gradient: np.ndarray, rate: float) -> np.ndarray:
        """Take one step."""
        if self.momentum > 0:
            mu = np.asarray(self.momentum, weights.dtype)
            before = _carried(self._buffers, name, weights)
            buffer = gradient if before is None else mu * before + gradient
            self._buffers[name] = buffer
            gradient = gradient + mu * buffer
        stepped: np.ndarray = weights - np.asarray(rate, weights.dtype) * gradient
        return stepped

    def state(self) -> dict[str, np.ndarray]:
        """The momentum of every array."""
        return dict(self._buffers)

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore the momentum."""
        self._buffers.update(arrays)


class AdamW:
    """Adam with decoupled weight decay, not of biases and norms (Loshchilov and Hutter 2019).

    For one-step rounds this is AdamW on the clients' mean gradient: the size of the clients' own
    rate cancels. ``weight_decay`` is per unit of ``rate``.
    """

    def __init__(
        self,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.betas, self.epsilon, self.weight_decay = betas, epsilon, weight_decay
        self._steps: dict[str, int] = {}
        self._first: dict[str, np.ndarray] = {}
        self._second: dict[str, np.ndarray] = {}

    def step(self, name: str, weights: np.ndarray, gradient: np.ndarray, rate: float) -> np.ndarray:
        """Take one step."""
        kind = weights.dtype.type
        slow, fast = (kind(beta) for beta in self.betas)
        steps = self._steps[name] = self._steps.get(name, 0) + 1
        before = _carried(self._first, name, weights), _carried(self._second, name, weights)
        first, second = (np.zeros_like(weights) if one is None else one for one in before)
        self._first[name] = first = first + (1 - slow) * (gradient - first)
        self._second[name] = second = second + (1 - fast) * (np.square(gradient) - second)
        denominator = np.sqrt(second / kind(1 - self.betas[1] ** steps)) + kind(self.epsilon)
        decay = 1 - rate * self.weight_decay if weights.ndim > 1 else 1.0
        step = kind(rate / (1 - self.betas[0] ** steps)) * first / denominator
        stepped: np.ndarray = kind(decay) * weights - step
        return stepped

    def state(self) -> dict[str, np.ndarray]:
        """Both moments and the number of steps of every array."""
        return {
            **{f"first/{name}": value for name, value in self._first.items()},
            **{f"second/{name}": value for name, value in self._second.items()},
            **{f"steps/{name}": np.asarray(value) for name, value in self._steps.items()},
        }

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore moments and steps."""
        for key, value in arrays.items():
            kind, _, name = key.partition("/")
            if kind == "steps":
                self._steps[name] = int(value)
            else:
                (self._first if kind == "first" else self._second)[name] = value


def _carried(arrays: Mapping[str, np.ndarray], name: str, weights: np.ndarray) -> np.ndarray | None:
    """What is carried for an array; None before the first step. Never broadcast.

    Raises:
        CheckpointError: It is of an array of another shape.
    """
    found = arrays.get(name)
    if found is not None and found.shape != weights.shape:
        raise CheckpointError(
            f"the optimizer's state of {name!r} has shape {found.shape}, its weights have "
            f"{weights.shape}: it belongs to another model"
        )
    return found
