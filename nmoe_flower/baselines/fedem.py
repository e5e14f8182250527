"""FedEM: every client's data are a mixture of K distributions that all clients share.

Marfoq et al. 2021, arXiv:2108.10252, algorithm 1. In a round client i, with mixture weights pi_i:

1. E: q_xk = softmax_k(log pi_ik - loss_k(x)) of each training image x (equation 8).
2. M: pi_ik = mean_x q_xk (equation 9).
3. Steps on sum_k q_xk loss_k(x), q held (equation 10). The server averages the experts by n_i.

A test image is answered by sum_k pi_ik softmax_k(x). The mixture weights never leave the client. A
client must send ``trunk.*``, ``expert.<k>.*`` of all K, and ``num-examples``.

Simplified here: q is of the training images, which flatters the experts that learn them; experts
are heads on one trunk unless ``baseline.size = net``, as in the paper; a round is some steps, not
an epoch.
"""

from typing import TYPE_CHECKING

from nmoe_flower.baselines.system import Answers, Baseline
from nmoe_flower.baselines.ungated import ungated

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.baselines.network import ExpertNetwork
    from nmoe_flower.data import Portion

__all__ = ["FEDEM", "mixture", "responsibilities"]


class _FedEM(Baseline):
    name = "fedem"

    def at_home(self, network: "ExpertNetwork", image_shape: tuple[int, int, int]) -> int:
        return len(network.expert)

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        from nmoe_flower.baselines.network import cross_entropy

        network, place = member.network, member.device.torch_device
        parts = responsibilities(member.losses(), _weights(member))
        member.keep({"weights": parts.mean(dim=0)})

        def loss(images: "Tensor", labels: "Tensor", chosen: "np.ndarray") -> "Tensor":
            weighed = parts[chosen].to(place) * cross_entropy(network(images), labels)
            return weighed.sum(dim=1).mean()

        return {"loss": member.steps(network, loss)}

    def answers(self, member: "Member", *, final: bool) -> Answers:
        weights = _weights(member)

        def mixed(portion: "Portion") -> "Tensor":
            return mixture(member.predict(member.network, portion), weights)

        found: Answers = {self.name: mixed}
        return {**found, **ungated(member)} if final else found


def responsibilities(losses: "Tensor", weights: "Tensor") -> "Tensor":
    """How far each expert answers for each sample, [n, K]; each row sums to 1.

    Args:
        losses: Loss of every expert on every sample, [n, K].
        weights: Weight of each expert, [K], in sum 1; or for every sample, [n, K].
    """
    import torch

    tiny = torch.finfo(weights.dtype).tiny
    return (weights.clamp_min(tiny).log() - losses).softmax(dim=1)


def mixture(logits: "Tensor", weights: "Tensor") -> "Tensor":
    """The probabilities of experts, mixed, [N, C].

    Args:
        logits: Logits of every expert, [N, K, C].
        weights: Weight of each expert, [K], in sum 1; or for every sample, [N, K].
    """
    return (logits.softmax(dim=2) * weights[..., None]).sum(dim=1)


def _weights(member: "Member") -> "Tensor":
    import torch

    kept = member.kept()
    experts = len(member.network.expert)
    if "weights" in kept:
        return torch.from_numpy(kept["weights"].copy())
    return torch.full((experts,), 1 / experts)


FEDEM = _FedEM()
