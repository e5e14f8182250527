"""What each client of a federated mixture is sent, what it says, and how many bytes both are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.alignment import Feedback
from nmoe_flower.errors import ReplyError, RoundError
from nmoe_flower.records import FeedbackKey
from nmoe_flower.strategies.base import StreamingFedAvg
from nmoe_flower.strategies.replies import read_reply

__all__ = ["ClientBytes", "ExpertNames", "parcel", "probed", "read_feedback"]

Floats = npt.NDArray[np.float64]
Arrays = Mapping[str, np.ndarray]
Which = Sequence[int] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class ExpertNames:
    """Which arrays belong to which expert, told by the start of their names.

    Attributes:
        names: Names of the experts, in the order of their ids.
        prefix: Arrays named ``<prefix><name>.<...>`` are the expert's; all others are shared.
    """

    names: tuple[str, ...]
    prefix: str = "experts."

    @classmethod
    def found_in(cls, arrays: Arrays, prefix: str = "experts.") -> Self:
        """The experts of a mixture, in the order of its arrays.

        Raises:
            RoundError: There is none.

        >>> ExpertNames.found_in({"gate.weight": 0, "experts.cats.bias": 0}).names
        ('cats',)
        """
        rest = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
        found = tuple(dict.fromkeys(name.partition(".")[0] for name in rest))
        if not found:
            raise RoundError(f"no array's name starts with {prefix!r}: there are no experts")
        return cls(found, prefix)

    def __len__(self) -> int:
        return len(self.names)

    def named(self, experts: Which) -> list[str]:
        """The names of experts."""
        return [self.names[int(expert)] for expert in experts]

    def owner(self, name: str) -> int | None:
        """The expert an array belongs to; None if it is shared."""
        if not name.startswith(self.prefix):
            return None
        return self.names.index(name.removeprefix(self.prefix).partition(".")[0])

    def subset(self, arrays: Arrays, experts: Which) -> dict[str, np.ndarray]:
        """The shared arrays and those of ``experts``."""
        wanted = {None, *(int(expert) for expert in experts)}
        return {name: value for name, value in arrays.items() if self.owner(name) in wanted}

    def allowance(self, arrays: Arrays, experts: int) -> int:
        """Bytes of the shared arrays and of so many experts: what a client's part may weigh."""
        sizes = dict.fromkeys((None, *range(len(self.names))), 0)
        for name, value in arrays.items():
            sizes[self.owner(name)] += value.nbytes
        shared = sizes.pop(None)
        return shared + experts * max(sizes.values())

    def parts(self, arrays: Arrays) -> dict[int | None, dict[str, np.ndarray]]:
        """Arrays by expert; the shared ones under None."""
        found: dict[int | None, dict[str, np.ndarray]] = {}
        for name, value in arrays.items():
            found.setdefault(self.owner(name), {})[name] = value
        return found


def parcel(
    strategy: StreamingFedAvg,
    node: int,
    arrays: ArrayRecord,
    told: Mapping[str, Any],
    action: str | None = None,
) -> Message:
    """A message to one node."""
    content = RecordDict(
        {
            strategy.arrayrecord_key: arrays,
            strategy.configrecord_key: ConfigRecord(dict(told)),
        }
    )
    return Message(content, node, action or strategy.action or "train")


def probed(
    strategy: StreamingFedAvg, questions: Sequence[Message], grid: Grid
) -> Iterator[tuple[int, list[float], int]]:
    """Ask newcomers for the gate's shares: partition, shares, bytes sent; bad replies are named."""
    if not questions:
        return
    replies = grid.send_and_receive(questions, timeout=strategy.connect_timeout)
    for question, reply in zip(questions, replies, strict=True):
        partition, size = strategy.partition_of(reply), records.array_bytes(question.content)
        try:
            answer = read_reply(
                reply, weighted_by_key=strategy.weighted_by_key, arrayrecord_key=None, like=None
            )
            shares = np.asarray(answer.metrics.get(FeedbackKey.SHARES, ()), dtype=np.float64)
        except (ReplyError, OverflowError) as error:  # the latter: an integer that no float holds
            strategy.last_exchange.fail(partition, f"probe: {error}")
            continue
        yield partition, np.atleast_1d(shares).tolist(), size


def read_feedback(
    client: int,
    metrics: Mapping[str, Any],
    *,
    held: npt.NDArray[np.bool_],
    flops: float = 0.0,
    fastest: float = 1e16,
) -> Feedback:
    """Check and read the metrics of a reply.

    Args:
        client: Number of the client.
        metrics: What it said: ``expert-ids``, ``expert-losses``, ``expert-samples`` and
            ``seconds``; and ``expert-shares``, one per expert of the mixture (all 0 if left out).
        held: What the client was assigned, bool [experts].
        flops: FLOPs of training one sample with one expert, to check the seconds against.
        fastest: FLOP/s no client can have.

    Raises:
        ReplyError: Something is missing, not finite, for an expert never assigned, or impossible.

    >>> said = {"expert-ids": [1], "expert-losses": [0.5], "expert-samples": [8], "seconds": 1.0}
    >>> read_feedback(0, said, held=np.array([False, True])).losses.tolist()
    [0.5]
    """
    ids = _numbers(metrics, FeedbackKey.EXPERTS)
    losses, samples = _numbers(metrics, FeedbackKey.LOSSES), _numbers(metrics, FeedbackKey.SAMPLES)
    shares = (
        _numbers(metrics, FeedbackKey.SHARES)
        if FeedbackKey.SHARES in metrics
        else np.zeros(len(held))
    )
    if not len(ids) == len(losses) == len(samples):
        raise ReplyError(f"{len(ids)} experts, {len(losses)} losses and {len(samples)} samples")
    whole = ids.astype(np.int64)
    strange = (whole != ids) | (whole < 0) | (whole >= len(held))
    if strange.any():
        raise ReplyError(f"feedback for expert {ids[strange][0]:g}; there are {len(held)}")
    if not held[whole].all():
        expert = int(whole[~held[whole]][0])
        raise ReplyError(f"feedback for expert {expert}, which it was not assigned")
    if len(set(whole.tolist())) < len(whole) or len(whole) < held.sum():
        raise ReplyError(f"feedback for experts {whole.tolist()}; assigned {held.nonzero()[0]}")
    if len(shares) != len(held) or (shares < 0).any() or shares.sum() > 1.001:
        raise ReplyError(
            f"{FeedbackKey.SHARES} are {shares.tolist()}; allowed: {len(held)} parts of 1"
        )
    if (samples < 0).any():
        raise ReplyError(f"{FeedbackKey.SAMPLES} are {samples.tolist()}; allowed: 0 or more")
    took = _numbers(metrics, FeedbackKey.SECONDS)
    if len(took) != 1:
        raise ReplyError(
            f"the feedback {FeedbackKey.SECONDS!r} is {took.tolist()}; allowed: one number"
        )
    seconds = float(took[0])
    work = flops * float(samples.sum())
    if seconds <= 0 or work / seconds > fastest:
        raise ReplyError(
            f"{seconds:g} s for {work:g} FLOPs is impossible; allowed: up to {fastest:g} FLOP/s"
        )
    return Feedback(client, whole, losses, samples, shares, seconds)


def _numbers(metrics: Mapping[str, Any], name: str) -> Floats:
    if name not in metrics:
        raise ReplyError(f"the feedback {name!r} is missing")
    try:
        values = np.atleast_1d(np.asarray(metrics[name], dtype=np.float64))
    except OverflowError:
        raise ReplyError(f"the feedback {name!r} has an integer that no float holds") from None
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ReplyError(f"the feedback {name!r} is {metrics[name]}; allowed: finite numbers")
    return values


class ClientBytes:
    """Bytes between the server and each client, in a round and in all.

    Args:
        clients: How many there are at the start; `meet` adds more.

    Attributes:
        total: int [clients, 2]: bytes down and up, of all rounds.
        down: By client: bytes it got this round.
        up: By client: bytes of its usable reply this round.

    >>> counted = ClientBytes(2)
    >>> counted.begin({1: 100})
    >>> counted.take(1, 120)
    >>> counted.total.tolist(), counted.over({1: 80})
    ([[0, 0], [100, 120]], 1.5)
    """

    def __init__(self, clients: int) -> None:
        self.total: npt.NDArray[np.int64] = np.zeros((clients, 2), dtype=np.int64)
        self.down: dict[int, int] = {}
        self.up: dict[int, int] = {}

    def meet(self, clients: int) -> None:
        """Make room for clients up to number ``clients - 1``."""
        more = max(clients - len(self.total), 0)
        self.total = np.vstack([self.total, np.zeros((more, 2), dtype=np.int64)])

    def begin(self, down: Mapping[int, int]) -> None:
        """A round starts with so many bytes to each client."""
        self.down, self.up = dict(down), {}
        for client, size in down.items():
            self.total[client, 0] += size

    def ask(self, client: int, size: int) -> None:
        """A question beside the round."""
        self.total[client, 0] += size

    def take(self, client: int, size: int) -> None:
        """A usable reply."""
        self.up[client] = size
        self.total[client, 1] += size

    def over(self, allowed: Mapping[int, int]) -> float:
        """The most that a client got or sent this round, in its ``allowed`` bytes."""
        shares = [
            max(size, self.up.get(client, 0)) / allowed[client]
            for client, size in self.down.items()
        ]
        return max(shares, default=0.0)
