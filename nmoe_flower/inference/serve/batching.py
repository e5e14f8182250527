"""Micro-batches: requests that wait at the same moment are answered by one pass of the network.

The network runs in one worker thread. While it works on a batch, new requests gather; the next
batch takes as many as fit. An idle worker starts at once unless told to wait for company. A lone
request whose pass is hardly longer than handing it over is computed without the thread.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nmoe_flower.inference.bundle import Bundle
from nmoe_flower.inference.protocol import peer_pb2
from nmoe_flower.models import Expert

__all__ = ["BatchResult", "Batcher", "Served", "expert_thread", "load_expert"]

Floats = npt.NDArray[np.float32]
_Computed = tuple[Floats, float]  # logits of a batch, and the seconds they took

_INLINE_SECONDS = 5e-4  # a pass that may hold up the loop; a thread would cost a fifth of it


class BatchResult(NamedTuple):
    """The answer to one request.

    Attributes:
        logits: The answer, [rows, C], a view of the batch's.
        queue_seconds: Seconds from the request's arrival to the start of its batch.
        compute_seconds: Seconds that the whole batch took.
    """

    logits: Floats
    queue_seconds: float
    compute_seconds: float


class _Waiting(NamedTuple):
    latents: Floats
    answer: "asyncio.Future[BatchResult]"
    since: float


class Batcher:
    """Gathers requests for one network. Lives in one event loop; not for other threads.

    Args:
        compute: The network: latents [B, D] -> logits [B, C]; called in the executor, one batch at
            a time.
        executor: One thread, which computes. Several batchers may share it.
        max_batch: The most rows of a batch; a single request may be larger.
        max_wait: Seconds an idle worker waits for company; 0: none.
        max_queue: The most rows that may wait; more are refused.
        inline_rows: The most rows of a lone request that the loop computes itself.
        on_batch: Called with the rows and the seconds of every batch.
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

    def submit(self, latents: Floats) -> "asyncio.Future[BatchResult] | None":
        """Queue latents [rows, D]; None if the queue is full. Cancel the future to withdraw."""
        rows = len(latents)
        if self.waiting_rows + rows > self._max_queue:
            return None
        answer: asyncio.Future[BatchResult] = self._loop.create_future()
        self._queue.append(_Waiting(latents, answer, time.perf_counter()))
        self.waiting_rows += rows
        if not self._working:
            self._schedule()
        return answer

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
            return
        started = time.perf_counter()
        parts = [one.latents for one in batch]
        if len(parts) > 1 or len(parts[0]) > self._inline_rows:
            self._working = True
            work = self._loop.run_in_executor(self._executor, self._work, parts)
            work.add_done_callback(lambda done: self._finish(batch, started, done))
            return
        try:
            outcome: _Computed | BaseException = self._work(parts)
        except Exception as error:
            outcome = error
        self._answer(batch, started, outcome)
        if self._queue:
            self._schedule()  # others want their turn of the loop

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

    def _work(self, parts: Sequence[Floats]) -> _Computed:
        started = time.perf_counter()
        logits = self._compute(np.concatenate(parts))
        return logits, time.perf_counter() - started

    def _finish(
        self,
        batch: Sequence[_Waiting],
        started: float,
        done: "asyncio.Future[_Computed]",
    ) -> None:
        self._working = False
        self._answer(batch, started, done.exception() or done.result())
        if self._queue:
            self._start()

    def _answer(
        self, batch: Sequence[_Waiting], started: float, outcome: _Computed | BaseException
    ) -> None:
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
                one.answer.set_result(BatchResult(logits[first:last], started - one.since, seconds))
            first = last
        self._on_batch(first, seconds)


def expert_thread() -> ThreadPoolExecutor:
    """One thread that computes with as many threads as torch is set to now.

    MKL keeps that number per thread and starts with all cores: without the initializer, one row
    took ten times as long as with one thread, because the others spin.
    """
    return ThreadPoolExecutor(
        1,
        thread_name_prefix="nmoe-expert",
        initializer=torch.set_num_threads,
        initargs=(torch.get_num_threads(),),
    )


def load_expert(bundle: Bundle) -> Expert:
    """The bundle's expert, after one pass that pays for first-time work."""
    expert = bundle.expert()
    with torch.inference_mode():
        expert(torch.zeros(2, bundle.latent_dim))
    return expert


def inline_rows(compute: Callable[[Floats], Floats], columns: int, most: int) -> int:
    """The most rows, a power of two up to ``most``, whose pass the event loop may do itself; or 0.

    Takes some milliseconds: passes are timed.
    """
    rows = 1
    while rows <= most:
        latents = np.zeros((rows, columns), np.float32)
        if min(_seconds(compute, latents) for _ in range(3)) > _INLINE_SECONDS:
            break
        rows *= 2
    return rows // 2


def _seconds(compute: Callable[[Floats], Floats], latents: Floats) -> float:
    started = time.perf_counter()
    compute(latents)
    return time.perf_counter() - started


class Served:
    """An expert that answers. Every version has a queue of its own, so none is ever mixed up.

    Attributes:
        bundle: The bundle it was loaded from.
        batcher: The queue where requests wait.
    """

    def __init__(
        self,
        bundle: Bundle,
        expert: nn.Module,
        executor: Executor,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        on_batch: Callable[[int, float], None],
    ) -> None:
        self.bundle = bundle
        self._expert = expert
        self.batcher = Batcher(
            self._compute,
            executor,
            max_batch=max_batch,
            max_wait=max_wait,
            max_queue=max_queue,
            inline_rows=inline_rows(self._compute, bundle.latent_dim, max_batch),
            on_batch=on_batch,
        )

    @property
    def waiting_rows(self) -> int:
        """Latents that wait for their batch."""
        return self.batcher.waiting_rows

    def fits(self, request: peer_pb2.PredictRequest) -> bool:
        """Whether the latents are of this expert's extractor, and the expert is the one wanted."""
        return request.extractor_version == self.bundle.extractor_version and (
            request.expert_version in ("", self.bundle.expert_version)
        )

    def _compute(self, latents: Floats) -> Floats:
        with torch.inference_mode():
            logits: Floats = self._expert(torch.from_numpy(latents)).numpy()
        return logits
