"""FedCE: federated averaging of a classifier that is later split (Networked MoE, section III-A.1).

Gao et al. 2025, "Towards Efficient Federated Learning of Networked Mixture-of-Experts for Mobile
Edge Computing", arXiv:2511.01743, Eq. 2.
"""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import numpy as np

from nmoe_flower.strategies.base import StreamingFedAvg, StreamingOptions

__all__ = ["LEARNING_RATE", "FedCE"]

LEARNING_RATE = "learning-rate"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class FedCE(StreamingFedAvg):
    """FedAvg of a classifier, with a server step of its own.

    The client trains the classifier it is sent on its own images with cross entropy and returns
    its weights; it finds this round's rate under ``"learning-rate"``. Sending only the extractor's
    weights, with a head that stays at home, gives the private heads of Eq. 2.

    With ``server_momentum`` the mean change is taken as a gradient,
    ``g = (w - mean) / learning_rate``, and the server takes a Nesterov step::

        m <- momentum m + g;    w <- w - server_learning_rate learning_rate (g + momentum m)

    If clients take one plain SGD step per round this is, exactly, averaging their momentum
    buffers, at no cost on the wire. Running statistics of BatchNorm are averaged, never stepped.

    Args:
        server_learning_rate: 1.0 takes the mean as it is.
        server_momentum: Nesterov momentum of the server's step.
        learning_rate: The clients' rate in round 1, 2, ...; None sends none.
        ema: Decay per round of a running average of the weights, in ``ema_arrays``; 0 is off.
        **options: Those of ``StreamingFedAvg`` and FedAvg.
    """

    purpose = "extractor"

    def __init__(
        self,
        *,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        learning_rate: Callable[[int], float] | None = None,
        ema: float = 0.0,
        **options: Unpack[StreamingOptions],
    ) -> None:
        super().__init__(**options)
        self.server_learning_rate = server_learning_rate
        self.server_momentum = server_momentum
        self.learning_rate = learning_rate
        self.ema = ema
        self.ema_arrays: dict[str, np.ndarray] = {}
        self._momentum: dict[str, np.ndarray] = {}

    def round_config(self, server_round: int, config: Mapping[str, Any]) -> dict[str, Any]:
        """Tell the clients this round's learning rate."""
        settings = super().round_config(server_round, config)
        if self.learning_rate is not None:
            settings[LEARNING_RATE] = self.learning_rate(server_round)
        return settings

    def server_update(
        self, server_round: int, mean: dict[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """Take the server's step from the weights sent out to the clients' mean."""
        rate = self.learning_rate(server_round) if self.learning_rate else 1.0
        if self.server_momentum > 0 or self.server_learning_rate != 1.0:
            mean = {
                name: self._step(name, value, rate) if _is_stepped(name, value) else value
                for name, value in mean.items()
            }
        if self.ema > 0:
            self._average(server_round, mean)
        return mean

    def _step(self, name: str, mean: np.ndarray, rate: float) -> np.ndarray:
        sent = self.sent[name]
        if rate == 0.0:
            return sent
        step = (sent - mean) / np.asarray(rate, sent.dtype)
        if self.server_momentum > 0:
            mu = np.asarray(self.server_momentum, sent.dtype)
            momentum = mu * self._momentum[name] + step if name in self._momentum else step
            self._momentum[name] = momentum
            step = step + mu * momentum
        stepped: np.ndarray = sent - np.asarray(self.server_learning_rate * rate, sent.dtype) * step
        return stepped

    def _average(self, server_round: int, arrays: Mapping[str, np.ndarray]) -> None:
        """EMA whose decay warms up, min(decay, (1 + t) / (10 + t)), so that it starts unbiased."""
        decay = min(self.ema, (1 + server_round) / (10 + server_round))
        for name, value in arrays.items():
            if name in self.ema_arrays and value.dtype.kind == "f":
                old = self.ema_arrays[name]
                self.ema_arrays[name] = old + np.asarray(1 - decay, old.dtype) * (value - old)
            else:
                self.ema_arrays[name] = value

    def state(self) -> dict[str, np.ndarray]:
        """Momentum and averaged weights."""
        return {
            **{f"momentum/{name}": value for name, value in self._momentum.items()},
            **{f"ema/{name}": value for name, value in self.ema_arrays.items()},
        }

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore momentum and averaged weights."""
        for key, value in arrays.items():
            kind, _, name = key.partition("/")
            (self._momentum if kind == "momentum" else self.ema_arrays)[name] = value


def _is_stepped(name: str, value: np.ndarray) -> bool:
    return value.dtype.kind == "f" and name.rpartition(".")[2] not in _STATISTICS
