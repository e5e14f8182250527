"""FLEX-MoE: the server solves for who trains which experts, so that all are trained alike.

Zhang et al. 2025, arXiv:2512.23070. The server keeps how well expert e does at client c, Q(c, e).
In a round:

1. It chooses x(c, e) in {0, 1}: max sum_ce (Q(c, e) + D_e) x(c, e), every client ``baseline.held``
   experts at most, every expert ``baseline.lo`` to ``baseline.hi`` clients. D_e is what expert e
   lacked in rounds before, in mean loads.
2. Each client trains trunk, its experts and a gate that stays at home. It returns for each expert
   u_ce = sum_x p(e|x) and the accuracy s_ce on images weighed by p(e|x).
3. Q(c, e) <- (1 - b) Q(c, e) + b s_ce for the experts trained; the others stay as they are. Expert
   e is averaged with the weights u_ce, the trunk by samples.

A client must send ``trunk.*``, ``expert.<e>.*`` of the experts it trained, ``num-examples``, and
``masses``, u_ce, and ``expert-accuracies``, s_ce, of each of all E experts.

Of the two scores that print names, s is the accuracy, not exp(-alpha loss). Not found in print,
and so ours: b = 0.3; Q starts at 1, so that everything is tried; both bounds are an even share
unless set, but the lower one is 0 in rounds whose clients have fewer places than there are experts;
usage and accuracy are of the training images, without augmentation. Both are measured on images
that the client's own gate sends: they flatter what a gate already prefers.

Simplified here: an expert is a whole head, and a client mixes the logits of those it holds by a
dense softmax; print has sparse routers inside MoE layers. With ``baseline.size = net`` experts are
whole networks, and the gate reads raw pixels. No code of the authors was found.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np
from flwr.app import RecordDict

from nmoe_flower import records
from nmoe_flower.alignment import DeficitQueue, InfeasibleBoundsError, align
from nmoe_flower.baselines.partial import PartialExperts, kept_scores, scores_in
from nmoe_flower.baselines.submixture import SubMixture
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.records import BaselineKey
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.strategies import StreamingOptions, Usable, require_whole

if TYPE_CHECKING:
    from nmoe_flower.baselines.member import Member

__all__ = ["FLEX_MOE", "FlexExperts"]

log = logging.getLogger(__name__)

_RATE = 0.3  # b


class FlexExperts(PartialExperts):
    """Experts assigned by a program, within bounds on how many clients train each.

    The client must send, beside its arrays, ``masses`` and ``expert-accuracies``: the usage and the
    accuracy of each of all E experts, 0 where it does not hold them. Only experts of a mass above 0
    count as trained; a mass whose arrays did not come is refused.

    Args:
        experts: How many there are, E.
        held: How many experts a client trains at most.
        lo: Least clients of each expert in a round, for all or for each; None: an even share, or 0
            where a round's clients have fewer places than there are experts (a warning says so
            once).
        hi: Most clients of each expert in a round, at least 1; None: an even share.
        **options: What ``StreamingFedAvg`` and FedAvg take.

    Attributes:
        scores: By client: Q, float [E].
    """

    def __init__(
        self,
        experts: int,
        held: int,
        *,
        lo: int | Sequence[int] | None = None,
        hi: int | Sequence[int] | None = None,
        **options: Unpack[StreamingOptions],
    ) -> None:
        super().__init__(experts, masses=True, **options)
        self.held = self.held_at_once(held)
        self.lo, self.hi = _bound("lo", lo, experts, 0), _bound("hi", hi, experts, 1)
        if self.lo is not None and self.hi is not None and np.any(np.greater(self.lo, self.hi)):
            raise ConfigError(f"lo is {self.lo}, above hi = {self.hi}")
        self.scores: dict[int, np.ndarray] = {}
        self._deficits = DeficitQueue(experts)
        self._warned = False

    def assign(self, clients: Sequence[int], server_round: int) -> Mapping[int, Sequence[int]]:
        """Solve the program of a round.

        Raises:
            ConfigError: No assignment meets the bounds; experts and clients are named, and bounds
                that can be met.
        """
        known = [self.scores.get(client, np.ones(self.experts)) for client in clients]
        lo, places = self.lo, len(clients) * self.held
        if lo is None and places < self.experts:
            lo = 0
            if not self._warned:
                log.warning(
                    "round %d: %d clients x held = %d are %d places for %d experts; no expert has "
                    "a least load in such rounds, lo is 0 (said once)",
                    server_round, len(clients), self.held, places, self.experts,
                )  # fmt: skip
            self._warned = True
        try:
            chosen = align(
                np.stack(known) + self._deficits.relative,
                [self.held] * len(clients),
                policy="joint",
                rng=numpy_stream(self.seed, "flex-moe", server_round),
                clients=clients,
                lo=lo,
                hi=self.hi,
            )
        except InfeasibleBoundsError as error:
            raise error.named(
                [f"expert {expert}" for expert in range(self.experts)],
                [f"client {client}" for client in clients],
            ) from None
        return {
            client: np.flatnonzero(row).tolist()
            for client, row in zip(clients, chosen, strict=True)
        }

    def accept(self, client: int, content: RecordDict, usable: Usable) -> None:
        """Take usage and accuracies.

        Raises:
            ReplyError: One is missing, or no such number, or a mass comes without its expert.
        """
        right = self.scores_of(usable, BaselineKey.ACCURACIES, most=1.0)
        used = [] if self._masses is None else np.flatnonzero(self._masses).tolist()
        for name in sorted(self._given.get(client, {}).keys() - usable.arrays.keys()):
            if (expert := self.owner(name)) in used:
                raise ReplyError(f"a mass for expert {expert}, whose array {name!r} is missing")
        self._found[client] = used, right

    def learn(self) -> None:
        """Learn who did how well; what nobody sent, or used, has not been trained."""
        loads = np.zeros(self.experts)
        for client, (used, right) in self._found.items():
            known = self.scores.get(client, np.ones(self.experts)).copy()
            known[used] = (1 - _RATE) * known[used] + _RATE * right[used]
            self.scores[client] = known
            loads[used] += 1
        self._deficits.update(loads)

    def state(self) -> dict[str, np.ndarray]:
        """The scores of all clients met, and the deficits."""
        return {
            **kept_scores(self.scores, self.experts),
            **{f"deficits/{name}": value for name, value in self._deficits.state().items()},
        }

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""
        self.scores = scores_in(arrays)
        self._deficits.load_state(records.part_of(arrays, "deficits/"))


def _bound(
    name: str, value: int | Sequence[int] | None, experts: int, least: int
) -> int | list[int] | None:
    """A bound on loads, of all experts or of each."""
    if value is None or not isinstance(value, Sequence | np.ndarray):
        return None if value is None else require_whole(name, value, least)
    found = [require_whole(f"{name} of expert {k}", bound) for k, bound in enumerate(value)]
    if len(found) != experts or max(found) < least:
        raise ConfigError(
            f"{name} is {found}; allowed: a number for each of {experts} experts, the largest at "
            f"least {least}"
        )
    return found


class _FlexMoE(SubMixture):
    name = "flex-moe"

    def travels(self, name: str) -> bool:
        return not name.startswith("gate.")

    def strategy(self, config: Config, **options: Unpack[StreamingOptions]) -> PartialExperts:
        lo, hi = (
            None if bound < 0 else bound for bound in (config.baseline.lo, config.baseline.hi)
        )
        return FlexExperts(self.experts(config), config.baseline.held, lo=lo, hi=hi, **options)

    def measures(self, member: "Member") -> dict[str, float | list[float]]:
        weights, right = self.usage(member)
        masses = weights.sum(dim=0)
        accuracies = (weights * right).sum(dim=0) / masses.clamp_min(1e-12)
        return {
            BaselineKey.MASSES: member.by_expert(masses),
            BaselineKey.ACCURACIES: member.by_expert(accuracies.clamp_max(1.0)),
        }


FLEX_MOE = _FlexMoE()
