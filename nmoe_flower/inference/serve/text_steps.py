"""Texts that go on side by side: what waits at the same moment for one expert is one pass.

A text joins at the next pass and leaves when it ends. A pass of one token each reads the weights
once for all of them, so that several askers cost little more than one. Askers answer each token
with the next question: a worker that is free waits a little for those that are about to, by what
they took so far.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from nmoe_flower.inference.bundle import Drawn, Session, TextStep

__all__ = ["TextSteps"]

_PATIENCE = 0.5  # of the last pass's time, the most that a free worker waits for others
_MEMORY = 0.5  # weight of the last pause among those before it

_Drawn = list[Drawn | None]


class _Waiting(NamedTuple):
    step: TextStep
    answer: "asyncio.Future[Drawn | None]"

    @property
    def alone(self) -> bool:
        """Whether it has several rows, as the beginning of a text has."""
        return len(self.step.rows) > 1


class _Pause:
    """What an asker takes from a token to its next question.

    Attributes:
        since: When it got the last token.
        usual: Seconds that it took so far; None: it has not asked again yet.
    """

    def __init__(self) -> None:
        self.since = 0.0
        self.usual: float | None = None

    def over(self, now: float) -> None:
        """The next question is there.

        Args:
            now: The time.
        """
        took = now - self.since
        self.usual = took if self.usual is None else self.usual + _MEMORY * (took - self.usual)


class TextSteps:
    """Gathers steps of texts for one set of adapters. Lives in one event loop.

    Args:
        compute: Reads the steps and draws what follows; called in the executor, one pass at a time.
        executor: One thread, which others may share.
        most: The most texts of a pass; 1: each goes on alone, in turn.
        on_pass: Called with the rows and the seconds of every pass.

    Attributes:
        waiting_rows: Tokens that wait for their pass.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[TextStep]], _Drawn],
        executor: Executor,
        *,
        most: int,
        on_pass: Callable[[int, float], None],
    ) -> None:
        self.waiting_rows = 0
        self._compute = compute
        self._executor = executor
        self._most = most
        self._on_pass = on_pass
        self._queue: deque[_Waiting] = deque()
        self._working = False
        self._timer: asyncio.Handle | None = None
        self._free_since = 0.0
        self._took = 0.0  # by the last pass of single tokens
        self._pauses: dict[Session, _Pause] = {}
        self._away: set[Session] = set()  # of the last pass, and have not asked again

    async def go_on(self, step: TextStep) -> Drawn | None:
        """Read a step when it is its turn; the token that follows, if one is wanted.

        Cancel it to withdraw.

        Args:
            step: What comes next in a text.
        """
        self._away.discard(step.session)
        if (pause := self._pauses.get(step.session)) is not None:
            pause.over(time.perf_counter())
        answer: asyncio.Future[Drawn | None] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(step, answer))
        self.waiting_rows += len(step.rows)
        try:
            if not self._working:
                self._schedule()
            return await answer
        finally:
            self.waiting_rows -= len(step.rows)

    def leave(self, session: Session) -> None:
        """Nothing more comes of a text.

        Args:
            session: The text.
        """
        self._pauses.pop(session, None)
        if session in self._away:
            self._away.remove(session)
            if self._timer is not None:
                self._schedule()

    def _schedule(self) -> None:
        """Start at the loop's next turn, or once those have come that are worth waiting for."""
        if self._timer is not None:
            self._timer.cancel()
        loop, seconds = asyncio.get_running_loop(), self._patience()
        self._timer = (
            loop.call_later(seconds, self._start) if seconds > 0 else loop.call_soon(self._start)
        )

    def _patience(self) -> float:
        """Seconds that are worth waiting for others."""
        first = next((one for one in self._queue if not one.answer.done()), None)
        if first is None or first.alone or self._most == 1:
            return 0.0
        last = self._free_since + _PATIENCE * self._took
        expert = first.step.session.expert
        pauses = [self._pauses[one] for one in self._away if one.expert == expert]
        if any(one.usual is not None and one.since + one.usual <= last for one in pauses):
            return last - time.perf_counter()
        return 0.0

    def _start(self) -> None:
        self._timer = None
        batch = self._take()
        if not batch:
            return
        self._away.clear()  # whoever has not come yet is not waited for again
        self._working = True
        steps = [one.step for one in batch]
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, self._timed, steps)
        work.add_done_callback(lambda done: self._finish(batch, done))

    def _take(self) -> list[_Waiting]:
        """The oldest step, and all others that go on with it."""
        queue = [one for one in self._queue if not one.answer.done()]
        batch = queue[:1]
        if batch and not batch[0].alone:
            expert = batch[0].step.session.expert
            fit = (one for one in queue if not one.alone and one.step.session.expert == expert)
            batch = [one for _, one in zip(range(self._most), fit, strict=False)]
        taken = {id(one) for one in batch}
        self._queue = deque(one for one in queue if id(one) not in taken)
        return batch

    def _timed(self, steps: Sequence[TextStep]) -> tuple[_Drawn, float]:
        began = time.perf_counter()
        return self._compute(steps), time.perf_counter() - began

    def _finish(
        self, batch: Sequence[_Waiting], done: "asyncio.Future[tuple[_Drawn, float]]"
    ) -> None:
        self._working = False
        self._free_since = time.perf_counter()
        wanted = [one for one in batch if not one.answer.done()]  # not withdrawn
        if done.cancelled():  # the peer stops
            for one in wanted:
                one.answer.cancel()
        elif (error := done.exception()) is not None:
            for one in wanted:
                one.answer.set_exception(error)
        else:
            drawn, seconds = done.result()
            self._answer(batch, drawn)
            if not batch[0].alone:
                self._took = seconds
            self._on_pass(sum(len(one.step.rows) for one in batch), seconds)
        if self._queue:
            self._schedule()

    def _answer(self, batch: Sequence[_Waiting], drawn: _Drawn) -> None:
        for one, token in zip(batch, drawn, strict=True):
            if one.answer.done():
                continue  # withdrawn
            if token is not None:
                self._pauses.setdefault(one.step.session, _Pause()).since = self._free_since
                self._away.add(one.step.session)
            one.answer.set_result(token)
