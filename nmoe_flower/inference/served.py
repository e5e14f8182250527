"""One version of an expert, loaded and ready: its network and the queue before it."""

from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from nmoe_flower.inference.batching import Batcher
from nmoe_flower.inference.bundle import Bundle
from nmoe_flower.inference.metrics import ServiceMetrics
from nmoe_flower.inference.peer_pb2 import PredictRequest
from nmoe_flower.models import Expert

__all__ = ["Served", "expert_thread", "load_expert"]

Floats = npt.NDArray[np.float32]


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


class Served:
    """An expert that answers. Every version has a queue of its own, so none is ever mixed up.

    Attributes:
        bundle: What it was loaded from.
        batcher: Where requests wait.
    """

    def __init__(
        self,
        bundle: Bundle,
        expert: Expert,
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
