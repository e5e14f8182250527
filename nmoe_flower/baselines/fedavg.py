"""FedAvg, and what every honest table has beside it.

McMahan et al. 2017, arXiv:1602.05629. Each client takes E local steps from the received weights w;
the server takes w <- sum_i n_i w_i / sum_i n_i.

A client must send what it was sent, ``trunk.*`` and ``expert.0.*``, and ``num-examples``, n_i.
Local work is in steps, not in epochs.

Beside it, after training: ``fine-tuned``, its head tuned at home on the frozen trunk's latents;
``own``, a network that each client trains alone with as many steps as if it took part in every
round; ``majority``, the class that a client has most often, whatever the image.
"""

from typing import TYPE_CHECKING

from nmoe_flower.baselines.system import Answers, Baseline

if TYPE_CHECKING:
    from torch import Tensor

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.data import Portion

__all__ = ["FEDAVG"]


class _FedAvg(Baseline):
    name = "fedavg"
    tuned = frozenset({"fine-tuned"})

    def answers(self, member: "Member", *, final: bool) -> Answers:
        first = {self.name: member.single}
        return {**first, **_beside(member)} if final else first


def _beside(member: "Member") -> Answers:
    import numpy as np
    import torch
    from torch.nn import functional as F

    rows = np.arange(len(member.labels))
    head = member.tuned_head(member.latents(member.training), rows)
    alone = member.fresh()

    def loss(images: "Tensor", labels: "Tensor", _: np.ndarray) -> "Tensor":
        return F.cross_entropy(alone(images)[:, 0].float(), labels)

    steps = member.settings.rounds * member.settings.local_steps
    member.steps(alone, loss, purpose="own", first=0, count=steps)
    classes = member.device.data.num_classes
    often = int(torch.bincount(member.labels, minlength=classes).argmax())
    most = F.one_hot(torch.tensor(often), classes).float()

    def fine_tuned(portion: "Portion") -> "Tensor":
        probs: Tensor = head(member.latents(portion)).softmax(dim=1)
        return probs

    return {
        "fine-tuned": fine_tuned,
        "own": lambda portion: member.predict(alone, portion)[:, 0].softmax(dim=1),
        "majority": lambda portion: most.expand(len(portion.rows), -1),
    }


FEDAVG = _FedAvg()
