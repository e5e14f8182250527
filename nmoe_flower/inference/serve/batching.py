"""Micro-batches: requests that wait at the same moment are answered by one pass of the network.

The network runs in one worker thread. While it works on a batch, new requests gather; the next
batch takes as many as fit. An idle worker starts at once unless told to wait for company. A lone
request whose pass is hardly longer than handing it over is computed without the thread.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Answer", "Batcher"]

Floats = npt.NDArray[np.float32]
Computed = tuple[Floats, float]  # logits of a batch, and the seconds they took
Outcome = Computed | BaseException


class Answer(NamedTuple):
    """The answer to one request.

    Attributes:
        logits: [rows, C], a view of the batch's.
        queue_seconds: From the request's arrival to the start of its batch.
        compute_seconds: What the whole batch took.
    """

    logits: Floats
    queue_seconds: float
    compute_seconds: float


class _Waiting(NamedTuple):
    latents: Floats
    answer: "asyncio.Future[Answer]"
    since: float


class Batcher:
    """Gathers requests for one network. Lives in one event loop; not for other threads.

    Args:
        compute: Latents [B, D] -> logits [B, C]; called in the executor, one batch at a time.
        executor: With one thread. Several batchers may share it.
        max_batch: The most rows of a batch; a single request may be larger.
        max_wait: Seconds an idle worker waits for company. 0: none.
        max_queue: The most rows that may wait; more are refused.
        inline_rows: The most rows of a lone request that the loop computes itself.
        on_batch: Told the rows and the seconds of every batch.
    """

    def __init__(
        self,
        compute: Callable[[Floats], Floats],
        executor: Executor,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        inline_rows: int = 0,
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self.waiting_rows = 0
        self._compute = compute
        self._executor = executor
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._inline_rows = inline_rows
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._working = False
        self._timer: asyncio.Handle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, latents: Floats) -> "asyncio.Future[Answer] | None":
        """Queue latents [rows, D]; None if the queue is full. Cancel the future to withdraw."""
        rows = len(latents)
        if self.waiting_rows + rows > self._max_queue:
            return None
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._queue.append(_Waiting(latents, answer, time.perf_counter()))
        self.waiting_rows += rows
        self._idle.clear()
        if not self._working:
            self._schedule()
        return answer

    async def drained(self) -> None:
        """Wait until nothing waits and nothing is worked on."""
        await self._idle.wait()

    def _schedule(self) -> None:
        """Start now if a batch is full, else after ``max_wait``.

        "Now" is the loop's next turn: what arrives in this turn still comes along.
        """
        full = self.waiting_rows >= self._max_batch
        if self._timer is not None:
            if not full or self._max_wait == 0:
                return
            self._timer.cancel()
        if full or self._max_wait == 0:
            self._timer = self._loop.call_soon(self._start)
        else:
            self._timer = self._loop.call_later(self._max_wait, self._start)

    def _start(self) -> None:
        self._timer = None
        batch = self._take()
        if not batch:
            self._idle.set()
            return
        started = time.perf_counter()
        parts = [one.latents for one in batch]
        if len(parts) > 1 or len(parts[0]) > self._inline_rows:
            self._working = True
            work = self._loop.run_in_executor(self._executor, self._work, parts)
            work.add_done_callback(lambda done: self._finish(batch, started, done))
            return
        try:
            outcome: Outcome = self._work(parts)
        except Exception as error:
            outcome = error
        self._answer(batch, started, outcome)
        if self._queue:
            self._schedule()  # others want their turn of the loop
        else:
            self._idle.set()

    def _take(self) -> list[_Waiting]:
        """The oldest requests that fit a batch, without those that were withdrawn."""
        batch: list[_Waiting] = []
        rows = 0
        while self._queue:
            size = len(self._queue[0].latents)
            withdrawn = self._queue[0].answer.done()
            if batch and not withdrawn and rows + size > self._max_batch:
                break
            one = self._queue.popleft()
            self.waiting_rows -= size
            if not withdrawn:
                batch.append(one)
                rows += size
        return batch

    def _work(self, parts: Sequence[Floats]) -> Computed:
        started = time.perf_counter()
        logits = self._compute(np.concatenate(parts))
        return logits, time.perf_counter() - started

    def _finish(
        self,
        batch: Sequence[_Waiting],
        started: float,
        done: "asyncio.Future[Computed]",
    ) -> None:
        self._working = False
        self._answer(batch, started, done.exception() or done.result())
        if self._queue:
            self._start()
        else:
            self._idle.set()

    def _answer(self, batch: Sequence[_Waiting], started: float, outcome: Outcome) -> None:
        if isinstance(outcome, BaseException):
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(outcome)
            return
        logits, seconds = outcome
        first = 0
        for one in batch:
            last = first + len(one.latents)
            if not one.answer.done():
                one.answer.set_result(Answer(logits[first:last], started - one.since, seconds))
            first = last
        self._on_batch(first, seconds)
