"""What clients that train with DP-SGD tell the server of their accounts."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nmoe_flower.errors import ReplyError
from nmoe_flower.privacy import WeightsCost
from nmoe_flower.records import StepKey

__all__ = ["StepReports"]

log = logging.getLogger(__name__)


class StepReports:
    """Every client's last word on the cost of its private weights.

    The client keeps the account and refuses to train beyond its budget: the server need not know
    its sample rate, nor have Opacus.

    Attributes:
        costs: By client.
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
