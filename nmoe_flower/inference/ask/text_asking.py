"""What every question about text needs: who is asked, how it travels, and what it costs."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import WireError
from nmoe_flower.inference.ask.text_peers import HERE, Source, TextPeers, sources, who_holds
from nmoe_flower.inference.bundle import TextExperts
from nmoe_flower.inference.protocol import (
    MAX_MESSAGE_BYTES,
    Encoding,
    encode_hidden,
    encode_tokens,
    peer_pb2,
)
from nmoe_flower.inference.telemetry import log_event

__all__ = ["Asking", "Send", "TextCost"]

Send = Literal["hidden", "tokens"]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_MOST_TOKENS = 2048  # in one message: half of what may wait at a peer
_MOST_BYTES = {"float32": 4, "float16": 4, "int8": 1}  # of a number: float16 may not hold it
_log = logging.getLogger(__name__)


@dataclass
class TextCost:
    """What a question has cost.

    Attributes:
        up: Bytes sent.
        down: Bytes received.
        failures: How often a peer did not answer, by its name and a word for the reason.
    """

    up: int = 0
    down: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, other: "TextCost") -> None:
        """Add what another question has cost.

        Args:
            other: The other question's.
        """
        self.up += other.up
        self.down += other.down
        self.failures += other.failures


@dataclass
class Asking:
    """Who asks, and how.

    Attributes:
        experts: What this device has.
        peers: The connections to the others.
        send: What leaves this device.
        encoding: How hidden states travel.
        deadline: Seconds that an answer, or the next token, may take.
        fallbacks: How many next-best experts are asked.
    """

    experts: TextExperts
    peers: TextPeers
    send: Send
    encoding: Encoding
    deadline: float
    fallbacks: int

    def __post_init__(self) -> None:
        self._numbers = count(1)
        manifest = self.experts.bundle.manifest
        self._placed = {
            "holders": manifest.holders,
            "held": self.experts.held,
            "own": manifest.partition,
            "usable": self.peers.usable,
        }

    @property
    def most_tokens(self) -> int:
        """The most tokens in one message."""
        if self.send == "tokens":
            return _MOST_TOKENS
        row = self.experts.bundle.latent_dim * _MOST_BYTES[self.encoding]
        return max(1, min(_MOST_TOKENS, MAX_MESSAGE_BYTES * 3 // 4 // row))

    def sources(self, ranking: list[int]) -> list[Source]:
        """Whom to ask, one after the other.

        Args:
            ranking: Ids of the experts, best first.
        """
        return sources(ranking, fallbacks=self.fallbacks, **self._placed)  # type: ignore[arg-type]

    def who_holds(self, expert: int) -> list[Source]:
        """Where an expert can be asked.

        Args:
            expert: Device whose adapter is meant.
        """
        return who_holds(expert, **self._placed)  # type: ignore[arg-type]

    def next_id(self) -> str:
        """A name for a question that no other has."""
        return str(next(self._numbers))

    def hidden(self, rows: Floats) -> peer_pb2.Tensor:
        """Hidden states [n, d] as they travel.

        Args:
            rows: One per token.

        Raises:
            WireError: A number is not finite.
        """
        return encode_hidden(rows, self.encoding)

    def tokens(self, tokens: Ints) -> bytes:
        """Tokens [n] as they travel.

        Args:
            tokens: Numbers of the text's tokens, int64.
        """
        return encode_tokens(tokens)

    async def failed(self, source: Source, error: WireError, cost: TextCost) -> None:
        """Note that a peer did not answer, and say so.

        Args:
            source: Who was asked for whose expert.
            error: What went wrong.
            cost: Where it is counted.
        """
        assert source.peer != HERE
        name = self.peers.name(source.peer)
        cost.failures[f"{name}: {error.reason}"] += 1
        facts = {"peer": name, "partition": source.peer, "expert": source.expert}
        facts |= {"reason": error.reason, "detail": str(error)}
        log_event(_log, logging.WARNING, "peer-failed", **facts)
        await self.peers.ill(source.peer, error.reason)
