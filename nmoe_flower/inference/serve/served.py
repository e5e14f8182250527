"""One version of an expert, loaded and ready: its network and the queue before it."""

import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nmoe_flower.inference.bundle.bundle import Bundle
from nmoe_flower.inference.protocol.peer_pb2 import PredictRequest
from nmoe_flower.inference.serve.batching import Batcher
from nmoe_flower.inference.serve.metrics import ServiceMetrics
from nmoe_flower.models import Expert

__all__ = ["Served", "expert_thread", "load_expert"]

Floats = npt.NDArray[np.float32]

_INLINE_SECONDS = 5e-4  # a pass that may hold up the loop; a thread would cost a fifth of it


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
        bundle: What it was loaded from.
        batcher: Where requests wait.
    """

    def __init__(
        self,
        bundle: Bundle,
        expert: nn.Module,
        executor: Executor,
        metrics: ServiceMetrics,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
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
            on_batch=metrics.batch,
        )

    def fits(self, request: PredictRequest) -> bool:
        """Whether the latents are of this expert's extractor, and the expert is the one wanted."""
        return request.extractor_version == self.bundle.extractor_version and (
            request.expert_version in ("", self.bundle.expert_version)
        )

    def _compute(self, latents: Floats) -> Floats:
        with torch.inference_mode():
            logits: Floats = self._expert(torch.from_numpy(latents)).numpy()
        return logits
