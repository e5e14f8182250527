"""Gates: what they all give back, the one that is trained, and those that need no training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from nmoe_flower.config import GateConfig
from nmoe_flower.errors import ConfigError

__all__ = [
    "DiscriminantGate",
    "DomainGate",
    "Gate",
    "GateSite",
    "HomeBias",
    "LocalGate",
    "OracleGate",
    "PrototypeGate",
    "RandomGate",
    "Router",
    "Routing",
    "ScoringRouter",
    "check_top_k",
    "normal_mean",
    "normalised_latents",
    "require_generator",
    "route_known",
    "route_top_k",
    "with_home_bias",
]


class Routing(NamedTuple):
    """The chosen experts of a batch, best first.

    Attributes:
        expert_ids: [B, K] int64; the ids of a row differ.
        weights: [B, K] float; a row sums to 1.
    """

    expert_ids: Tensor
    weights: Tensor


@runtime_checkable
class Router(Protocol):
    """Anything that picks experts for latents."""

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Pick experts for latents [B, D]; ``generator`` feeds what is random, if anything is."""
        ...


@runtime_checkable
class ScoringRouter(Router, Protocol):
    """A router that goes by scores: those of the best K experts, through a softmax, are weights.

    Attributes:
        top_k: K, the experts that ``route`` picks.
    """

    top_k: int

    def scores(self, latents: Tensor) -> Tensor:
        """Score latents [B, D]: logits [B, E]."""
        ...


@dataclass(frozen=True)
class GateSite:
    """What a gate without weights may be built from: a device, and the test it is evaluated on.

    Attributes:
        own_id: This device's own expert.
        num_experts: Number of experts E.
        settings: The configuration's ``gate`` section, with K in ``top_k``.
        prototypes: Mean latent of every client, [E, D]; None if no configured gate asks for them.
        answers: Logits of every expert for the test, [N, E, C]; None: not known yet.
        labels: The true classes of the test, [N]; only an upper bound may look at them.
        holdout_answers: Logits of every expert for the device's own hold-out, [H, E, C]; or of
            those on a ``shortlist``, [H, S, C].
        holdout_labels: The classes of the hold-out, [H], which are the device's own to look at.
        owners: Ids of the clients that the samples of the test belong to, [N], -1 for nobody's;
            only an upper bound may look. None if the data does not say.
        shortlist: Ids of the S experts whose answers to the hold-out are known; None: all.
        asked: Ids of the experts that ``answers`` are of, [N, M], -1 for none; None: all in order.
    """

    own_id: int
    num_experts: int
    settings: GateConfig
    prototypes: Tensor | None
    answers: Tensor | None
    labels: Tensor
    holdout_answers: Tensor | None = None
    holdout_labels: Tensor | None = None
    owners: Tensor | None = None
    shortlist: Tensor | None = None
    asked: Tensor | None = None


def route_top_k(scores: Tensor, top_k: int = 1) -> Routing:
    """Keep the ``top_k`` best of scores [B, E], weighted by their softmax.

    This is Softmax(Topk(v, k)) of the paper. Equal scores go to the lower id first, whatever the
    batch. With ``top_k=1`` the weight is the constant 1, so no gradient reaches the scores.

    Raises:
        ConfigError: ``top_k`` is not in 1..E.

    >>> route_top_k(torch.tensor([[0.0, 2.0, 2.0]]), 2)
    Routing(expert_ids=tensor([[1, 2]]), weights=tensor([[0.5000, 0.5000]]))
    """
    check_top_k(top_k, scores.shape[1])
    ranked = scores.sort(dim=1, descending=True, stable=True)
    return Routing(ranked.indices[:, :top_k], ranked.values[:, :top_k].softmax(dim=1))


def route_known(scores: Tensor, top_k: int) -> Routing:
    """Keep the best of scores [B, E] as `route_top_k` does, or all there are if they are fewer.

    Minus infinity stands for an expert that nobody has.

    >>> route_known(torch.tensor([[-torch.inf, 2.0, 2.0]]), 3)
    Routing(expert_ids=tensor([[1, 2]]), weights=tensor([[0.5000, 0.5000]]))
    """
    known = int((~scores.isneginf()).all(dim=0).sum())
    return route_top_k(scores, min(top_k, known))


def check_top_k(top_k: int, num_experts: int) -> None:
    """Refuse a ``top_k`` that is not in 1..E."""
    if not 1 <= top_k <= num_experts:
        raise ConfigError(
            f"top_k must be between 1 and the number of experts, {num_experts}, got {top_k}"
        )


def require_generator(generator: Generator | None, who: str) -> Generator:
    """The generator, or a ConfigError that says ``who`` needs one."""
    if generator is None:
        raise ConfigError(f"{who} draws numbers and needs a torch generator, got None")
    return generator


def normalised_latents(latents: Tensor) -> Tensor:
    """Latents [B, D] as trained gates see them: a LayerNorm without parameters."""
    return F.layer_norm(latents, latents.shape[-1:])


def normal_mean(latents: Tensor) -> Tensor:
    """What a device is known by: the mean [D] of its normalised latents [N, D]."""
    return normalised_latents(latents).mean(dim=0)


class Gate(nn.Module):
    """A linear gate, or an MLP with one hidden layer, on the normalised latent.

    The latent passes a LayerNorm without parameters, so a change of scale between extractors does
    not change the sharpness of the gate. The last layer starts at zero: a fresh gate is uniform.

    With ``noisy=True``, in training mode only, each score gets normal noise with standard
    deviation softplus(x W_n) (Shazeer et al., 2017, Eq. 4); W_n starts at zero.

    Attributes:
        latent_dim: Numbers of a latent, D.
        num_experts: Number of experts E.
        top_k: K, the experts that ``route`` picks.

    Raises:
        ConfigError: A size is below 1, or ``top_k`` is not in 1..E.

    >>> Gate(4, 3, top_k=2).route(torch.ones(1, 4)).expert_ids
    tensor([[0, 1]])
    """

    def __init__(
        self,
        latent_dim: int,
        num_experts: int,
        *,
        hidden: int = 0,
        top_k: int = 1,
        noisy: bool = False,
    ) -> None:
        super().__init__()
        if latent_dim < 1 or num_experts < 1 or hidden < 0:
            raise ConfigError(
                "a gate needs latent_dim and num_experts of at least 1 and hidden of at least 0, "
                f"got latent_dim={latent_dim}, num_experts={num_experts}, hidden={hidden}"
            )
        check_top_k(top_k, num_experts)
        self.latent_dim = latent_dim
        self.num_experts = num_experts
        self.top_k = top_k
        self.body = nn.Sequential(nn.Linear(latent_dim, hidden), nn.GELU()) if hidden else None
        self.head = nn.Linear(hidden or latent_dim, num_experts)
        self.noise = nn.Linear(latent_dim, num_experts, bias=False) if noisy else None
        for linear in (self.head, self.noise):
            if linear is not None:
                for parameter in linear.parameters():
                    nn.init.zeros_(parameter)

    def forward(
        self, latents: Tensor, *, generator: Generator | None = None, normalised: bool = False
    ) -> Tensor:
        """Score latents: logits [B, E].

        Args:
            latents: The latents, [B, D].
            generator: Feeds the noise of training.
            normalised: `normalised_latents` has seen them: what trains for many steps does it once.

        Raises:
            ConfigError: The gate is noisy and in training mode, and there is no ``generator``.
        """
        normal = latents if normalised else normalised_latents(latents)
        scores = self._scored(normal)
        if self.noise is None or not self.training:
            return scores
        source = require_generator(generator, "a noisy gate in training mode")
        draws = torch.randn(scores.shape, generator=source, device=source.device)
        return scores + draws.to(scores) * F.softplus(self.noise(normal))

    def _scored(self, normal: Tensor) -> Tensor:
        scores: Tensor = self.head(normal if self.body is None else self.body(normal))
        return scores

    def scores(self, latents: Tensor) -> Tensor:
        """Score latents [B, D] without noise: logits [B, E], as a call in evaluation mode."""
        return self._scored(normalised_latents(latents))

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Pick the top-k experts of latents [B, D]."""
        return route_top_k(self(latents, generator=generator), self.top_k)


class DiscriminantGate(nn.Module):
    """The gate ``lda``: linear discriminants of the clients, solved from their sums, not trained.

    ``weight h + bias`` is, up to what all experts have in common, the log density of a latent h
    under client i's mean and the covariance within clients. So the softmax over them is the
    probability that h came from client i, if latents are normal; it weighs the experts of
    ``top_k`` > 1.

    Attributes:
        latent_dim: Numbers of a latent, D.
        num_experts: Number of experts E.
        top_k: K, the experts that ``route`` picks.

    Raises:
        ConfigError: A size is below 1, or ``top_k`` is not in 1..E.
    """

    NAMES: ClassVar = ("weight", "bias")
    weight: Tensor
    bias: Tensor

    def __init__(self, latent_dim: int, num_experts: int, *, top_k: int = 1) -> None:
        super().__init__()
        if latent_dim < 1 or num_experts < 1:
            raise ConfigError(
                "a gate needs latent_dim and num_experts of at least 1, got "
                f"latent_dim={latent_dim}, num_experts={num_experts}"
            )
        check_top_k(top_k, num_experts)
        self.latent_dim, self.num_experts, self.top_k = latent_dim, num_experts, top_k
        self.register_buffer("weight", torch.zeros(num_experts, latent_dim))
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, latents: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The scores of `scores`; a gate of this kind draws nothing."""
        return self.scores(latents)

    def scores(self, latents: Tensor) -> Tensor:
        """Score latents [B, D]: logits [B, E]."""
        return F.linear(latents, self.weight.to(latents), self.bias.to(latents))

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Pick the clients whose latents these are most likely, for latents [B, D]."""
        return route_top_k(self.scores(latents), self.top_k)


class RandomGate:
    """RanGate: draw experts from a given distribution, without looking at the latent.

    ``distribution=None`` is uniform. With ``top_k`` > 1 the experts of a row are drawn without
    replacement. All weigh the same: the distribution has already spoken in the draw.

    Args:
        num_experts: Number of experts E.
        distribution: A share per expert, [E]; they need not sum to 1.
        top_k: Experts per sample, K.
        scales: Draw uniform experts at a cost that does not grow with E: as likely, but others.

    Raises:
        ConfigError: The distribution has a wrong length, a negative or non-finite entry, or fewer
            positive entries than ``top_k``.

    >>> gate = RandomGate(3, distribution=[0.0, 1.0, 0.0])
    >>> gate.route(torch.zeros(2, 4), generator=Generator().manual_seed(0)).expert_ids
    tensor([[1],
            [1]])
    """

    def __init__(
        self,
        num_experts: int,
        *,
        distribution: Sequence[float] | None = None,
        top_k: int = 1,
        scales: bool = False,
    ) -> None:
        check_top_k(top_k, num_experts)
        self.num_experts, self.top_k = num_experts, top_k
        self.distribution: Tensor | None = None
        if distribution is None and scales:
            return
        shares = [1.0] * num_experts if distribution is None else list(distribution)
        self.distribution = torch.tensor(shares, dtype=torch.float64)
        finite = bool(self.distribution.isfinite().all() and (self.distribution >= 0).all())
        if len(shares) != num_experts or not finite or sum(s > 0 for s in shares) < top_k:
            raise ConfigError(
                f"distribution must hold {num_experts} finite numbers of at least 0, {top_k} or "
                f"more of them positive, got {shares}"
            )
        self.distribution /= self.distribution.sum()

    @classmethod
    def at(cls, site: GateSite) -> Self:
        """The gate of one device, with the configured distribution."""
        return cls(
            site.num_experts,
            distribution=site.settings.distribution or None,
            top_k=site.settings.top_k,
            scales=site.shortlist is not None,
        )

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Draw experts for latents [B, D].

        Raises:
            ConfigError: There is no ``generator``.
        """
        source = require_generator(generator, "a random gate")
        if self.distribution is None:
            ids = _distinct(len(latents), self.top_k, self.num_experts, source)
        else:
            rows = self.distribution.to(source.device).expand(len(latents), -1)
            ids = torch.multinomial(rows, self.top_k, generator=source) if len(latents) else rows
        ids = ids[:, : self.top_k].long().to(latents.device)
        return Routing(ids, latents.new_full(ids.shape, 1 / self.top_k))


def _distinct(rows: int, count: int, total: int, source: Generator) -> Tensor:
    """``count`` numbers of 0 to total - 1 per row, drawn alike without replacement, in order.

    The k-th is drawn among those that are left, by its rank, which passes over those before it.
    """
    drawn = torch.empty((rows, 0), dtype=torch.int64, device=source.device)
    for done in range(count):
        next_one = torch.randint(total - done, (rows, 1), generator=source, device=source.device)
        for taken in drawn.sort(dim=1).values.unbind(dim=1):
            next_one += next_one >= taken[:, None]
        drawn = torch.cat([drawn, next_one], dim=1)
    return drawn


class LocalGate:
    """Every latent stays with the client's own expert: nothing travels."""

    def __init__(self, own_id: int) -> None:
        if own_id < 0:
            raise ConfigError(f"own_id must be at least 0, got {own_id}")
        self.own_id = own_id

    @classmethod
    def at(cls, site: GateSite) -> Self:
        """The gate of one device."""
        return cls(site.own_id)

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Send latents [B, D] to the own expert, with weight 1."""
        shape = (len(latents), 1)
        ids = torch.full(shape, self.own_id, dtype=torch.int64, device=latents.device)
        return Routing(ids, latents.new_ones(shape))


class PrototypeGate:
    """A gate of zero rounds: expert i is known by the mean latent of client i.

    The score is that of linear discriminant analysis: minus half the squared distance to the mean,
    in units of a variance shared by all clients, less the part all experts have in common:
    h . mu_i / v - |mu_i|^2 / (2 v). If the latents of each client are normal with variance v, the
    softmax of the scores is exactly the probability that the latent came from client i. Being
    linear in h, the scores can also start a linear gate. The variance changes the weights for
    ``top_k`` > 1; a single number for all dimensions never changes the ranking.

    Args:
        means: Mean latent of every client, [E, D].
        variance: Variance within clients, a number or one per dimension [D]. None: the mean
            variance between the ``means``, which makes the scores free of units.
        top_k: Experts per sample, K.

    Raises:
        ConfigError: A value is not finite, a variance is not positive, or a shape is wrong.

    >>> gate = PrototypeGate(torch.tensor([[0.0, 0.0], [4.0, 0.0]]), variance=1.0)
    >>> gate.scores(torch.tensor([[1.0, 7.0]]))  # difference -4: half of 1^2 - 3^2
    tensor([[ 0., -4.]])
    """

    def __init__(
        self, means: Tensor, *, variance: Tensor | float | None = None, top_k: int = 1
    ) -> None:
        if means.ndim != 2 or 0 in means.shape or not bool(means.isfinite().all()):
            raise ConfigError(f"means must be finite and [E, D], got shape {tuple(means.shape)}")
        check_top_k(top_k, len(means))
        if variance is None:
            between = means.var(dim=0, correction=0).mean()
            variance = between if between > 0 else torch.ones_like(between)
        spread = torch.as_tensor(variance, dtype=means.dtype, device=means.device)
        fits = spread.ndim == 0 or spread.shape == means.shape[1:]
        if not fits or not bool(((spread > 0) & spread.isfinite()).all()):
            raise ConfigError(
                f"variance must be one positive number or {means.shape[1]} of them, got {variance}"
            )
        self.weight = means / spread
        self.bias = -0.5 * (means * self.weight).sum(dim=1)
        self.top_k = top_k

    @classmethod
    def at(cls, site: GateSite) -> Self:
        """The gate of every device: the same, of all clients' means."""
        if site.prototypes is None:
            raise ConfigError("a prototype gate needs the clients' mean latents, got none")
        return cls(site.prototypes, top_k=site.settings.top_k)

    def scores(self, latents: Tensor) -> Tensor:
        """Score latents [B, D]: logits [B, E]."""
        return F.linear(latents, self.weight.to(latents), self.bias.to(latents))

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Pick the experts with the nearest means for latents [B, D]."""
        return route_top_k(self.scores(latents), self.top_k)


class OracleGate:
    """An upper bound: the expert that gives the true class most.

    Args:
        answers: Logits of every expert, [N, E, C]; NaN where there is no answer.
        labels: The true classes, [N].
        asked: Ids of the experts that gave the answers, [N, E]; None: all in order.
    """

    def __init__(self, answers: Tensor, labels: Tensor, *, asked: Tensor | None = None) -> None:
        truth = answers.softmax(dim=2).take_along_dim(labels[:, None, None], dim=2)[:, :, 0]
        best = truth.nan_to_num(nan=-1.0).argmax(dim=1, keepdim=True)
        self.best = best if asked is None else asked.gather(1, best)

    @classmethod
    def at(cls, site: GateSite) -> Self:
        """The gate of one device and test, among the experts that were asked."""
        if site.answers is None:
            raise ConfigError("an oracle needs the experts' answers to the test, got none")
        return cls(site.answers, site.labels, asked=site.asked)

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Send the N latents [N, D] of the test, in order, to their best experts."""
        return Routing(self.best, latents.new_ones(self.best.shape))


class DomainGate:
    """An upper bound: the expert of the client that each sample is from.

    Where samples of different clients look different this is being told the domain. What is
    nobody's goes to the own expert.

    Args:
        owners: Ids of the clients that N samples belong to, [N]; -1 for nobody's.
        own_id: This device's own expert.
    """

    def __init__(self, owners: Tensor, own_id: int) -> None:
        self.owners = owners.where(owners >= 0, torch.full_like(owners, own_id))[:, None]

    @classmethod
    def at(cls, site: GateSite) -> Self:
        """The gate of one device and test."""
        if site.owners is None:
            raise ConfigError(
                "the gate domain must be told whose each sample is, which the scheme natural knows"
            )
        return cls(site.owners, site.own_id)

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Send the N latents [N, D] of the test, in order, to the experts of their clients."""
        return Routing(self.owners, latents.new_ones(self.owners.shape))


class HomeBias:
    """A gate that leans towards one's own expert, by so much on the scale of its scores.

    Args:
        gate: What scores.
        own_id: This device's own expert.
        bias: What is added to its score: 3 makes it 20 times as likely.

    Attributes:
        top_k: K, the experts that ``route`` picks, if there are as many.

    >>> gate = PrototypeGate(torch.tensor([[0.0, 0.0], [4.0, 0.0]]), variance=1.0)
    >>> HomeBias(gate, own_id=1, bias=5.0).scores(torch.tensor([[1.0, 7.0]]))
    tensor([[0., 1.]])
    """

    def __init__(self, gate: ScoringRouter, own_id: int, bias: float) -> None:
        self._gate, self._own_id, self._bias = gate, own_id, bias
        self.top_k = gate.top_k

    def scores(self, latents: Tensor) -> Tensor:
        """Score latents [B, D]: logits [B, E]."""
        scores = self._gate.scores(latents).clone()
        scores[:, self._own_id] += self._bias
        return scores

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Pick the top-k experts of latents [B, D], of those that the gate knows."""
        return route_known(self.scores(latents), self.top_k)


def with_home_bias(gate: Router, own_id: int, bias: float) -> Router:
    """A gate as it is used at one device: by scores it leans home, without any it stays."""
    return HomeBias(gate, own_id, bias) if bias and isinstance(gate, ScoringRouter) else gate
