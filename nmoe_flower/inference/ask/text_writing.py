"""Text that goes on: the chosen peer keeps the keys and values, and another one can take over.

What has been written is kept here, and nowhere else: a peer that is asked for the first time, or
again after others, reads what it has not seen yet and goes on from there. So a peer that dies in
the middle is replaced, and no token is lost or comes twice.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import WireError
from nmoe_flower.inference.ask.channel import Conversation
from nmoe_flower.inference.ask.text_asking import Asking, TextCost
from nmoe_flower.inference.ask.text_peers import HERE, Source
from nmoe_flower.inference.bundle import Drawn, Session, TextExperts, TextStep, Writing
from nmoe_flower.inference.protocol import peer_pb2

__all__ = ["Written", "write"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Written(NamedTuple):
    """One token that was written.

    Attributes:
        drawn: The token.
        source: Who wrote it.
    """

    drawn: Drawn
    source: Source


class _Text:
    """A text so far, and its hidden states at the cut, which are computed once and only if asked.

    Args:
        experts: What computes them.
        tokens: The beginning.
    """

    def __init__(self, experts: TextExperts, tokens: list[int]) -> None:
        self.tokens = list(tokens)
        self._experts = experts
        self._session = Session(0)
        self._states: list[Floats] = []

    async def states(self, first: int) -> Floats:
        """Hidden states of all tokens from the place ``first`` on, [n, d]."""
        seen = self._session.lower.length
        if seen < len(self.tokens):
            new = np.array(self.tokens[seen:], np.int64)[None]
            found = await asyncio.to_thread(self._experts.lower, new, self._session)
            self._states.extend(found[0])
        return np.stack(self._states[first:])


class _Speaker(Protocol):
    """Whoever can go on with a text."""

    async def next(self, text: _Text, wanted: int) -> Drawn:
        """The token after a text; ``wanted`` of them will be asked for in a row."""
        ...

    async def close(self) -> None:
        """No more is wanted."""
        ...


class _Here:
    """An expert that is held here."""

    def __init__(self, asking: Asking, expert: int, how: Writing) -> None:
        self._experts, self._how = asking.experts, how
        self._session = Session(expert)

    async def next(self, text: _Text, wanted: int) -> Drawn:
        hidden = await text.states(self._session.seen)
        step = TextStep(self._session, hidden, self._how)
        [drawn] = await asyncio.to_thread(self._experts.go_on, [step])
        assert drawn is not None  # as one is wanted
        return drawn

    async def close(self) -> None:
        pass


class _There:
    """An expert at a peer."""

    def __init__(
        self,
        asking: Asking,
        source: Source,
        how: Writing,
        end: int,
        cost: TextCost,
        conversation: Conversation,
    ) -> None:
        self._asking, self._source, self._how, self._end = asking, source, how, end
        self._cost = cost
        self._conversation = conversation
        self._id = asking.next_id()
        self._seen = 0  # tokens that the peer has read
        self._coming = 0  # tokens that it still writes without being asked again

    async def next(self, text: _Text, wanted: int) -> Drawn:
        asking, place = self._asking, len(text.tokens)
        if not self._coming:
            await self._tell(text, wanted)
        reply, size = await self._conversation.hear(timeout=asking.deadline)
        self._cost.down += size
        if reply.request_id != self._id or reply.position != place:
            raise WireError("mixed-up", f"token {reply.position} came for token {place}")
        if reply.token >= asking.experts.num_tokens:
            raise WireError("token", f"token {reply.token} is none")
        if not math.isfinite(reply.log_probability):
            raise WireError("not-finite", f"its log-probability is {reply.log_probability}")
        self._coming -= 1
        self._seen = place
        asking.peers.well(self._source.peer)
        return Drawn(reply.token, reply.log_probability)

    async def _tell(self, text: _Text, wanted: int) -> None:
        """Send what the peer has not read."""
        asking, place, first = self._asking, len(text.tokens), self._seen
        self._coming = wanted if asking.send == "tokens" else 1
        for at in range(first, place, asking.most_tokens):
            last = min(at + asking.most_tokens, place)
            question = peer_pb2.GenerateRequest(
                request_id=self._id,
                extractor_version=asking.experts.bundle.extractor_version,
                expert=self._source.expert,
                position=at,
                count=self._coming if last == place else 0,
                temperature=self._how.temperature,
                seed=self._how.seed,
                end=self._end,
            )
            if asking.send == "tokens":
                question.tokens = asking.tokens(np.array(text.tokens[at:last]))
            else:
                states = await text.states(at)
                question.hidden.CopyFrom(asking.hidden(states[: last - at]))
            self._cost.up += await self._conversation.say(question)

    async def close(self) -> None:
        await self._conversation.close()


async def write(
    asking: Asking,
    tokens: list[int],
    count: int,
    how: Writing,
    *,
    end: int,
    every: int,
    rank: Callable[[Ints], list[int]],
    cost: TextCost,
) -> AsyncIterator[Written]:
    """Go on with a text.

    Args:
        asking: Who asks, and how.
        tokens: The text so far, one token or more.
        count: The most tokens to write.
        how: How they are drawn.
        end: Nothing follows this token, which is not given back.
        every: Tokens after which it is decided again who writes; 0: once.
        rank: Experts for a text so far, best first.
        cost: Where it is counted what this costs.
    """
    text = _Text(asking.experts, tokens)
    speakers: dict[Source, _Speaker] = {}
    failed: set[int] = set()  # peers
    ranking: list[int] = []
    try:
        for done in range(count):
            if not done or (every and done % every == 0):
                ranking = rank(np.array(text.tokens))
            left = min(count - done, every - done % every if every else count)
            while True:
                source = next(one for one in asking.sources(ranking) if one.peer not in failed)
                try:
                    if source not in speakers:
                        speakers[source] = _speaker(asking, source, how, end, cost)
                    drawn = await speakers[source].next(text, left)
                    break
                except WireError as error:
                    failed.add(source.peer)
                    await asking.failed(source, error, cost)
                    if (gone := speakers.pop(source, None)) is not None:
                        await gone.close()
            if drawn.token == end:
                return
            text.tokens.append(drawn.token)
            yield Written(drawn, source)
    finally:
        for speaker in speakers.values():
            await speaker.close()


def _speaker(asking: Asking, source: Source, how: Writing, end: int, cost: TextCost) -> _Speaker:
    if source.peer == HERE:
        return _Here(asking, source.expert, how)
    conversation = asking.peers.channel(source.peer).converse()
    return _There(asking, source, how, end, cost, conversation)
