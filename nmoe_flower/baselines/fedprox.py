"""FedProx: local training that stays near what was received.

Li et al. 2020, arXiv:1812.06127. Each client minimises F_i(w) + mu/2 ||w - w_t||^2; the server
averages as FedAvg does. As in Flower's FedProx, the server only tells mu, as ``proximal-mu``.
"""

from typing import TYPE_CHECKING, Any

from nmoe_flower.baselines.system import Baseline
from nmoe_flower.config import Config
from nmoe_flower.records import BaselineKey

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from nmoe_flower.baselines.member import Member

__all__ = ["FEDPROX"]


class _FedProx(Baseline):
    name = "fedprox"

    def told(self, config: Config) -> dict[str, Any]:
        return {BaselineKey.PROXIMAL: config.baseline.proximal}

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        from nmoe_flower.baselines.member import cross_entropy, distance

        network = member.network
        received = [p.detach().clone() for p in network.parameters()]

        def loss(images: "Tensor", labels: "Tensor", _: "np.ndarray") -> "Tensor":
            own = cross_entropy(network(images), labels).sum(dim=1).mean()
            return own + member.settings.proximal / 2 * distance(network, received)

        return {"loss": member.steps(network, loss)}


FEDPROX = _FedProx()
