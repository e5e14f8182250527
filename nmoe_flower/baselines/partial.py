"""FedAvg of partial experts: every client trains some of the experts, and replies hold just those.

Arrays named ``expert.<k>.*`` and ``gate.<k>.*`` are expert k's, the latter its row of a gate
(unless all share the rows); all others are shared. Each client is sent the shared arrays and those
of its experts. Each part is averaged over those who sent it; what nobody sent stays as it is.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.records import BaselineKey, FeedbackKey
from nmoe_flower.strategies import (
    StreamingFedAvg,
    StreamingOptions,
    Usable,
    WeightedMean,
    parcel,
    read_reply,
    require_whole,
)

__all__ = [
    "PartialExperts",
    "expert_of",
    "has_clients_parts",
    "kept_scores",
    "name_at",
    "of_client",
    "scores_in",
]

_OWNED = re.compile(r"(?:expert|gate)\.(\d+)\.")
_CLIENT = "client."
_ROUNDING = 1e-3  # of sums over float32


class PartialExperts(StreamingFedAvg):
    """FedAvg whose clients hold some of the experts each.

    The client must send any of the arrays it was sent, ``num-examples`` and, where experts are not
    to be weighed by that, ``masses``: a weight for each of all E experts, at least 0, which share
    its examples out: their sum is ``num-examples`` at most, or a client could weigh its part as it
    likes. A reply with arrays that this client was not sent, or other shapes, or a mass that is
    NaN, negative or of an expert it does not hold, or with more masses than examples, or with
    masses that should not be there or without those that should, is dropped and named.

    Args:
        experts: E, how many experts there are.
        masses: Whether every reply must hold ``masses``; False: none may; None: each as it likes.
        **options: What ``StreamingFedAvg`` and FedAvg take.

    Attributes:
        class_counts: By client: its training images of each class. Empty, unless the system says
            in its row of `nmoe_flower.catalogue.BASELINES` that the server reads them.
        rows_are_shared: Whether an expert's row of the gate is everybody's, and not its own.
    """

    purpose = "baseline"
    rows_are_shared: ClassVar[bool] = False

    def __init__(
        self,
        experts: int,
        *,
        masses: bool | None = None,
        **options: Unpack[StreamingOptions],
    ) -> None:
        super().__init__(**options)
        self.experts = require_whole("experts", experts, 1)
        self.masses = masses
        self._whole: dict[str, np.ndarray] = {}
        self._given: dict[int, dict[str, np.ndarray]] = {}
        self._masses: np.ndarray | None = None  # of the reply just read
        self._found: dict[int, Any] = {}  # by client: what `accept` took of a round's replies
        self.class_counts: Mapping[int, Sequence[int]] = {}

    def held_at_once(self, held: int, *, chosen_by_gate: bool = False) -> int:
        """How many experts a client trains, if that is a number from 1 to E.

        Args:
            held: That number.
            chosen_by_gate: A client's gate over those it trains chooses what it trains next: 1 of
                several teaches it nothing.

        Raises:
            ConfigError: It is none.
        """
        if require_whole("held", held, 1) > self.experts:
            raise ConfigError(f"held is {held}, above experts = {self.experts}")
        if chosen_by_gate and held == 1 < self.experts:
            raise ConfigError(
                "held = 1 leaves the gate nothing to learn its choice from: the softmax over one "
                f"expert is 1; allowed: 2 to {self.experts}"
            )
        return held

    def assigned(self, client: int, server_round: int) -> Sequence[int]:
        """The experts that a client trains in a round: all of them, if no system says otherwise."""
        return range(self.experts)

    def assign(self, clients: Sequence[int], server_round: int) -> Mapping[int, Sequence[int]]:
        """The experts that each client of a round's cohort trains; who has none is not asked."""
        return {client: self.assigned(client, server_round) for client in clients}

    def owner(self, name: str) -> int | None:
        """The expert that an array belongs to, and whose mass it is weighed by; None: all share."""
        shared = self.rows_are_shared and name.startswith("gate.")
        return None if shared else expert_of(name)

    def part(
        self, arrays: Mapping[str, np.ndarray], client: int, held: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """What a client is sent of the server's arrays: the shared ones, and its experts'."""
        return {name: value for name, value in arrays.items() if self.owner(name) in (None, *held)}

    def words(self, client: int, held: Sequence[int]) -> dict[str, Any]:
        """What a client is told with its part."""
        return {FeedbackKey.EXPERTS: list(held)}

    def beside(self, client: int) -> dict[str, np.ndarray]:
        """What else a client is sent, to read: in a reply these arrays are refused."""
        return {}

    def scores_of(self, usable: Usable, key: str, *, most: float | None = None) -> np.ndarray:
        """A number for each of all E experts from the metrics of a reply.

        Args:
            usable: The reply.
            key: The metric.
            most: The greatest value allowed; None: any.

        Raises:
            ReplyError: They are missing, or not E finite numbers from 0 to ``most``.
        """
        if key not in usable.metrics:
            raise ReplyError(f"metric {key!r} is missing")
        try:
            found = np.atleast_1d(np.asarray(usable.metrics[key], np.float64))
        except OverflowError:
            raise ReplyError(f"{key} has an integer that no float holds") from None
        fits = len(found) == self.experts and np.isfinite(found).all() and (found >= 0).all()
        if not fits or (most is not None and (found > most).any()):
            above = "" if most is None else f" and at most {most:g}"
            raise ReplyError(
                f"{key} are {found.tolist()}; allowed: {self.experts} finite numbers of at least "
                f"0{above}"
            )
        return found

    def shares_of(self, usable: Usable, key: str) -> np.ndarray:
        """How a client shares its images out among all E experts, from the metrics of a reply.

        Args:
            usable: The reply.
            key: The metric.

        Raises:
            ReplyError: They are missing, or not E numbers from 0 to 1 in sum 1, but for 1e-3.
        """
        found = self.scores_of(usable, key, most=1.0)
        if abs(found.sum() - 1) > _ROUNDING:
            raise ReplyError(f"{key} are {found.tolist()}, in sum {found.sum():g}; allowed: 1")
        return found

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each client of the cohort the shared arrays and its experts."""
        nodes = self.cohort(grid, server_round, self.fraction_train, self.min_train_nodes)
        told = self.round_config(server_round, config)
        encoded = records.Encoded(arrays)
        self._whole = self.sent = encoded.arrays
        self._given, self._found, messages = {}, {}, []
        self._begin([], RecordDict())
        clients = {self.partitions.get(node, node): node for node in nodes}
        chosen = self.assign(list(clients), server_round)
        for client, node in clients.items():
            held = self._known(client, chosen)
            if not held:
                continue  # bounds may leave a client without one: it sits this round out
            self._given[client] = self.part(self._whole, client, held)
            words = {**told, **self.words(client, held)}
            sent = encoded.record({**self._given[client], **self.beside(client)})
            message = parcel(self, node, sent, words)
            self.last_exchange.bytes_down += records.array_bytes(message.content)
            messages.append(message)
        return messages

    def _known(self, client: int, chosen: Mapping[int, Sequence[int]]) -> list[int]:
        """The experts that a client was assigned.

        Raises:
            ConfigError: ``assign`` says nothing of the client, or names an expert there is not.
        """
        if client not in chosen:
            raise ConfigError(f"{type(self).__name__}.assign says nothing of client {client}")
        held = [int(expert) for expert in chosen[client]]
        if odd := [expert for expert in held if not 0 <= expert < self.experts]:
            raise ConfigError(
                f"{type(self).__name__}.assign gives client {client} expert {odd[0]}; allowed: "
                f"0 to {self.experts - 1}"
            )
        return held

    def read(self, partition: int, reply: Message, *, arrays: bool) -> Usable:
        """Check a reply: any of the arrays that this client was sent.

        Raises:
            ReplyError: It cannot be used; the reason is its text.
        """
        if not arrays or reply.has_error():
            return super().read(partition, reply, arrays=False)
        given = self._given.get(partition, {})
        usable = read_reply(
            reply,
            weighted_by_key=self.weighted_by_key,
            arrayrecord_key=self.arrayrecord_key,
            like=given,
            partly=True,
        )
        self._masses = self._read_masses(usable, given)
        self.accept(partition, reply.content, usable)
        return usable

    def _read_masses(self, usable: Usable, given: Mapping[str, np.ndarray]) -> np.ndarray | None:
        told = BaselineKey.MASSES in usable.metrics
        if told and self.masses is False:
            raise ReplyError(f"metric {BaselineKey.MASSES!r} was not asked for")
        if not (told or self.masses):
            return None
        masses = self.scores_of(usable, BaselineKey.MASSES)
        held = {self.owner(name) for name in given}
        if odd := [k for k in np.flatnonzero(masses).tolist() if k not in held]:
            raise ReplyError(f"a mass for expert {odd[0]}, which this client was not assigned")
        if masses.sum() > usable.weight * (1 + _ROUNDING):
            raise ReplyError(
                f"masses are {masses.tolist()}, in sum {masses.sum():g}; allowed: at most "
                f"{self.weighted_by_key!r}, {usable.weight:g}"
            )
        return masses

    def mass(self, expert: int | None, usable: Usable) -> float:
        """The weight of what the reply just read holds of an expert, or of what all share."""
        if expert is None or self._masses is None:
            return usable.weight
        return float(self._masses[expert])

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average each part over those who sent it, as replies arrive; see `averaged`."""
        found, metrics = self.averaged(server_round, replies)
        self.learn()
        return records.from_numpy(found), metrics

    def learn(self) -> None:
        """Take in what `accept` took of a round's replies: its average stands."""

    def averaged(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[Mapping[str, np.ndarray], MetricRecord | None]:
        """The server's arrays after a round, and the metrics of it.

        Raises:
            RoundError: Fewer than ``min_replies`` replies could be used, none has examples, or the
                new arrays are not finite.
        """
        means: dict[str, WeightedMean] = {}
        measured = []
        for usable in self.usable(replies, arrays=True):
            for name, value in usable.arrays.items():
                if mass := self.mass(self.owner(name), usable):
                    means.setdefault(name, WeightedMean()).add({name: value}, mass)
            measured.append(self.measured(usable))
        self.enough(server_round, measured)

        def update() -> dict[str, np.ndarray]:
            found = dict(self._whole)
            for mean in means.values():
                found |= mean.result()
            return found

        updated = self.finite(server_round, update)
        return updated, self.average_metrics(server_round, measured)


def expert_of(name: str) -> int | None:
    """The expert an array belongs to; None if it is shared.

    >>> expert_of("expert.12.weight"), expert_of("gate.3.weight"), expert_of("gate.weight")
    (12, 3, None)
    """
    owned = _OWNED.match(name)
    return int(owned[1]) if owned else None


def kept_scores(scores: Mapping[int, np.ndarray], experts: int) -> dict[str, np.ndarray]:
    """What a strategy's state holds of numbers by client and expert.

    Args:
        scores: By client: a number for each expert, [E].
        experts: How many experts there are, E.
    """
    clients = sorted(scores)
    return {
        "clients": np.array(clients, np.int64),
        "scores": np.array([scores[client] for client in clients]).reshape(-1, experts),
    }


def scores_in(state: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """What ``kept_scores`` put into a state.

    >>> scores_in(kept_scores({7: np.array([0.5, 1.0])}, 2))[7].tolist()
    [0.5, 1.0]
    """
    return dict(zip(state["clients"].tolist(), np.array(state["scores"]), strict=True))


def name_at(client: int, name: str) -> str:
    """What the server calls an array that one client alone is to have, in place of all others'."""
    return f"{_CLIENT}{client}.{name}"


def has_clients_parts(arrays: Iterable[str]) -> bool:
    """Whether some of the server's arrays are for one client alone."""
    return any(name.startswith(_CLIENT) for name in arrays)


def of_client(arrays: Mapping[str, np.ndarray], client: int) -> dict[str, np.ndarray]:
    """What a client is to have of the server's arrays: the common ones, or its own of that name.

    >>> of_client({"a": 1, "b": 2, "client.7.b": 3, "client.8.b": 4}, 7)
    {'a': 1, 'b': 3}
    """
    found = {name: value for name, value in arrays.items() if not name.startswith(_CLIENT)}
    own = name_at(client, "")
    return found | {n.removeprefix(own): v for n, v in arrays.items() if n.startswith(own)}
