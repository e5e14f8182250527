"""FedJETs: a gate chooses which two experts a client trains; anchors keep the experts apart.

Dun et al. 2023, arXiv:2306.08586. M experts, and one gate for everybody on the features of a common
network. In a round:

1. A client is given the K = ``baseline.held`` experts with the highest mean_x p(e|x) at it.
2. It trains them and the gate on the cross-entropy of sum_e p(e|x) logits_e(x), e among the K.
3. With ``baseline.anchors`` M clients, one for each expert, train only that one, and the gate on
   the cross-entropy to its number besides.
4. The server averages each expert over its trainers and the gate over all, by samples.

A test image is answered by the expert of the highest p(e|x), of all M: one model for everybody.

A client must send ``trunk.*``, ``gate.<e>.*`` of all M, ``expert.<e>.*`` of its own,
``num-examples`` and ``usage``, its mean gate probability of each of all M.

In print the experts are whole networks, ResNet-34; here they are heads on a shared trunk, unless
``baseline.size = net``, whose gate reads raw pixels. In training p is in sum 1 over the K held, in
a test over all M: experts that never met in training are compared. An anchor trains in the rounds
whose cohort it is drawn for; where that is a part of all clients, an expert may go without.

Anchors need what the server must be told: how many images of each class each client has. Ours, as
print is silent: the first anchor has the largest share of one class, each further one the classes
that differ most from all anchors' before. The score of a client is that of the last round it took
part in, on its own training images, under the gate it then trained: this saves an exchange. A
client without one is given K at random. The common network is the trunk, trained with the experts,
whose gate does not train it; a given extractor is frozen, as in print. The gate is linear.
No code of the authors was found.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from flwr.app import RecordDict

from nmoe_flower.baselines.partial import PartialExperts, kept_scores, scores_in
from nmoe_flower.baselines.submixture import mixed_logits
from nmoe_flower.baselines.system import Answers, Baseline
from nmoe_flower.baselines.ungated import ungated
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.records import BaselineKey, FeedbackKey
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.strategies import StreamingOptions, Usable

if TYPE_CHECKING:
    from torch import Tensor

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.data import Portion

__all__ = ["FEDJETS", "ChosenExperts", "choose_anchors"]


class ChosenExperts(PartialExperts):
    """The experts that the gate prefers at each client, and anchors.

    The client must send, beside its arrays, ``usage``: its mean gate probability of each of all M
    experts, in sum 1.

    Args:
        experts: How many there are, M.
        held: How many experts a client trains, K; of several at least 2, but for anchors.
        anchors: Each expert has a client that trains it alone; ``class_counts`` must be set.
        **options: What ``StreamingFedAvg`` and FedAvg take.

    Attributes:
        scores: By client: its last mean gate probability, float [M].
    """

    rows_are_shared = True

    def __init__(
        self, experts: int, held: int, *, anchors: bool, **options: Unpack[StreamingOptions]
    ) -> None:
        super().__init__(experts, masses=False, **options)
        if not isinstance(anchors, bool):
            raise ConfigError(f"anchors must be True or False, got {anchors!r}")
        self.held, self.anchors = self.held_at_once(held, chosen_by_gate=not anchors), anchors
        self.scores: dict[int, np.ndarray] = {}
        self._anchor_of: dict[int, int] | None = None

    def anchor_of(self, client: int) -> int | None:
        """The expert that a client is the anchor of, if it is one.

        Raises:
            ConfigError: There are to be anchors, and the class counts are unknown or too few.
        """
        if not self.anchors:
            return None
        if self._anchor_of is None:
            chosen = choose_anchors(self.class_counts, self.experts)
            self._anchor_of = {client: expert for expert, client in enumerate(chosen)}
        return self._anchor_of.get(client)

    def assigned(self, client: int, server_round: int) -> Sequence[int]:
        """The own expert of an anchor; for others those of the highest scores, at first drawn."""
        anchor = self.anchor_of(client)
        if anchor is not None:
            return [anchor]
        if client in self.scores:
            order = np.argsort(-self.scores[client], kind="stable")
        else:
            order = numpy_stream(self.seed, "fedjets", client).permutation(self.experts)
        return sorted(order[: self.held].tolist())

    def words(self, client: int, held: Sequence[int]) -> dict[str, Any]:
        """An anchor is told that it is one."""
        anchor = self.anchor_of(client)
        told = super().words(client, held)
        return told if anchor is None else {**told, BaselineKey.ANCHOR: anchor}

    def accept(self, client: int, content: RecordDict, usable: Usable) -> None:
        """Take a client's scores.

        Raises:
            ReplyError: They are missing, or no shares in sum 1.
        """
        self._found[client] = self.shares_of(usable, BaselineKey.USAGE)

    def learn(self) -> None:
        """Note what the gate prefers where."""
        self.scores |= self._found

    def state(self) -> dict[str, np.ndarray]:
        """The scores of all clients met."""
        return kept_scores(self.scores, self.experts)

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""
        self.scores = scores_in(arrays)


def choose_anchors(class_counts: Mapping[int, Sequence[int]], experts: int) -> list[int]:
    """A client for each expert, whose classes differ as much as can be.

    Args:
        class_counts: By client: its training images of each class.
        experts: How many anchors.

    Raises:
        ConfigError: Nothing is known of the clients' classes, there are too few clients, or their
            counts are no numbers of the same classes, or all 0.

    >>> choose_anchors({0: [5, 5], 1: [9, 1], 2: [8, 2], 3: [1, 9]}, 2)
    [1, 3]
    """
    if not class_counts:
        raise ConfigError(
            "baseline.anchors = true needs the server to know the classes of each client's images, "
            "and it was told of none: set class_counts, or use false"
        )
    if len(class_counts) < experts:
        raise ConfigError(
            f"baseline.anchors = true needs a client for each expert, and baseline.experts = "
            f"{experts} is above {len(class_counts)}, the number of clients; use fewer experts, or "
            "false"
        )
    clients = sorted(class_counts)
    rows = [_counts(client, class_counts[client]) for client in clients]
    for client, row in zip(clients, rows, strict=True):
        if len(row) != len(rows[0]):
            raise ConfigError(
                f"class_counts of client {client} are of {len(row)} classes, those of client "
                f"{clients[0]} of {len(rows[0])}; allowed: the same classes everywhere"
            )
    counts = np.stack(rows)
    shares = counts / counts.sum(axis=1, keepdims=True)
    chosen = [int(shares.max(axis=1).argmax())]
    while len(chosen) < experts:
        far = np.abs(shares[:, None] - shares[chosen]).sum(axis=2).min(axis=1)
        far[chosen] = -1
        chosen.append(int(far.argmax()))
    return [clients[at] for at in chosen]


def _counts(client: int, told: Sequence[int]) -> np.ndarray:
    """A client's images of each class, if these are such numbers."""
    try:
        found = np.asarray(told, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    fits = found.ndim == 1 and np.isfinite(found).all() and (found >= 0).all()
    if not (fits and found.sum() > 0):
        raise ConfigError(
            f"class_counts of client {client} are {told}; allowed: 0 or more images of each class, "
            "in sum 1 or more"
        )
    return found


class _FedJETs(Baseline):
    name = "fedjets"
    gated = True

    def strategy(self, config: Config, **options: Unpack[StreamingOptions]) -> PartialExperts:
        settings = config.baseline
        return ChosenExperts(
            self.experts(config), settings.held, anchors=settings.anchors, **options
        )

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        import torch
        from torch.nn import functional as F

        from nmoe_flower.baselines.network import cross_entropy

        network, anchor = member.network, member.told.get(BaselineKey.ANCHOR)
        network.hold(member.told[FeedbackKey.EXPERTS], gate=False)
        rows = [network.gate[name] for name in network.expert]

        def loss(images: "Tensor", labels: "Tensor", _: "np.ndarray") -> "Tensor":
            latents, logits = network.both(images)
            read = latents.detach().float()
            scores = torch.cat([row(read) for row in rows], dim=1)
            answered = mixed_logits(scores, logits)[:, None]
            total = cross_entropy(answered, labels).sum(dim=1).mean()
            if anchor is None or len(network.gate) == 1:
                return total
            own = torch.full_like(labels, int(anchor))
            return total + F.cross_entropy(network.scores(read), own)

        found = member.steps(network, loss)
        shares = member.scores(member.latents(member.training)).softmax(dim=1).mean(dim=0)
        return {"loss": found, BaselineKey.USAGE: shares.clamp_max(1.0).tolist()}

    def answers(self, member: "Member", *, final: bool) -> Answers:
        import torch

        def top_1(portion: "Portion") -> "Tensor":
            latents, logits = member.outputs(portion)
            best = member.scores(latents).argmax(dim=1)
            return logits[torch.arange(len(best)), best].softmax(dim=1)

        found: Answers = {self.name: top_1}
        return {**found, **ungated(member)} if final else found


FEDJETS = _FedJETs()
