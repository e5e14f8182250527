"""What a client's experts answer without a gate, beside every system of several experts.

``uniform``: all alike; ``random``: for each image one that is drawn, which a gate must beat;
``oracle``: for each the one that is rightest, which nobody knows. A client that holds some of the
experts is answered by these.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from nmoe_flower.baselines.system import Answers

if TYPE_CHECKING:
    from torch import Tensor

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.data import Portion

__all__ = ["ungated"]


def ungated(member: "Member") -> Answers:
    """What is answered beside a system after training, from the experts that a client has."""
    import torch

    from nmoe_flower.training import generator

    @lru_cache(maxsize=1)  # all three are asked of one portion before the next
    def probabilities(portion: "Portion") -> "Tensor":
        return member.predict(member.network, portion).softmax(dim=2)

    def uniform(portion: "Portion") -> "Tensor":
        return probabilities(portion).mean(dim=1)

    def random(portion: "Portion") -> "Tensor":
        probs = probabilities(portion)
        draw = generator(member.device.seed("baseline-random"))
        drawn = torch.randint(probs.shape[1], (len(probs),), generator=draw)
        return probs[torch.arange(len(probs)), drawn]

    def oracle(portion: "Portion") -> "Tensor":
        probs, labels = probabilities(portion), torch.from_numpy(portion.labels)
        best = probs[torch.arange(len(labels)), :, labels].argmax(dim=1)
        return probs[torch.arange(len(labels)), best]

    return {"uniform": uniform, "random": random, "oracle": oracle}
