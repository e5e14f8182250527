"""Federated averaging with a step of the server's own, and what clients' private steps cost."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Unpack

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.errors import CheckpointError, ConfigError, ReplyError
from nmoe_flower.privacy import WeightsCost
from nmoe_flower.records import LEARNING_RATE, StepKey
from nmoe_flower.strategies.base import StreamingFedAvg, StreamingOptions
from nmoe_flower.strategies.limits import require_number
from nmoe_flower.strategies.optimizers import Nesterov, ServerOptimizer, stepped
from nmoe_flower.strategies.replies import Usable

__all__ = ["StepReports", "SteppedFedAvg", "SteppedOptions"]

log = logging.getLogger(__name__)


class SteppedOptions(StreamingOptions, total=False):
    """The keyword arguments of ``SteppedFedAvg``, those of its bases included."""

    server_learning_rate: float
    server_momentum: float
    server_optimizer: ServerOptimizer | None
    learning_rate: Callable[[int], float] | None
    local_learning_rate: float | None
    ema: float


class SteppedFedAvg(StreamingFedAvg):
    """FedAvg that reads the clients' mean change as a gradient and steps along it.

    The gradient is ``g = (w - mean) / rate`` with ``rate`` what the clients were told under
    ``"learning-rate"``. With ``server_momentum`` the server takes a Nesterov step::

        m <- momentum m + g;    w <- w - server_learning_rate learning_rate (g + momentum m)

    If clients take one plain SGD step per round this is, exactly, averaging their momentum
    buffers, at no cost on the wire. Running statistics of BatchNorm are averaged, never stepped.

    Args:
        server_learning_rate: 1.0 with plain SGD takes the mean as it is.
        server_momentum: Nesterov momentum of the server's step.
        server_optimizer: Takes the step instead, such as ``AdamW``.
        learning_rate: The rate of round 1, 2, ..., at least 0; None sends none to the clients.
        local_learning_rate: What the clients are told, if not the same: for an optimizer whose
            rates are too small for a difference of float32 weights.
        ema: Decay per round of a running average of the weights, in ``ema_arrays``; 0 is off.
        **options: What ``StreamingFedAvg`` and FedAvg take.

    Attributes:
        private_steps: What clients that train with DP-SGD say it has cost them.
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        server_optimizer: ServerOptimizer | None = None,
        learning_rate: Callable[[int], float] | None = None,
        local_learning_rate: float | None = None,
        ema: float = 0.0,
        **options: Unpack[StreamingOptions],
    ) -> None:
        super().__init__(**options)
        require_number("server_learning_rate", server_learning_rate, below=True)
        require_number("server_momentum", server_momentum, most=1.0, below=True)
        if local_learning_rate is not None:
            require_number("local_learning_rate", local_learning_rate, below=True)
        steps = server_momentum > 0 or server_learning_rate != 1.0
        self.server_learning_rate = server_learning_rate
        self.server_optimizer = server_optimizer or (Nesterov(server_momentum) if steps else None)
        self.learning_rate = None if learning_rate is None else _checked(learning_rate)
        self.local_learning_rate = local_learning_rate
        self.ema = require_number("ema", ema, most=1.0, below=True)
        self._averaged: dict[str, np.ndarray] = {}
        self.private_steps = StepReports()

    def accept(self, client: int, content: RecordDict, usable: Usable) -> None:
        """Note what the client's private steps have cost, if it takes any."""
        self.private_steps.take(client, usable.metrics)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the usable replies; of private steps' costs, report the largest."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        if metrics is not None and self.private_steps.costs:
            for name, value in self.private_steps.worst().items():
                metrics[name] = value
        return arrays, metrics

    def round_config(self, server_round: int, config: Mapping[str, Any]) -> dict[str, Any]:
        """Tell the clients this round's learning rate."""
        settings = super().round_config(server_round, config)
        if self.local_learning_rate is not None:
            settings[LEARNING_RATE] = self.local_learning_rate
        elif self.learning_rate is not None:
            settings[LEARNING_RATE] = self.learning_rate(server_round)
        return settings

    def server_update(
        self, server_round: int, mean: dict[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """Take the server's step from the weights sent out to the clients' mean."""
        if self.server_optimizer is not None:
            rate = self.learning_rate(server_round) if self.learning_rate else 1.0
            told = rate if self.local_learning_rate is None else self.local_learning_rate
            step = partial(
                stepped, self.server_optimizer, told=told, rate=self.server_learning_rate * rate
            )
            mean = {name: step(name, self.sent[name], value) for name, value in mean.items()}
        if self.ema > 0:
            self._average(server_round, mean)
        return mean

    @property
    def ema_arrays(self) -> dict[str, np.ndarray]:
        """The running average of the weights, in their dtypes; empty without ``ema``."""
        dtypes = {name: value.dtype for name, value in self.sent.items()}
        return {
            name: value.astype(dtypes.get(name, value.dtype), copy=False)
            for name, value in self._averaged.items()
        }

    def _average(self, server_round: int, arrays: Mapping[str, np.ndarray]) -> None:
        """EMA whose decay warms up, min(decay, (1 + t) / (10 + t)), so that it starts unbiased."""
        decay = min(self.ema, (1 + server_round) / (10 + server_round))
        for name, value in arrays.items():
            old = self._averaged.get(name)
            if old is not None and old.shape != value.shape:
                raise CheckpointError(
                    f"the averaged weights {name!r} have shape {old.shape}, the weights have "
                    f"{value.shape}: they belong to another model"
                )
            if value.dtype.kind != "f":
                self._averaged[name] = value
                continue
            wide = np.result_type(value, np.float32)  # steps vanish in the rounding of float16
            now = value.astype(wide, copy=False)
            if old is not None:
                now = old + np.asarray(1 - decay, wide) * (now - old)
            self._averaged[name] = now

    def carried(self) -> dict[str, np.ndarray]:
        """The optimizer's arrays."""
        return self.server_optimizer.state() if self.server_optimizer else {}

    def state(self) -> dict[str, np.ndarray]:
        """The optimizer's arrays, the averaged weights, and what private steps have cost."""
        return {
            **{f"optimizer/{name}": value for name, value in self.carried().items()},
            **{f"ema/{name}": value for name, value in self._averaged.items()},
            **{f"steps/{name}": value for name, value in self.private_steps.state().items()},
        }

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave.

        Raises:
            CheckpointError: An array is not finite.
        """
        groups: dict[str, dict[str, np.ndarray]] = {"optimizer": {}, "ema": {}, "steps": {}}
        for key, value in arrays.items():
            kind, _, name = key.partition("/")
            if kind in groups:
                if not records.is_finite(value):
                    raise CheckpointError(f"the strategy's state {key!r} is NaN or infinite")
                groups[kind][name] = value
        if self.server_optimizer:
            self.server_optimizer.load_state(groups["optimizer"])
        self._averaged = groups["ema"]
        self.private_steps.load_state(groups["steps"])


class StepReports:
    """Every client's last word on the cost of its private weights.

    The client keeps the account and refuses to train beyond its budget: the server need not know
    its sample rate, nor have Opacus.

    Attributes:
        costs: Cost of a step, by client.
    """

    def __init__(self) -> None:
        self.costs: dict[int, WeightsCost] = {}
        self._told = False

    def take(self, client: int, metrics: Mapping[str, Any]) -> None:
        """Read the account from a reply's metrics, if it has one.

        Raises:
            ReplyError: It is incomplete or negative, or has forgotten steps that it told before.
        """
        if StepKey.EPSILON not in metrics:
            return
        try:
            cost = WeightsCost(
                int(metrics[StepKey.STEPS]),
                float(metrics[StepKey.EPSILON]),
                float(metrics[StepKey.REPLACED]),
            )
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ReplyError(f"its account of private steps cannot be read: {error!r}") from None
        if not all(0 <= value < math.inf for value in (cost.steps, cost.epsilon, cost.replaced)):
            raise ReplyError(f"its account of private steps is negative or not finite: {cost}")
        before = self.costs.get(client)
        if before is not None and cost.steps < before.steps:
            raise ReplyError(
                f"its account of private steps went back from {before.steps} to {cost.steps}: "
                "was its ledger lost?"
            )
        self.costs[client] = cost
        if metrics.get(StepKey.SPENT) and not self._told:
            self._told = True
            log.warning(
                "client %d has spent the privacy budget of its weights (epsilon %.4g, %d steps): "
                "it returns the weights it is sent",
                client, cost.epsilon, cost.steps,
            )  # fmt: skip

    def worst(self) -> dict[str, float]:
        """The largest of each number over the clients, as metrics."""
        costs = self.costs.values()
        return {
            StepKey.STEPS: max(cost.steps for cost in costs),
            StepKey.EPSILON: max(cost.epsilon for cost in costs),
            StepKey.REPLACED: max(cost.replaced for cost in costs),
        }

    def state(self) -> dict[str, np.ndarray]:
        """One array per client."""
        return {
            str(client): np.array([cost.steps, cost.epsilon, cost.replaced])
            for client, cost in self.costs.items()
        }

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""
        self.costs = {
            int(client): WeightsCost(int(steps), float(epsilon), float(replaced))
            for client, (steps, epsilon, replaced) in arrays.items()
        }


def _checked(rate: Callable[[int], float]) -> Callable[[int], float]:
    """The same schedule; it says so when what it gives is no rate."""
    if not callable(rate):
        raise ConfigError(f"learning_rate must be a function of the round, got {rate!r}")

    def checked(server_round: int) -> float:
        return require_number(f"learning_rate({server_round})", rate(server_round), below=True)

    return checked
