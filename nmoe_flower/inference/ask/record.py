"""What a query cost and who answered it: the record that comes with every answer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nmoe_flower.files import to_json
from nmoe_flower.inference.ask.call import SILENT, Why
from nmoe_flower.inference.ask.plan import Ints

__all__ = ["ANSWERED", "UNFINISHED", "CallRecord", "Sent"]

ANSWERED = "answered"
UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class Sent:
    """One request to one peer.

    Attributes:
        peer: Its name; empty: the list has nobody for this expert.
        expert: The expert's id.
        why: Chosen by the gate, "next-best" after a failure, or "hedge" after a long silence.
        rows: How many latents.
        outcome: "answered"; "unfinished" if the query was over before; else one word on what went
            wrong, such as "deadline", "busy", "unavailable", "garbage", or "open" and "unknown"
            where nothing was sent because the breaker is open or the peer is not known.
        ms: Milliseconds until then.
        bytes_up: Of the message that was sent, without the frames of HTTP/2 and TLS.
        bytes_down: Of the message that came back, if it was of use.
    """

    peer: str
    expert: int
    why: Why
    rows: int
    outcome: str
    ms: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class CallRecord:
    """One query of a batch.

    Attributes:
        own: The expert of the device that asks.
        expert_ids: Chosen by the gate, [B, K].
        answered_by: The experts whose logits are in the answer, [B, K]; -1: nobody's.
        ms: Milliseconds the whole query took.
        deadline_ms: What it was allowed to take on the network.
        sent: The requests.
        moved: Choices of the gate that were given to healthier experts before anybody was asked;
            ``expert_ids`` holds these then.
    """

    own: int
    expert_ids: Ints
    answered_by: Ints
    ms: float
    deadline_ms: float
    sent: Sequence[Sent] = field(default=())
    moved: int = 0

    @property
    def fell_back(self) -> Ints:
        """Rows [n] that no chosen expert answered."""
        wrong = (self.answered_by != self.expert_ids) & (self.answered_by != SILENT)
        return np.asarray(np.flatnonzero(wrong.any(axis=1)))

    @property
    def fallbacks(self) -> tuple[int, int]:
        """How many rows fell back to a next-best expert, and how many to the own one."""
        back = self.answered_by[self.fell_back].max(axis=1, initial=SILENT)
        return int((back != self.own).sum()), int((back == self.own).sum())

    @property
    def silent(self) -> int:
        """Choices of the gate that are missing from the answer, with others of their row in it."""
        unanswered = int((self.answered_by == SILENT).sum())
        return unanswered - len(self.fell_back) * (int(self.expert_ids.shape[1]) - 1)

    @property
    def bytes_up(self) -> int:
        """Bytes of all messages that were sent."""
        return sum(one.bytes_up for one in self.sent)

    @property
    def bytes_down(self) -> int:
        """Bytes of all messages that came back."""
        return sum(one.bytes_down for one in self.sent)

    def summary(self) -> dict[str, Any]:
        """Plain values, without the row by row part.

        >>> ids = np.array([[1], [2]])
        >>> record = CallRecord(0, ids, np.array([[1], [0]]), ms=2.0, deadline_ms=1000.0)
        >>> {k: v for k, v in record.summary().items() if v}  # doctest: +NORMALIZE_WHITESPACE
        {'rows': 2, 'ms': 2.0, 'deadline_ms': 1000.0, 'chosen': {1: 1, 2: 1},
         'answered': {0: 1, 1: 1}, 'local': 1}
        """
        next_best, local = self.fallbacks
        return {
            "own": self.own,
            "rows": len(self.expert_ids),
            "ms": round(self.ms, 3),
            "deadline_ms": self.deadline_ms,
            "chosen": _counts(self.expert_ids),
            "answered": _counts(self.answered_by),
            "next_best": next_best,
            "local": local,
            "silent": self.silent,
            "moved": self.moved,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "sent": [asdict(one) | {"ms": round(one.ms, 3)} for one in self.sent],
        }

    def line(self) -> str:
        """One line of JSON, for a file of records."""
        return to_json(self.summary())


def _counts(expert_ids: Ints) -> dict[int, int]:
    experts, counts = np.unique(expert_ids[expert_ids != SILENT], return_counts=True)
    return dict(zip(experts.tolist(), counts.tolist(), strict=True))
