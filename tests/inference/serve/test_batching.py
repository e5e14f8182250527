import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.inference.serve import batching
from nmoe_flower.inference.serve.batching import Batcher, BatchResult


class Worker(Executor):
    """Works only when told to: the tests decide what happens meanwhile."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._jobs: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()

        def job() -> None:
            try:
                done.set_result(fn(*args))
            except Exception as error:
                done.set_exception(error)

        self.sizes.append(sum(map(len, args[0])))
        self._jobs.append(job)
        return done

    async def work(self) -> None:
        """Do the waiting job, and let the loop hear of it."""
        self._jobs.pop(0)()
        await turns()


async def turns() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


def rows(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)[:, None]


def negate(latents: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return -latents


def make(worker: Executor, **options: Any) -> Batcher:
    settings = {"max_batch": 4, "max_wait": 0.0, "max_queue": 6}
    return Batcher(options.pop("compute", negate), worker, **settings | options)


def logits(answer: "asyncio.Future[BatchResult] | None") -> list[float]:
    assert answer is not None
    return answer.result().logits[:, 0].tolist()


def test_requests_of_one_moment_share_a_pass() -> None:
    async def scenario() -> None:
        worker = Worker()
        batcher = make(worker)
        answers = [batcher.submit(rows(1, 2)), batcher.submit(rows(3))]
        await turns()
        assert worker.sizes == [3]
        await worker.work()
        assert [logits(answer) for answer in answers] == [[-1, -2], [-3]]

    asyncio.run(scenario())


def test_a_lone_small_request_is_computed_by_the_loop_itself() -> None:
    async def scenario() -> None:
        worker = Worker()
        batches: list[int] = []
        batcher = make(worker, inline_rows=2, on_batch=lambda rows, _: batches.append(rows))
        alone = batcher.submit(rows(1, 2))
        await turns()
        assert logits(alone) == [-1, -2]
        assert batches == [2]
        assert batcher.waiting_rows == 0
        together = [batcher.submit(rows(3)), batcher.submit(rows(4))]
        await turns()
        assert worker.sizes == [2]  # two are the worker's
        behind = batcher.submit(rows(5))
        await turns()
        assert behind is not None
        assert not behind.done()  # it waits until the worker is done, then is alone
        await worker.work()
        assert [logits(answer) for answer in (*together, behind)] == [[-3], [-4], [-5]]
        assert worker.sizes == [2]
        assert batches == [2, 2, 1]
        assert batcher.waiting_rows == 0

    asyncio.run(scenario())


def test_an_error_of_the_loops_own_pass_reaches_who_asked() -> None:
    async def scenario() -> None:
        def fail(latents: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            raise ValueError("broken")

        batcher = make(Worker(), compute=fail, inline_rows=2)
        answer = batcher.submit(rows(1))
        assert answer is not None
        await turns()
        assert isinstance(answer.exception(), ValueError)
        assert batcher.waiting_rows == 0

    asyncio.run(scenario())


def test_while_the_worker_is_busy_the_next_batch_gathers() -> None:
    async def scenario() -> None:
        worker = Worker()
        batcher = make(worker)
        first = batcher.submit(rows(0))
        await turns()
        later = [batcher.submit(rows(i)) for i in range(1, 7)]
        await turns()
        assert worker.sizes == [1]
        assert batcher.waiting_rows == 6
        await worker.work()
        assert logits(first) == [0]
        assert worker.sizes == [1, 4]  # not more than max_batch
        await worker.work()
        await worker.work()
        assert worker.sizes == [1, 4, 2]
        assert [logits(answer) for answer in later] == [[-i] for i in range(1, 7)]

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    async def scenario() -> None:
        worker = Worker()
        batcher = make(worker)
        batcher.submit(rows(0))
        await turns()  # this one is worked on: it waits no more
        assert batcher.submit(rows(1, 2, 3)) is not None
        assert batcher.submit(rows(4, 5, 6, 7)) is None
        assert batcher.submit(rows(4, 5, 6)) is not None
        assert batcher.submit(rows(7)) is None
        await worker.work()
        assert batcher.submit(rows(7)) is not None
        assert batcher.waiting_rows == 4

    asyncio.run(scenario())


def test_what_was_withdrawn_is_not_computed() -> None:
    async def scenario() -> None:
        worker = Worker()
        batcher = make(worker)
        batcher.submit(rows(0))
        await turns()
        withdrawn, kept = batcher.submit(rows(1, 2, 3)), batcher.submit(rows(4, 5))
        assert withdrawn is not None
        withdrawn.cancel()
        await worker.work()
        assert worker.sizes == [1, 2]
        await worker.work()
        assert logits(kept) == [-4, -5]
        alone = batcher.submit(rows(6))
        assert alone is not None
        alone.cancel()
        await turns()
        assert worker.sizes == [1, 2]
        assert batcher.waiting_rows == 0

    asyncio.run(scenario())


def test_an_answer_nobody_waits_for_disturbs_nobody() -> None:
    async def scenario() -> None:
        worker = Worker()
        batcher = make(worker)
        gone, kept = batcher.submit(rows(1)), batcher.submit(rows(2))
        await turns()
        assert gone is not None
        gone.cancel()  # while the worker computes
        await worker.work()
        assert logits(kept) == [-2]

    asyncio.run(scenario())


def test_an_error_reaches_its_batch_and_no_other() -> None:
    def fail_on_seven(latents: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if 7 in latents:
            raise MemoryError("seven")
        return latents

    async def scenario() -> None:
        worker = Worker()
        batcher = make(worker, compute=fail_on_seven)
        bad = [batcher.submit(rows(7)), batcher.submit(rows(1))]
        await turns()
        good = batcher.submit(rows(2))
        await worker.work()
        for answer in bad:
            assert answer is not None
            with pytest.raises(MemoryError, match="seven"):
                answer.result()
        await worker.work()
        assert logits(good) == [2]

    asyncio.run(scenario())


def test_an_idle_worker_waits_for_company_until_a_batch_is_full() -> None:
    async def scenario() -> None:
        worker = Worker()
        batcher = make(worker, max_wait=3600.0)
        batcher.submit(rows(1, 2))
        await turns()
        assert worker.sizes == []
        batcher.submit(rows(3, 4))
        await turns()
        assert worker.sizes == [4]

    asyncio.run(scenario())


def test_company_that_does_not_come_is_not_waited_for() -> None:
    async def scenario() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = make(executor, max_wait=0.001)
            answer = batcher.submit(rows(1))
            assert answer is not None
            assert (await asyncio.wait_for(answer, 10)).logits.tolist() == [[-1]]
            assert batcher.waiting_rows == 0

    asyncio.run(scenario())


def test_every_pass_is_reported_with_its_rows() -> None:
    async def scenario() -> None:
        told: list[tuple[int, float]] = []
        worker = Worker()
        batcher = make(worker, on_batch=lambda count, seconds: told.append((count, seconds)))
        answer = batcher.submit(rows(1, 2, 3))
        await turns()
        await worker.work()
        assert [count for count, _ in told] == [3]
        assert answer is not None
        assert answer.result().compute_seconds == told[0][1] >= 0
        assert answer.result().queue_seconds >= 0

    asyncio.run(scenario())


@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_everyone_gets_its_own_rows_whatever_the_order(sizes: list[int], random: Any) -> None:
    async def scenario() -> None:
        worker = Worker()
        batcher = make(worker, max_queue=1000)
        expected = []
        for index, size in enumerate(sizes):
            values = [float(100 * index + row) for row in range(size)]
            expected.append((batcher.submit(rows(*values)), [-value for value in values]))
            if random.random() < 0.5:
                await turns()
        await turns()
        for _ in sizes:
            if worker._jobs:
                await worker.work()
        assert [logits(answer) for answer, _ in expected] == [values for _, values in expected]
        assert sum(worker.sizes) == sum(sizes)
        assert all(size <= 4 or size in sizes for size in worker.sizes)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("base", "per_row", "most", "expected"),
    [
        (60e-6, 3e-6, 256, 128),  # 128 rows take 0.44 ms, 256 take 0.83: more than 0.5
        (60e-6, 3e-6, 64, 64),
        (60e-6, 3e-6, 100, 64),  # a power of two
        (50e-6, 460e-6, 256, 0),  # one row alone is too long
        (5e-6, 45e-6, 256, 8),  # 8 rows take 0.365 ms, 16 take 0.725
    ],
)
def test_inline_rows_follow_from_what_passes_take(
    base: float, per_row: float, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        batching, "_seconds", lambda _compute, latents: base + per_row * len(latents)
    )
    assert batching.inline_rows(lambda latents: latents, columns=3, most=most) == expected


COUNT = """
import os, torch
from nmoe_flower.inference.serve.batching import expert_thread
from nmoe_flower.models import Expert
torch.set_num_threads(1)
expert = Expert(64, 10)

def threads_after_a_pass():
    with torch.inference_mode():
        expert(torch.zeros(1, 64))
    return len(os.listdir("/proc/self/task"))

before = threads_after_a_pass()
print(expert_thread().submit(threads_after_a_pass).result() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.cpu_count() == 1, reason="counts threads of several cores"
)
def test_the_experts_thread_starts_no_others() -> None:
    """MKL would start one per core for it, which spin, whatever torch was told elsewhere."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", COUNT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "1\n"  # the executor's own
