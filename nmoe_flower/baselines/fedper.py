"""FedPer: a shared trunk under private heads, trained together.

Arivazhagan et al. 2019, arXiv:1912.00818. The trunk is averaged, weighted by samples; the head
never leaves the client. A client must send ``trunk.*`` and ``num-examples``.

Simplified here: what is private is the whole head, and no block of the trunk.
"""

from typing import TYPE_CHECKING

from nmoe_flower.baselines.system import Baseline

if TYPE_CHECKING:
    from nmoe_flower.baselines.member import Member

__all__ = ["FEDPER", "PrivateHead"]


class PrivateHead(Baseline):
    """A system whose trunk alone travels."""

    name = "fedper"

    def travels(self, name: str) -> bool:
        """The trunk does."""
        return name.startswith("trunk.")

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        """Train trunk and head; keep the head."""
        loss = self.learn(member)
        head = member.network.expert.state_dict(prefix="expert.")
        member.keep(head)
        return {"loss": loss}

    def learn(self, member: "Member") -> float:
        """Train the network of a client; return the mean loss."""
        return member.steps(member.network)


FEDPER = PrivateHead()
