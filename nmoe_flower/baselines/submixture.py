"""The client half of systems whose clients train a sparse part of one mixture."""

from typing import TYPE_CHECKING

from nmoe_flower.baselines.system import Answers, Baseline
from nmoe_flower.baselines.ungated import ungated
from nmoe_flower.records import FeedbackKey

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.data import Portion

__all__ = ["SubMixture", "mixed_logits"]

_HELD = "held"


class SubMixture(Baseline):
    """Trunk, the experts a client was sent and their rows of a gate, trained together.

    The gate mixes the logits of the experts held: sum_k p(k|x) logits_k(x), with p the softmax of
    its rows. A client answers with the experts of its last round; with all, if it had none.
    """

    gated = True

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        """Train what was sent; keep which experts these are, and what is private."""
        import torch

        from nmoe_flower.baselines.network import cross_entropy

        network = member.network
        before = {name: tensor.clone() for name, tensor in self._private(member)}
        network.hold(member.told[FeedbackKey.EXPERTS])

        def loss(images: "Tensor", labels: "Tensor", _: "np.ndarray") -> "Tensor":
            latents, logits = network.both(images)
            answered = mixed_logits(network.scores(latents.float()), logits)
            return cross_entropy(answered[:, None], labels).sum(dim=1).mean()

        found = member.steps(network, loss)
        member.keep({**before, **dict(self._private(member)), _HELD: torch.tensor(network.held)})
        return {"loss": found, **self.measures(member)}

    def measures(self, member: "Member") -> dict[str, float | list[float]]:
        """What the server is told of the experts, after training."""
        return {}

    def answers(self, member: "Member", *, final: bool) -> Answers:
        """The mixture of the experts held."""
        if kept := member.kept():
            member.network.hold(kept[_HELD].tolist())

        def mixture(portion: "Portion") -> "Tensor":
            latents, logits = member.outputs(portion)
            return mixed_logits(member.scores(latents), logits).softmax(dim=1)

        found: Answers = {self.name: mixture}
        return {**found, **ungated(member)} if final else found

    def _private(self, member: "Member") -> "list[tuple[str, Tensor]]":
        state = member.network.state_dict()
        return [(name, tensor) for name, tensor in state.items() if not self.travels(name)]

    def usage(self, member: "Member") -> "tuple[Tensor, Tensor]":
        """How the gate shares the training images out, [n, K], and which expert is right, [n, K].

        Both in the order of the experts held.
        """
        latents, logits = member.outputs(member.training)
        right = logits.argmax(dim=2) == member.labels[:, None]
        return member.scores(latents).softmax(dim=1), right.float()


def mixed_logits(scores: "Tensor", logits: "Tensor") -> "Tensor":
    """The logits of experts [B, K, C], mixed by the softmax of ``scores`` [B, K]: [B, C]."""
    return (scores.float().softmax(dim=1)[:, :, None] * logits.float()).sum(dim=1)
