"""pFedMoE: a small shared extractor and a private one, weighed for each image at home.

Yi et al. 2024, arXiv:2402.01350 (others carry the same name). Client k has a shared extractor G,
and at home an extractor F_k, a header and a gate on the pixels:

1. a(x) = softmax of the gate: pixels, layer norm, linear, sigmoid, linear of 2.
2. z = a_1 G(x) + a_2 F_k(x); the header answers with logits of z.
3. All four are trained together on the cross-entropy. G alone is sent, and averaged by samples.

A client must send ``trunk.*``, which is G, and ``num-examples``.

Ours: F_k has the shape of G, and is drawn by itself, or begins where G does if that comes from
stage 1 (in print F_k are five networks, and G is the smallest); the gate has 50 hidden units, and
starts by weighing both alike; all have one rate. A gate that is all for F_k sends no gradient to G,
whose upload is then noise: ``shared_part`` of a round's metrics is the mean of a_1. The equations
were read in another paper's account; no code of the authors was found.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmoe_flower.baselines.system import Answers, Baseline
from nmoe_flower.config import Config

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.baselines.network import ExpertNetwork
    from nmoe_flower.data import Portion

__all__ = ["PFEDMOE"]

_HIDDEN = 50  # of the gate


class _PFedMoE(Baseline):
    name = "pfedmoe"

    def network(
        self,
        config: Config,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        latent_dim: int = 0,
    ) -> "ExpertNetwork":
        """G is its ``trunk``, F_k its ``own``, the header expert 0, the gate ``weigh``."""
        import math

        from torch import nn

        from nmoe_flower.clients.device import initial_seed
        from nmoe_flower.models import configured_extractor
        from nmoe_flower.training import seeded

        network = super().network(config, image_shape, num_classes, latent_dim=latent_dim)
        pixels = math.prod(image_shape)
        with seeded(initial_seed(config, "baseline-own")):
            network.own = configured_extractor(config, image_shape)
            last = nn.Linear(_HIDDEN, 2)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            network.weigh = nn.Sequential(
                nn.Flatten(), nn.LayerNorm(pixels), nn.Linear(pixels, _HIDDEN), nn.Sigmoid(), last
            )
        return network

    def bodies(self, network: "ExpertNetwork") -> "Sequence[nn.Module]":
        """G and F_k."""
        return [network.trunk, network.get_submodule("own")]

    def travels(self, name: str) -> bool:
        return name.startswith("trunk.")

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        from nmoe_flower.baselines.network import cross_entropy

        network = member.network
        parts = _parts(network)

        def loss(images: "Tensor", labels: "Tensor", _: "np.ndarray") -> "Tensor":
            logits = _answer(network, *(part(images) for part in parts))
            return cross_entropy(logits[:, None], labels).sum(dim=1).mean()

        found = member.steps(network, loss)
        state = network.state_dict()
        member.keep({name: value for name, value in state.items() if not self.travels(name)})
        weights = member.predict(parts[0], member.training).softmax(dim=1)
        return {"loss": found, "shared_part": float(weights[:, 0].mean())}

    def answers(self, member: "Member", *, final: bool) -> Answers:
        network, place = member.network, member.device.torch_device

        def mixture(portion: "Portion") -> "Tensor":
            said = [member.predict(part, portion).to(place) for part in _parts(network)]
            return _answer(network, *said).softmax(dim=1).cpu()

        return {self.name: mixture}


def _parts(network: "ExpertNetwork") -> "list[nn.Module]":
    """The gate, G and F."""
    return [network.get_submodule("weigh"), network.trunk, network.get_submodule("own")]


def _answer(
    network: "ExpertNetwork", scores: "Tensor", shared: "Tensor", own: "Tensor"
) -> "Tensor":
    """Logits [B, C] of the header on a_1 G + a_2 F, with a the softmax of ``scores`` [B, 2]."""
    parts = scores.float().softmax(dim=1)
    latents = parts[:, :1] * shared.float() + parts[:, 1:] * own.float()
    logits: Tensor = network.expert["0"](latents).float()
    return logits


PFEDMOE = _PFedMoE()
