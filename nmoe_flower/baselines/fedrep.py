"""FedRep: the private head first, then the shared trunk.

Collins et al. 2021, arXiv:2102.07078, algorithm 1. Of a round's steps the first half trains the
head on the received trunk, the second half the trunk under that head (ours: the paper takes many
steps for the head and few for the trunk; halves keep the work equal to that of the others). Each
half augments its images by noise of its own. The loss told is the mean of all steps of both.
A client must send what FedPer's does.
"""

from typing import TYPE_CHECKING

from nmoe_flower.baselines.fedper import PrivateHead

if TYPE_CHECKING:
    from nmoe_flower.baselines.member import Member

__all__ = ["FEDREP"]


class _FedRep(PrivateHead):
    name = "fedrep"

    def learn(self, member: "Member") -> float:
        network, steps = member.network, member.settings.local_steps
        first = (member.server_round - 1) * steps
        of_head = (steps + 1) // 2
        network.trunk.requires_grad_(False)  # no gradients for what does not move
        loss = member.steps(network.expert, first=first, count=of_head)
        if steps > of_head:
            network.trunk.requires_grad_(True)
            network.expert.requires_grad_(False)
            of_trunk = member.steps(
                network.trunk, first=first + of_head, count=steps - of_head, noise="trunk"
            )
            loss += (of_trunk - loss) * (steps - of_head) / steps
        network.requires_grad_(True)
        return loss


FEDREP = _FedRep()
