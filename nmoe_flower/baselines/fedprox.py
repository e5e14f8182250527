"""FedProx: local training that stays near what was received.

Li et al. 2020, arXiv:1812.06127. Each client minimises F_i(w) + mu/2 ||w - w_t||^2; the server
averages as FedAvg does. The server half is Flower's FedProx, which tells mu as ``proximal-mu``, on
the base of all systems. A client must send what FedAvg's does.

Simplified here: every client takes the same number of steps; none is cut short.
"""

from typing import TYPE_CHECKING, Unpack

from flwr.serverapp.strategy import FedProx

from nmoe_flower.baselines.partial import PartialExperts
from nmoe_flower.baselines.system import Baseline
from nmoe_flower.config import Config
from nmoe_flower.records import BaselineKey
from nmoe_flower.strategies import StreamingOptions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from nmoe_flower.baselines.member import Member

__all__ = ["FEDPROX"]


class _Server(FedProx, PartialExperts):
    def __init__(self, experts: int, mu: float, **options: Unpack[StreamingOptions]) -> None:
        PartialExperts.__init__(self, experts, masses=False, **options)
        self.proximal_mu = mu


class _FedProx(Baseline):
    name = "fedprox"

    def strategy(self, config: Config, **options: Unpack[StreamingOptions]) -> PartialExperts:
        return _Server(self.experts(config), config.baseline.proximal, **options)

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        from nmoe_flower.baselines.network import cross_entropy, distance

        network = member.network
        pull = float(member.told[BaselineKey.PROXIMAL])
        received = [p.detach().clone() for p in network.parameters()]

        def loss(images: "Tensor", labels: "Tensor", _: "np.ndarray") -> "Tensor":
            own = cross_entropy(network(images), labels).sum(dim=1).mean()
            return own + pull / 2 * distance(network, received)

        return {"loss": member.steps(network, loss)}


FEDPROX = _FedProx()
