"""The networked mixture: extractor, gate and a pool of experts, wherever these live.

``NMoE.forward`` is the same for gate training, simulation and inference among peers. Only the pool
differs. ``CentralizedMoE`` is the classical mixture from the same parts, trained end to end.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.expert import Expert
from nmoe_flower.models.gate import Gate, Router, Routing, route_top_k

__all__ = [
    "AskedExperts",
    "CachedExperts",
    "CentralizedMoE",
    "ExpertPool",
    "LocalExperts",
    "Mixture",
    "NMoE",
    "Prediction",
    "combine",
]


class ExpertPool(Protocol):
    """Answers latents [B, D] by the experts named in expert_ids [B, K]: logits [B, K, C].

    A slot whose logits are all NaN is an expert that did not answer.
    """

    def __call__(self, latents: Tensor, expert_ids: Tensor) -> Tensor:
        """Return the logits [B, K, C]."""
        ...


class LocalExperts(nn.Module):
    """Experts held in this process. Each runs once per call, on its own rows.

    Raises:
        ConfigError: There is no expert, or they do not all know the same number of classes.

    >>> pool = LocalExperts([Expert(4, 3, hidden=()), Expert(4, 3)])
    >>> pool(torch.zeros(5, 4), torch.tensor([[0], [1], [1], [0], [1]])).shape
    torch.Size([5, 1, 3])
    """

    def __init__(self, experts: Sequence[Expert]) -> None:
        super().__init__()
        classes = {expert.num_classes for expert in experts}
        if len(classes) != 1:
            raise ConfigError(
                "a pool needs at least one expert, all with the same number of classes; got "
                f"{len(experts)} experts with {sorted(classes)} classes"
            )
        self.experts = nn.ModuleList(experts)
        self.num_classes = classes.pop()

    def forward(self, latents: Tensor, expert_ids: Tensor) -> Tensor:
        """Answer latents [B, D] by expert_ids [B, K]: logits [B, K, C].

        Raises:
            ConfigError: An id is not in 0..E-1.
        """
        flat = expert_ids.reshape(-1)
        if not len(flat):
            return latents.new_zeros(*expert_ids.shape, self.num_classes)
        low, high = (int(end) for end in flat.aminmax())
        if low < 0 or high >= len(self.experts):
            raise ConfigError(
                f"expert ids must be in 0..{len(self.experts) - 1}, got {low} to {high}"
            )
        order = flat.argsort(stable=True)
        counts = flat.bincount(minlength=len(self.experts)).tolist()
        groups = torch.split(latents[order // expert_ids.shape[1]], counts)
        answers = [
            expert(rows) for expert, rows in zip(self.experts, groups, strict=True) if len(rows)
        ]
        return torch.cat(answers)[order.argsort()].view(*expert_ids.shape, self.num_classes)

    def all(self, latents: Tensor) -> Tensor:
        """Answer latents [B, D] by every expert: logits [B, E, C].

        A plain loop: from about a hundred rows on it is as fast on a CPU as batched products over
        stacked weights, and the experts may differ in shape.
        """
        return torch.stack([expert(latents) for expert in self.experts], dim=1)


class CachedExperts:
    """Answers known beforehand: logits [N, E, C] of N latents, asked for in the same order.

    >>> pool = CachedExperts(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    >>> pool(torch.zeros(1, 8), torch.tensor([[1]]))
    tensor([[[3., 4.]]])
    """

    def __init__(self, logits: Tensor) -> None:
        if logits.ndim != 3:
            raise ConfigError(f"cached logits must be [N, E, C], got shape {tuple(logits.shape)}")
        self.logits = logits

    def __call__(self, latents: Tensor, expert_ids: Tensor) -> Tensor:
        """Look up expert_ids [N, K]: logits [N, K, C]. Only the number of latents matters.

        Raises:
            ConfigError: There are not exactly N latents and N rows of ids.
        """
        if not len(latents) == len(expert_ids) == len(self.logits):
            raise ConfigError(
                f"{len(self.logits)} answers are cached, got {len(latents)} latents and "
                f"{len(expert_ids)} rows of expert ids"
            )
        return self.logits.take_along_dim(expert_ids[:, :, None], dim=1)


class AskedExperts:
    """Answers known beforehand of some experts for each latent, asked for in the same order.

    Args:
        expert_ids: Ids of the experts that have answered, [N, M]; -1 where there is none.
        logits: What they are, [N, M, C].

    Raises:
        ConfigError: The shapes do not fit.

    >>> pool = AskedExperts(torch.tensor([[7, 2]]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    >>> pool(torch.zeros(1, 8), torch.tensor([[2, 5]]))
    tensor([[[3., 4.],
             [nan, nan]]])
    """

    def __init__(self, expert_ids: Tensor, logits: Tensor) -> None:
        if logits.ndim != 3 or logits.shape[:2] != expert_ids.shape:
            raise ConfigError(
                "answers must be [N, M, C] of experts [N, M], got shapes "
                f"{tuple(logits.shape)} and {tuple(expert_ids.shape)}"
            )
        self.expert_ids, self.logits = expert_ids, logits

    def __call__(self, latents: Tensor, expert_ids: Tensor) -> Tensor:
        """Look up expert_ids [N, K]: logits [N, K, C], NaN of experts that were not asked."""
        same = self.expert_ids[:, None, :] == expert_ids[:, :, None]
        found = self.logits.take_along_dim(same.int().argmax(dim=2)[:, :, None], dim=1)
        return found.where(same.any(dim=2)[:, :, None], torch.nan)


def combine(logits: Tensor, weights: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mix the experts' softmaxes: sum_k w_k softmax(H_k), Eq. 1 of the NMoE paper.

    Args:
        logits: Logits of the chosen experts, [B, K, C].
        weights: [B, K]; rows sum to 1.
        mask: [B, K] bool, true where the expert answered. The weights of the others are spread
            over those that did (evenly, if these all weigh 0). Where nobody answered the result is
            uniform.

    Returns:
        Probabilities [B, C].

    >>> logits, weights = torch.tensor([[[0.0, 0.0], [9e9, 0.0]]]), torch.tensor([[0.5, 0.5]])
    >>> combine(logits, weights)
    tensor([[0.7500, 0.2500]])
    >>> combine(logits, weights, mask=torch.tensor([[True, False]]))
    tensor([[0.5000, 0.5000]])
    """
    if mask is not None:
        logits = logits.where(mask[..., None], 0.0)
        weights = weights * mask
        total = weights.sum(dim=1, keepdim=True)
        known = torch.where(mask.any(dim=1, keepdim=True), mask, torch.ones_like(mask))
        even = known.to(weights) / known.sum(dim=1, keepdim=True)
        weights = torch.where(total > 0, weights / total.where(total > 0, 1.0), even)
    return (weights[..., None] * logits.softmax(dim=2)).sum(dim=1)


class Prediction(NamedTuple):
    """What the mixture answers.

    Attributes:
        probabilities: [B, C]; uniform where no expert answered.
        routing: The experts asked.
        answered: [B, K] bool; false where an expert did not answer.
    """

    probabilities: Tensor
    routing: Routing
    answered: Tensor


class NMoE(nn.Module):
    """Extract, route, ask the pool, mix (Eq. 1 of the NMoE paper, arXiv:2511.01743).

    Gate and pool need not be modules: any ``Router`` and any ``ExpertPool`` will do.
    """

    def __init__(self, extractor: nn.Module, gate: Router, pool: ExpertPool) -> None:
        super().__init__()
        self.extractor = extractor
        self.gate = gate
        self.pool = pool

    def forward(self, images: Tensor, *, generator: Generator | None = None) -> Prediction:
        """Classify images [B, channels, height, width]."""
        return self.mixture(self.extractor(images), generator=generator)

    def mixture(self, latents: Tensor, *, generator: Generator | None = None) -> Prediction:
        """Classify latents [B, D]."""
        routing = self.gate.route(latents, generator=generator)
        logits = self.pool(latents, routing.expert_ids)
        answered = ~logits.isnan().all(dim=2)
        return Prediction(combine(logits, routing.weights, mask=answered), routing, answered)


class Mixture(NamedTuple):
    """What the centralised mixture answers.

    Attributes:
        log_probabilities: [B, C]; the mean of minus the true class's entry is cross-entropy.
        gate_probabilities: [B, E], the softmax over all scores, for the load-balance loss.
        routing: The experts used.
    """

    log_probabilities: Tensor
    gate_probabilities: Tensor
    routing: Routing


class CentralizedMoE(nn.Module):
    """The classical mixture of experts: one machine, all parts trained together.

    With one expert per image the weight after top-1 is the constant 1 and the gate would learn
    nothing from labels. So for ``top_k=1`` the chosen expert's logits are scaled by p / p, where
    only the numerator carries a gradient: forward this is Eq. 1, backward the relative form of the
    Switch Transformer's scaling by p (Fedus et al., 2021), which on its own would also shrink every
    expert's logits by the number of experts. For more experts Eq. 1 carries a gradient itself.
    """

    def __init__(self, extractor: nn.Module, gate: Gate, experts: LocalExperts) -> None:
        super().__init__()
        if gate.num_experts != len(experts.experts):
            raise ConfigError(
                f"the gate scores {gate.num_experts} experts but there are {len(experts.experts)}"
            )
        self.extractor = extractor
        self.gate = gate
        self.experts = experts

    def forward(self, images: Tensor, *, generator: Generator | None = None) -> Mixture:
        """Classify images [B, channels, height, width]; a noisy gate in training needs noise."""
        latents = self.extractor(images)
        scores = self.gate(latents, generator=generator)
        gates = scores.softmax(dim=1)
        routing = route_top_k(scores, self.gate.top_k)
        logits = self.experts(latents, routing.expert_ids)
        if self.gate.top_k == 1:
            chosen = gates.gather(1, routing.expert_ids)
            scale = chosen / chosen.detach()
            return Mixture((scale * logits[:, 0]).log_softmax(dim=1), gates, routing)
        log_weights = scores.gather(1, routing.expert_ids).log_softmax(dim=1)
        mixed = (log_weights[..., None] + logits.log_softmax(dim=2)).logsumexp(dim=1)
        return Mixture(mixed, gates, routing)
