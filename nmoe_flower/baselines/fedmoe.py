"""FedMoE: each client holds the few experts that it uses most, and trades them with its like.

Mei et al. 2024, arXiv:2408.11304, on Switch Transformers; here on heads under one trunk. A mixture
of E experts has a gate with a row for each.

1. Warm-up: a client trains ``baseline.held`` = k experts in turn, all of them once, so that no
   frequency mirrors how the experts were drawn.
2. Then it holds the k experts it used most. Use is mean_x p(e|x).
3. Every 5 rounds of its own it gives up the one it uses least, and takes the one that the client
   nearest by the cosine of all uses uses most, of those that it does not hold.

The server averages each expert and its row over those who hold them; one owner's is copied; nobody
trained it: unchanged. A client answers with its own part.

A client must send ``trunk.*``, ``expert.<k>.*`` and ``gate.<k>.*`` of the experts it holds,
``num-examples`` and ``usage``, of each of all E experts.

Ours: rounds in turn, the number 5, and that use is of the training images, without augmentation, in
the rounds in which a client held the expert. It is a share among the k held then: the uses that are
compared come of rounds with different partners. The paper searches within a memory; here k is
given. Simplified here: an expert is a whole head, and a client mixes the logits of those it holds
by a dense softmax; print has sparse routers inside MoE layers. With ``baseline.size = net`` experts
are whole networks, and the gate reads raw pixels. No code of the authors was found.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np
from flwr.app import RecordDict

from nmoe_flower.baselines.partial import PartialExperts
from nmoe_flower.baselines.submixture import SubMixture
from nmoe_flower.config import Config
from nmoe_flower.errors import ReplyError
from nmoe_flower.records import BaselineKey
from nmoe_flower.strategies import StreamingOptions, Usable

if TYPE_CHECKING:
    from nmoe_flower.baselines.member import Member

__all__ = ["FEDMOE", "UsedExperts"]

_TRADE_EVERY = 5  # rounds of a client


class UsedExperts(PartialExperts):
    """The experts that each client uses most.

    The client must send, beside its arrays, ``usage``: the share of its images at each of all E
    experts, in sum 1, 0 where it does not hold them.

    Args:
        experts: How many there are, E.
        held: How many experts a client trains, k; of several at least 2.
        **options: What ``StreamingFedAvg`` and FedAvg take.

    Attributes:
        used: By client: the last known use of every expert, float [E].
    """

    def __init__(self, experts: int, held: int, **options: Unpack[StreamingOptions]) -> None:
        super().__init__(experts, masses=False, **options)
        self.held = self.held_at_once(held, chosen_by_gate=True)
        self.used: dict[int, np.ndarray] = {}
        self._rounds: dict[int, int] = {}  # that a client took part in
        self._now: dict[int, list[int]] = {}
        self._asked: dict[int, list[int]] = {}

    def assign(self, clients: Sequence[int], server_round: int) -> Mapping[int, Sequence[int]]:
        """In turn, then by use; with a trade now and then."""
        self._asked = {client: self._part(client) for client in clients}
        return self._asked

    def _part(self, client: int) -> list[int]:
        rounds = self._rounds.get(client, 0)
        warm_up = -(-self.experts // self.held)
        if rounds < warm_up:
            first = client + rounds * self.held
            return sorted((first + at) % self.experts for at in range(self.held))
        used = self.used[client]
        if rounds == warm_up:
            return sorted(np.argsort(-used, kind="stable")[: self.held].tolist())
        held = self._now[client]
        if (rounds - warm_up) % _TRADE_EVERY or len(held) == self.experts:
            return held
        wanted = self._of_nearest(client)
        offered = [e for e in range(self.experts) if e not in held and wanted[e] > 0]
        if not offered:
            return held
        least = min(held, key=lambda expert: (used[expert], expert))
        best = max(offered, key=lambda expert: (wanted[expert], -expert))
        return sorted({best, *held} - {least})

    def _of_nearest(self, client: int) -> np.ndarray:
        """What the client of the nearest use uses; nothing, if there is no other."""
        mine = self.used[client]
        others = sorted(self.used.keys() - {client})
        if not others:
            return np.zeros(self.experts)

        def cosine(other: int) -> float:
            norms = np.linalg.norm(mine) * np.linalg.norm(self.used[other])
            return float(mine @ self.used[other] / norms) if norms else 0.0

        return self.used[max(others, key=lambda other: (cosine(other), -other))]

    def accept(self, client: int, content: RecordDict, usable: Usable) -> None:
        """Take the use of experts.

        Raises:
            ReplyError: It is missing, or no shares in sum 1, or of experts that it does not hold.
        """
        used = self.shares_of(usable, BaselineKey.USAGE)
        if odd := sorted(
            set(np.flatnonzero(used).tolist()).difference(self._asked.get(client, ()))
        ):
            raise ReplyError(f"a use of expert {odd[0]}, which this client was not assigned")
        self._found[client] = used

    def learn(self) -> None:
        """Note who used what."""
        for client, used in self._found.items():
            known = self.used.get(client, np.zeros(self.experts)).copy()
            self._now[client] = held = self._asked[client]
            known[held] = used[held]
            self.used[client] = known
            self._rounds[client] = self._rounds.get(client, 0) + 1

    def state(self) -> dict[str, np.ndarray]:
        """What every client met uses, how often it took part, and what it holds."""
        clients = sorted(self.used)
        return {
            "clients": np.array(clients, np.int64),
            "used": np.array([self.used[c] for c in clients]).reshape(-1, self.experts),
            "rounds": np.array([self._rounds[c] for c in clients], np.int64),
            "held": np.array([self._now[c] for c in clients], np.int64).reshape(-1, self.held),
        }

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""
        clients = arrays["clients"].tolist()
        self.used = dict(zip(clients, np.array(arrays["used"]), strict=True))
        self._rounds = dict(zip(clients, arrays["rounds"].tolist(), strict=True))
        self._now = dict(zip(clients, arrays["held"].tolist(), strict=True))


class _FedMoE(SubMixture):
    name = "fedmoe"

    def strategy(self, config: Config, **options: Unpack[StreamingOptions]) -> PartialExperts:
        return UsedExperts(self.experts(config), config.baseline.held, **options)

    def measures(self, member: "Member") -> dict[str, float | list[float]]:
        weights, _ = self.usage(member)
        return {BaselineKey.USAGE: member.by_expert(weights.mean(dim=0).clamp_max(1.0))}


FEDMOE = _FedMoE()
