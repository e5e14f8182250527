"""pFedMoAP: a head of one's own beside the nearest heads of others, on frozen features.

Luo et al. 2025, arXiv:2410.10114, on prompts of CLIP. Here a prompt is a linear head on the latents
of a given extractor, and what CLIP makes of the prompt for class c is the head's row c. The server
keeps a pool: the last head of every client. In a round client i

1. starts from the mean of the heads of the round before, weighted by samples (which is FedAvg's);
2. receives, if it has a head in the pool, the ``baseline.experts`` - 1 heads nearest to it in L2,
   which stay as they are;
3. trains its head, and from its second round on a gate of its own: for class c, attention over row
   c of all heads, with the latents as the query. It answers with
   sum_k a_kc(x) logit_kc(x) + 0.5 own logit_c(x).

A client must send its head alone, ``expert.0.*``, and ``num-examples``; the heads of others, which
it gets as ``peer.<j>.expert.0.*``, are refused. It is tested with its last head, gate and
neighbours.

As in the authors' release: 8 parts of attention, at most 128 strided features, scores times 10,
dropout 0.1, half the own logits. Ours, for linear heads: keys are rows, scores are cosines, and
values are logits, without a projection; and one learning rate for head and gate. Their code takes
neighbours' positions for their numbers and works with many clients only; nothing of it is used.
CLIP's numbers are no yardstick here.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Unpack

import numpy as np
from flwr.app import RecordDict

from nmoe_flower import records
from nmoe_flower.baselines.partial import PartialExperts
from nmoe_flower.baselines.system import Answers, Baseline
from nmoe_flower.config import Config
from nmoe_flower.nearest import topk
from nmoe_flower.strategies import StreamingOptions, Usable, require_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nmoe_flower.baselines.member import Member
    from nmoe_flower.baselines.network import ExpertNetwork
    from nmoe_flower.data import Portion

__all__ = ["PFEDMOAP", "PeerHeads", "PooledHeads", "attended"]

_PEER = "peer."
_HEAD, _GATE, _PEERS = "head.", "gate.", "peers."  # at home
_PARTS, _FEATURES, _SCALE, _DROPOUT, _OWN = 8, 128, 10.0, 0.1, 0.5


class PooledHeads(PartialExperts):
    """FedAvg of heads; each client also gets the nearest heads of others, to read.

    Args:
        neighbours: How many.
        **options: What ``StreamingFedAvg`` and FedAvg take.

    Attributes:
        pool: By client: its last head.
    """

    def __init__(self, neighbours: int, **options: Unpack[StreamingOptions]) -> None:
        super().__init__(1, masses=False, **options)
        self.neighbours = require_whole("neighbours", neighbours)
        self.pool: dict[int, dict[str, np.ndarray]] = {}
        self._near: dict[int, list[int]] = {}  # by client of this round

    def assign(self, clients: Sequence[int], server_round: int) -> Mapping[int, Sequence[int]]:
        """The one head that all start from; whose heads are sent with it is settled here."""
        self._near = self.nearest(clients)
        return super().assign(clients, server_round)

    def nearest(self, clients: Iterable[int]) -> dict[int, list[int]]:
        """By client: those whose heads are nearest, the nearest first, of equals the lower number.

        Args:
            clients: Who asks; who has no head yet is left out.
        """
        ids = sorted(self.pool)
        asking = [client for client in clients if client in self.pool]
        if not asking:
            return {}
        size = sum(value.size for value in self.pool[ids[0]].values())
        rows = np.empty((len(ids), size + 1), np.float32)
        heads = rows[:, :-1]
        for head, client in zip(heads, ids, strict=True):
            head[:] = _flat(self.pool[client])
        # A power of two is exact, and keeps the squares of huge weights finite.
        np.ldexp(heads, -np.frexp(np.abs(heads).max())[1], out=heads)
        heads -= heads.mean(axis=0)  # or what all have in common would round off what they differ
        rows[:, -1] = -np.einsum("ij,ij->i", heads, heads) / 2
        # h' h - |h|^2 / 2 is the larger the nearer h is to h', and largest for h' itself.
        place = {client: at for at, client in enumerate(ids)}
        asked = rows[[place[client] for client in asking]]
        asked[:, -1] = 1
        found, _ = topk(asked, rows, min(self.neighbours + 1, len(ids)))
        return {
            client: [ids[at] for at in row if ids[at] != client][: self.neighbours]
            for client, row in zip(asking, found.tolist(), strict=True)
        }

    def beside(self, client: int) -> dict[str, np.ndarray]:
        """The nearest heads."""
        return {
            f"{_PEER}{at}.{name}": value
            for at, other in enumerate(self._near.get(client, ()))
            for name, value in self.pool[other].items()
        }

    def accept(self, client: int, content: RecordDict, usable: Usable) -> None:
        """Take a head for the pool."""
        self._found[client] = {name: value.copy() for name, value in usable.arrays.items()}

    def learn(self) -> None:
        """Pool the heads."""
        for client, head in self._found.items():
            self.pool[client] = {**self._whole, **head}

    def state(self) -> dict[str, np.ndarray]:
        """The pool."""
        return {f"{c}/{name}": v for c, head in self.pool.items() for name, v in head.items()}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""
        self.pool = {
            int(client): {name: np.array(value) for name, value in head.items()}
            for client, head in records.by_owner(arrays).items()
        }


class _PFedMoAP(Baseline):
    name = "pfedmoap"

    def server_copies(self, config: Config) -> int:
        """The pool, a matrix of it in which the nearest are sought, and those who ask."""
        return 3 * config.data.num_clients

    def strategy(self, config: Config, **options: Unpack[StreamingOptions]) -> PartialExperts:
        return PooledHeads(config.baseline.experts - 1, **options)

    def network(
        self,
        config: Config,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        latent_dim: int = 0,
    ) -> "ExpertNetwork":
        """One linear head, whatever the shape of other systems' heads."""
        flat = {**config.flat(), "extractor.head": "linear", "expert.init": "scratch"}
        linear = Config.parse({**flat, "run.system": "fedavg"})
        return super().network(linear, image_shape, num_classes, latent_dim=latent_dim)

    def at_home(self, network: "ExpertNetwork", image_shape: tuple[int, int, int]) -> int:
        parts = (network.expert["0"], _fresh_gate(network.latent_dim))
        return sum(p.numel() for part in parts for p in part.parameters())

    def train(self, member: "Member") -> dict[str, float | list[float]]:
        from torch import nn
        from torch.nn.functional import cross_entropy

        from nmoe_flower.training import seeded

        head = member.network.expert["0"]
        peers, kept = PeerHeads.of(member.beside, member.device.torch_device), member.kept()
        gate = None if peers is None else _gate(member, kept)
        learners = nn.ModuleList([head] if gate is None else [head, gate])
        others, settings = None, member.settings
        if peers is not None and len(member.labels) <= settings.local_steps * settings.batch_size:
            # What they say stays as it is, and every image is asked about at least once.
            others = peers.logits(member.latents(member.training).to(member.device.torch_device))

        def loss(latents: "Tensor", labels: "Tensor", chosen: "np.ndarray") -> "Tensor":
            said = None if others is None else others[chosen]
            return cross_entropy(attended(head, peers, gate, latents.float(), others=said), labels)

        with seeded(member.device.seed("pfedmoap-dropout", member.server_round)):
            found = member.steps(learners, loss)
        home = dict(head.state_dict(prefix=_HEAD))
        if gate is not None and peers is not None:
            home |= gate.state_dict(prefix=_GATE) | peers.kept()
        member.keep(home)
        return {"loss": found}

    def answers(self, member: "Member", *, final: bool) -> Answers:
        import torch

        head, kept = member.network.expert["0"], member.kept()
        gate, peers, place = None, None, member.device.torch_device
        if kept:
            records.load_into(head.state_dict(), records.part_of(kept, _HEAD))
        if parts := records.part_of(kept, _PEERS):
            gate = _gate(member, kept).eval()
            peers = PeerHeads(**{n: torch.from_numpy(v.copy()).to(place) for n, v in parts.items()})

        def answer(portion: "Portion") -> "Tensor":
            latents = member.latents(portion).to(place)
            return attended(head, peers, gate, latents).softmax(dim=1).cpu()

        return {self.name: answer}


class PeerHeads(NamedTuple):
    """The linear heads of K - 1 others, which stay as they are.

    Attributes:
        weights: Rows of the heads, one for each class, [K - 1, C, D].
        biases: Biases of the heads, [K - 1, C].
    """

    weights: "Tensor"
    biases: "Tensor"

    @classmethod
    def of(cls, beside: Mapping[str, np.ndarray], place: "torch.device") -> "PeerHeads | None":
        """The heads received, there where a network trains; None: there are none."""
        import torch

        heads: dict[str, dict[int, np.ndarray]] = {}
        for name, value in beside.items():
            heads.setdefault(name.split(".")[1], {})[value.ndim] = value
        if not heads:
            return None
        stacked = (np.stack([parts[ndim] for parts in heads.values()]) for ndim in (2, 1))
        return cls(*(torch.from_numpy(value).to(place) for value in stacked))

    def logits(self, latents: "Tensor") -> "Tensor":
        """What they say to latents [B, D]: [B, K - 1, C]."""
        from torch.nn.functional import linear

        said = linear(latents, self.weights.flatten(0, 1), self.biases.flatten())
        return said.view(len(latents), *self.biases.shape)

    def kept(self) -> dict[str, "Tensor"]:
        """What stays at home, by name."""
        return {f"{_PEERS}{name}": value for name, value in self._asdict().items()}


def attended(
    head: "nn.Module",
    peers: PeerHeads | None,
    gate: "nn.Module | None",
    latents: "Tensor",
    *,
    others: "Tensor | None" = None,
    own_weight: float = _OWN,
) -> "Tensor":
    """The logits of a head among others, [B, C].

    Args:
        head: The own head, linear.
        peers: The other heads; None: there are none.
        gate: From latents [B, D] and rows [K, C, D] to weights [B, C, K]; None: the head alone.
        latents: Latents of images, [B, D].
        others: What the other heads say to these latents, if that is known, [B, K - 1, C].
        own_weight: What the own logits are multiplied by before they are added to the mixture.
    """
    import torch

    own: Tensor = head(latents)
    if gate is None or peers is None:
        return own
    said = peers.logits(latents) if others is None else others
    logits = torch.cat([own[:, None], said], dim=1)
    mine = next(p for p in head.parameters() if p.ndim > 1)
    share = gate(latents, torch.cat([mine[None], peers.weights]))
    mixed: Tensor = (share * logits.transpose(1, 2)).sum(dim=2)
    return mixed + own_weight * own


def _gate(member: "Member", kept: Mapping[str, np.ndarray]) -> "nn.Module":
    """A client's own gate, as it was kept or fresh."""
    from nmoe_flower.models import copy_of
    from nmoe_flower.training import seeded

    if records.part_of(kept, _PEERS):
        gate = copy_of(_some_gate(member.network.latent_dim))
        records.load_into(gate.state_dict(), records.part_of(kept, _GATE))
    else:
        with seeded(member.device.seed("pfedmoap-gate")):
            gate = _fresh_gate(member.network.latent_dim)
    return gate.to(member.device.torch_device)


@lru_cache(maxsize=1)  # its weights, drawn in vain, would take as long as some steps
def _some_gate(latent_dim: int) -> "nn.Module":
    from nmoe_flower.training import seeded

    with seeded(0):  # whoever draws next draws what it would have drawn
        return _fresh_gate(latent_dim)


def _fresh_gate(latent_dim: int) -> "nn.Module":
    from nmoe_flower.baselines.row_attention import RowAttention

    return RowAttention(
        latent_dim, features=_FEATURES, parts=_PARTS, scale=_SCALE, dropout=_DROPOUT
    )


def _flat(head: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([head[name].ravel() for name in sorted(head)])


PFEDMOAP = _PFedMoAP()
