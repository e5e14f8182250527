"""FedMix: FedEM's experts, with a gate that reads the input in place of a client's weights.

Reisser et al. 2021, arXiv:2107.06724. The user's gate p(k|x, phi_s) stays at home. With
r_xk ~ p(k|x) p(y|x, w_k), held, a client takes steps on sum_k r_xk (loss_k(x) - log p(k|x)), so
that the gate learns r. The server averages expert k by the masses sum_x r_xk. A test image is
answered by sum_k p(k|x) softmax_k(x).

A client must send ``trunk.*``, ``expert.<k>.*`` of all K, ``num-examples`` and ``masses``, for each
expert sum_x r_xk, in sum ``num-examples``; without masses it is refused. The trunk is averaged
by samples.

Not found in print, and so ours: the gate is linear in the latents of the shared trunk, or in the
pixels if the experts are whole networks. No code of the authors was found. Simplified here: r is
of the training images, which flatters the experts that learn them; experts are heads on one trunk
unless ``baseline.size = net``, as in the paper; a client receives every expert, also one whose mass
has vanished, so its bytes are an upper bound.
"""

from typing import TYPE_CHECKING, Unpack

from nmoe_flower import records
from nmoe_flower.baselines.fedem import mixture, responsibilities
from nmoe_flower.baselines.partial import PartialExperts
from nmoe_flower.baselines.system import Answers, Baseline
from nmoe_flower.baselines.ungated import ungated
from nmoe_flower.config import Config
from nmoe_flower.records import BaselineKey
from nmoe_flower.strategies import StreamingOptions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.baselines.network import ExpertNetwork
    from nmoe_flower.data import Portion

__all__ = ["FEDMIX"]


class _FedMix(Baseline):
    name = "fedmix"

    def strategy(self, config: Config, **options: Unpack[StreamingOptions]) -> PartialExperts:
        return PartialExperts(self.experts(config), masses=True, **options)

    def at_home(self, network: "ExpertNetwork", image_shape: tuple[int, int, int]) -> int:
        return sum(p.numel() for p in _fresh_gate(network).parameters())

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        import torch
        from torch import nn

        from nmoe_flower.baselines.network import cross_entropy

        network, gate, place = member.network, _gate(member), member.device.torch_device
        latents, logits = member.outputs(member.training)
        with torch.inference_mode():
            prior = gate(latents.to(place)).softmax(dim=1).cpu()
        parts = responsibilities(cross_entropy(logits, member.labels), prior).clone()

        def loss(images: "Tensor", labels: "Tensor", chosen: "np.ndarray") -> "Tensor":
            latents, logits = network.both(images)
            losses = cross_entropy(logits, labels) - gate(latents.float()).log_softmax(dim=1)
            total: Tensor = (parts[chosen].to(place) * losses).sum(dim=1).mean()
            return total

        found = member.steps(nn.ModuleList([network, gate]), loss)
        member.keep(gate.state_dict())
        return {"loss": found, BaselineKey.MASSES: parts.sum(dim=0).tolist()}

    def answers(self, member: "Member", *, final: bool) -> Answers:
        gate = _gate(member).cpu()

        def mixed(portion: "Portion") -> "Tensor":
            latents, logits = member.outputs(portion)
            return mixture(logits, gate(latents).softmax(dim=1))

        found: Answers = {self.name: mixed}
        return {**found, **ungated(member)} if final else found


def _gate(member: "Member") -> "nn.Linear":
    """The client's own gate, as it was kept or fresh."""
    gate = _fresh_gate(member.network)
    if kept := member.kept():
        records.load_into(gate.state_dict(), kept)
    return gate.to(member.device.torch_device)


def _fresh_gate(network: "ExpertNetwork") -> "nn.Linear":
    """A gate that is indifferent."""
    from torch import nn

    gate = nn.Linear(network.latent_dim, len(network.expert))
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    return gate


FEDMIX = _FedMix()
