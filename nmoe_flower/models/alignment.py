"""The mixture of the alignment system: one module with extractor, gate and experts by name."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nmoe_flower.models.expert import Expert
from nmoe_flower.models.extractor import Extractor
from nmoe_flower.models.gate import Gate, route_top_k
from nmoe_flower.models.nmoe import LocalExperts, combine

__all__ = ["AlignmentMixture", "alignment_loss", "mixed"]


class AlignmentMixture(nn.Module):
    """Extractor, gate and experts; a client that holds a few experts uses only those.

    Attributes:
        extractor: Images to latents [B, D].
        gate: Latents to scores [B, E].
        experts: The experts by name, ``"0"`` to ``"E-1"``: latents to logits [B, C].
    """

    def __init__(self, extractor: Extractor, gate: Gate, experts: Sequence[Expert]) -> None:
        super().__init__()
        self.extractor, self.gate = extractor, gate
        self.experts = nn.ModuleDict({str(i): expert for i, expert in enumerate(experts)})

    def expert(self, number: int) -> Expert:
        """One of the experts."""
        found = self.experts[str(number)]
        assert isinstance(found, Expert)
        return found

    def answers(self, latents: Tensor, held: Sequence[int]) -> Tensor:
        """Logits [B, k, C] of the held experts."""
        return torch.stack([self.expert(number)(latents) for number in held], dim=1)


def alignment_loss(
    scores: Tensor, logits: Tensor, labels: Tensor, held: Sequence[int], *, anchor: float = 0.0
) -> Tensor:
    """``-log sum_a p(a | held) p_a(y)``, and the gate's call for the held experts.

    With one expert the first term gives the gate no gradient. The second one, ``-log sum_a p(a)``
    over all experts, tells it that this client's data belongs to its experts.

    Args:
        scores: Scores of the gate over all experts, [B, E].
        logits: What the held experts say, [B, k, C].
        labels: The true classes, [B].
        held: Numbers of the k experts, 0..E-1.
        anchor: Weight of the second term.
    """
    mine = scores[:, list(held)]
    answers = logits.log_softmax(dim=2)[torch.arange(len(labels)), :, labels]
    loss = -(mine.log_softmax(dim=1) + answers).logsumexp(dim=1).mean()
    if anchor:
        called = scores.logsumexp(dim=1) - mine.logsumexp(dim=1)
        loss = loss + anchor * called.mean()
    return loss


def mixed(
    scores: Tensor, latents: Tensor, experts: Sequence[Expert], *, top_k: int
) -> tuple[Tensor, Tensor]:
    """Answer latents [B, D] by the best of k experts, each weighed by its score [B, k].

    Equal scores go to the lower position first.

    Returns:
        Class probabilities [B, C], and the positions of the experts asked, [B, min(top_k, k)].
    """
    routing = route_top_k(scores, min(top_k, scores.shape[1]))
    answers = LocalExperts(experts)(latents, routing.expert_ids)
    return combine(answers, routing.weights), routing.expert_ids
