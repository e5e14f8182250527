"""PFL-MoE: after FedAvg, each client mixes the global head with one of its own.

Guo et al. 2020, arXiv:2012.15589. While FedAvg runs, a client must send what FedAvg's does;
nothing is sent after it. Then, at each client, on latents of the frozen trunk:

1. PFL-FB: a copy of the head is tuned on 75 % of the images.
2. PFL-MF: on the other 25 %, with both heads held, one sigmoid neuron g(latents) is trained by
   Adam on the cross-entropy of y = g global + (1 - g) private, in logits.
3. PFL-MFE: the same, with g reading the pixels.

Simplified here: images are not augmented while a head or a gate is tuned.
"""

import math
from typing import TYPE_CHECKING

from nmoe_flower.baselines.system import Answers, Baseline
from nmoe_flower.seeds import numpy_stream

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.baselines.network import ExpertNetwork
    from nmoe_flower.data import Portion

__all__ = ["PFL_MOE", "blended"]

_RATE, _DECAY = 1e-3, 5e-4  # Adam's, of the gate


class _PFLMoE(Baseline):
    name = "pfl-moe"
    tuned = frozenset({"pfl-mf", "pfl-mfe", "pfl-fb"})

    def at_home(self, network: "ExpertNetwork", image_shape: tuple[int, int, int]) -> int:
        head = sum(p.numel() for p in network.expert["0"].parameters())
        return head + network.latent_dim + 1 + math.prod(image_shape) + 1

    def answers(self, member: "Member", *, final: bool) -> Answers:
        if not final:
            return {"fedavg": member.single}
        import torch

        from nmoe_flower.data import normalise

        size = len(member.labels)
        order = numpy_stream(member.device.seed("baseline-parts")).permutation(size)
        cut = max(1, round(0.75 * size))
        of_head, of_gate = order[:cut], order[cut:] if cut < size else order
        latents = member.latents(member.training)
        shared, own = member.network.expert["0"], member.tuned_head(latents, of_head)
        pixels = normalise(member.device.train_images).flatten(1)
        with torch.inference_mode():
            both = shared(latents.to(member.device.torch_device)).float().cpu(), own(latents)
        two = both[0].clone(), both[1].clone()
        on_latents = _gate(member, latents, two, of_gate, "mf")
        on_pixels = _gate(member, pixels, two, of_gate, "mfe")

        def heads(portion: "Portion") -> "tuple[Tensor, Tensor]":
            return member.predict(member.network, portion)[:, 0], own(member.latents(portion))

        def mf(portion: "Portion") -> "Tensor":
            return blended(on_latents(member.latents(portion)), *heads(portion)).softmax(dim=1)

        def mfe(portion: "Portion") -> "Tensor":
            read = normalise(portion.split.images[portion.rows]).flatten(1)
            return blended(on_pixels(read), *heads(portion)).softmax(dim=1)

        return {
            "pfl-mf": mf,
            "pfl-mfe": mfe,
            "pfl-fb": lambda portion: heads(portion)[1].softmax(dim=1),
            "fedavg": member.single,
        }


def blended(score: "Tensor", shared: "Tensor", own: "Tensor") -> "Tensor":
    """The logits g shared + (1 - g) own, with g = sigmoid(score).

    Args:
        score: What the gate says before the sigmoid, [N, 1].
        shared: Logits of the global head, [N, C].
        own: Logits of the private head, [N, C].
    """
    part = score.sigmoid()
    return part * shared + (1 - part) * own


def _gate(
    member: "Member",
    read: "Tensor",
    heads: "tuple[Tensor, Tensor]",
    rows: "np.ndarray",
    purpose: str,
) -> "nn.Linear":
    """One neuron, which starts by weighing both heads alike."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    gate = nn.Linear(read.shape[1], 1)
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    shared, own = heads
    member.tune(
        gate,
        lambda chosen: F.cross_entropy(
            blended(gate(read[chosen]), shared[chosen], own[chosen]), member.labels[chosen]
        ),
        rows,
        optimizer=torch.optim.Adam(gate.parameters(), lr=_RATE, weight_decay=_DECAY),
        purpose=purpose,
    )
    return gate.eval()


PFL_MOE = _PFLMoE()
