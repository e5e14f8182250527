"""Windows of text scored by the experts that were chosen, wherever they are."""

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import WireError
from nmoe_flower.inference.ask.text_asking import Asking, TextCost
from nmoe_flower.inference.ask.text_peers import HERE, Source
from nmoe_flower.inference.bundle import OF_ALL
from nmoe_flower.inference.protocol import decode_tensor, peer_pb2

__all__ = ["Scoring"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
NOBODY = -3


class Scoring:
    """What the chosen experts lose on windows of one length.

    Args:
        asking: Who asks, and how.
        tokens: N windows of T tokens, [N, T].
        ranking: Experts of each window, best first, [N, E]: where to go if one does not answer.
        offsets: What experts add to the logits, and of which version: learnt once, kept by the
            caller.

    Attributes:
        nats: What each asked expert lost on all tokens but the first, [N, E, T - 1]; infinite
            where it was not asked.
        cost: Bytes both ways, and peers that failed.
        by: Who answered in the place of each asked expert, [N, E]; `NOBODY` where it was not asked.
    """

    def __init__(
        self,
        asking: Asking,
        tokens: Ints,
        ranking: Ints,
        offsets: dict[int, tuple[str, Floats]],
    ) -> None:
        _count, window = tokens.shape
        self.nats = np.full((*ranking.shape, window - 1), np.inf, np.float32)
        self.by = np.full(ranking.shape, NOBODY, np.int64)
        self.peers: dict[int, set[str]] = {}
        self.cost = TextCost()
        self._asking, self._tokens, self._ranking = asking, tokens, ranking
        self._offsets = offsets
        self._hidden: Floats | None = None
        self._reading = asyncio.Lock()
        self._failed: set[int] = set()  # peers

    async def run(self, ids: Ints) -> None:
        """Ask whoever was chosen.

        Args:
            ids: Experts asked in each chunk, [N, C, K].
        """
        each = [
            (int(expert), np.flatnonzero((ids == expert).any(axis=(1, 2))))
            for expert in np.unique(ids)
        ]
        await asyncio.gather(*(self._answer(e, rows, (e,)) for e, rows in each))

    async def _answer(self, asked: int, rows: Ints, tried: Sequence[int]) -> None:
        """Have the last of ``tried`` answer for the expert that was asked, or the next best."""
        asking = self._asking
        for source in asking.who_holds(tried[-1]):
            if source.peer in self._failed:
                continue
            try:
                nats = await self._ask(source, rows)
            except WireError as error:
                self._failed.add(source.peer)
                await asking.failed(source, error, self.cost)
                continue
            self.nats[rows, asked] = nats
            self.by[rows, asked] = source.expert
            self.peers.setdefault(source.expert, set()).add(asking.peers.name(source.peer))
            return
        nexts = np.array([self._next(row, tried) for row in rows])
        for expert in np.unique(nexts):
            await self._answer(asked, rows[nexts == expert], (*tried, int(expert)))

    def _next(self, row: int, tried: Sequence[int]) -> int:
        """Who comes after those that did not answer for a window."""
        experts = self._asking.experts
        if len(tried) <= self._asking.fallbacks:
            left = [int(e) for e in self._ranking[row] if e not in tried]
            if left:
                return left[0]
        return OF_ALL if OF_ALL in experts.held else experts.bundle.partition

    async def _ask(self, source: Source, rows: Ints) -> Floats:
        """What an expert loses on some windows, [n, T - 1]."""
        if source.peer == HERE:
            return await self._here(source.expert, rows)
        at_once = max(1, self._asking.most_tokens // self._tokens.shape[1])
        parts = [
            await self._there(source, rows[at : at + at_once])
            for at in range(0, len(rows), at_once)
        ]
        self._asking.peers.well(source.peer)
        return np.concatenate(parts)

    async def _states(self, rows: Ints) -> Floats:
        """Hidden states at the cut of all tokens but the last, [n, T - 1, d]; computed once."""
        async with self._reading:
            if self._hidden is None:
                lower = self._asking.experts.lower
                self._hidden = await asyncio.to_thread(lower, self._tokens[:, :-1])
        return self._hidden[rows]

    async def _here(self, expert: int, rows: Ints) -> Floats:
        experts, hidden = self._asking.experts, await self._states(rows)

        def work() -> Floats:
            final = experts.upper(expert, hidden)
            return experts.losses(final, experts.offsets(expert), self._tokens[rows, 1:])

        return await asyncio.to_thread(work)

    async def _there(self, source: Source, rows: Ints) -> Floats:
        asking = self._asking
        question = peer_pb2.ScoreRequest(
            request_id=asking.next_id(),
            extractor_version=asking.experts.bundle.extractor_version,
            expert=source.expert,
            windows=len(rows),
        )
        if asking.send == "tokens":
            question.tokens = asking.tokens(self._tokens[rows].ravel())
            reply = await self._exchange(source, question)
            width = self._tokens.shape[1] - 1
            found = decode_tensor(reply.log_probabilities, max_rows=len(rows), columns=width)
            if len(found) != len(rows):
                raise WireError("shape", f"{len(found)} answers to {len(rows)} windows")
            return -found
        hidden = await self._states(rows)
        flat = hidden.reshape(-1, hidden.shape[2])
        question.hidden.CopyFrom(asking.hidden(flat))
        version, offsets = self._offsets.get(source.expert, ("", None))
        question.offsets = offsets is None
        reply = await self._exchange(source, question)
        if reply.expert_version != version and not question.offsets:
            question.offsets = True  # it has another version since
            reply = await self._exchange(source, question)
        if question.offsets:
            size = asking.experts.bundle.num_classes
            offsets = decode_tensor(reply.offsets, max_rows=1, columns=size)[0]
        final = decode_tensor(reply.final, max_rows=len(flat), columns=flat.shape[1])
        if len(final) != len(flat):
            raise WireError("shape", f"{len(final)} answers to {len(flat)} tokens")
        assert offsets is not None
        self._offsets[source.expert] = reply.expert_version, offsets
        return await asyncio.to_thread(
            asking.experts.losses, final.reshape(hidden.shape), offsets, self._tokens[rows, 1:]
        )

    async def _exchange(
        self, source: Source, question: peer_pb2.ScoreRequest
    ) -> peer_pb2.ScoreReply:
        asking = self._asking
        channel = asking.peers.channel(source.peer)
        self.cost.up += question.ByteSize()
        reply, size = await channel.score(question, timeout=asking.deadline)
        self.cost.down += size
        return reply
