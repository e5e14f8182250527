"""Ditto: a personal network beside the global one, held near it.

Li et al. 2021, arXiv:2012.04221, algorithm 1. The global network w is FedAvg's. Each client keeps
v_i, which takes as many steps on F_i(v) + lambda/2 ||v - w_t||^2; it starts from the first w
received and never leaves. The test is answered by v_i. A client must send what FedAvg's does, w
alone.

Simplified here: lambda is ``baseline.proximal`` for every client, and v_i has w's rate.
"""

from typing import TYPE_CHECKING

from nmoe_flower import records
from nmoe_flower.baselines.system import Answers, Baseline

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.baselines.network import ExpertNetwork

__all__ = ["DITTO"]


class _Ditto(Baseline):
    name = "ditto"

    def at_home(self, network: "ExpertNetwork", image_shape: tuple[int, int, int]) -> int:
        return sum(value.numel() for value in network.state_dict().values())

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        from nmoe_flower.baselines.network import cross_entropy, distance

        own = _personal(member)
        received = [p.detach().clone() for p in member.network.parameters()]

        def loss(images: "Tensor", labels: "Tensor", _: "np.ndarray") -> "Tensor":
            fits = cross_entropy(own(images), labels).sum(dim=1).mean()
            return fits + member.settings.proximal / 2 * distance(own, received)

        found = {"loss": member.steps(member.network)}
        member.steps(own, loss, purpose="personal")
        member.keep(own.state_dict())
        return {**found}

    def answers(self, member: "Member", *, final: bool) -> Answers:
        own = _personal(member)
        return {
            self.name: lambda portion: member.predict(own, portion)[:, 0].softmax(dim=1),
            "ditto-global": member.single,
        }


def _personal(member: "Member") -> "ExpertNetwork":
    own = member.fresh()
    own.load_state_dict(member.network.state_dict())
    if kept := member.kept():
        records.load_into(own.state_dict(), kept)
    return own


DITTO = _Ditto()
