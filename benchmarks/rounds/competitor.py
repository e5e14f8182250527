"""The same rounds in Apple's pfl: its FedAvg over its simulated backend, one process per worker.

Users go to the processes in turn, each process adds up its own, and ``all_reduce`` of
torch.distributed adds up the processes. pfl meets the other processes when it is imported, so the
environment must say where before a loop is made; see ``benchmarks.rounds.plain``. It wants old
versions of what others need, so it may live in an environment of its own, ``--pfl-python``.
"""

import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from benchmarks.rounds.kinds import Kind
from benchmarks.rounds.model import LEARNING_RATE, batches, build_model

__all__ = ["PflLoop"]

_NEVER = 1 << 30


class PflLoop:
    """Rounds of pfl's ``FederatedAveraging`` in this process and those that it met.

    Args:
        kind: What is computed.
        seed: Seed of the weights and the images.
    """

    def __init__(self, kind: Kind, seed: int) -> None:
        from pfl.aggregate.simulate import SimulatedBackend
        from pfl.aggregate.weighting import WeightByDatapoints
        from pfl.algorithm.federated_averaging import FederatedAveraging
        from pfl.data.federated_dataset import FederatedDataset
        from pfl.data.sampling import get_user_sampler
        from pfl.model.pytorch import PyTorchModel

        self._shared = distributed.is_initialized()
        torch.set_num_threads(1)
        self._kind, self._seed = kind, seed
        self._clock = _Clock()
        module = _Classifier(build_model(kind, seed))
        self._model = PyTorchModel(
            module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0)
        )
        data = FederatedDataset(
            self._dataset, get_user_sampler("minimize_reuse", list(range(kind.clients)))
        )
        self._backend = SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()])
        self._algorithm = FederatedAveraging()

    def rounds(self, count: int) -> list[float]:
        """Run ``count`` more rounds; returns the seconds of each."""
        if self._shared:
            distributed.broadcast(torch.tensor([count]), src=0)
        return self._run(count)

    def follow(self) -> None:
        """Take part in the rounds that the first process is asked for, until it is closed."""
        while True:
            count = torch.zeros(1, dtype=torch.int64)
            distributed.broadcast(count, src=0)
            if not count:
                return
            self._run(int(count))

    def close(self) -> None:
        """Let the other processes end."""
        if self._shared:
            distributed.broadcast(torch.tensor([0]), src=0)

    def _run(self, count: int) -> list[float]:
        from pfl.algorithm.base import NNAlgorithmParams
        from pfl.hyperparam import NNTrainHyperParams

        self._clock.stamps = [time.perf_counter()]
        self._algorithm.run(
            NNAlgorithmParams(
                central_num_iterations=self._clock.rounds + count,
                evaluation_frequency=_NEVER,
                train_cohort_size=self._kind.clients,
                val_cohort_size=0,
            ),
            self._backend,
            self._model,
            NNTrainHyperParams(
                local_num_epochs=None,
                local_learning_rate=LEARNING_RATE,
                local_batch_size=self._kind.batch,
                local_num_steps=self._kind.steps,
            ),
            callbacks=[self._clock],
            send_metrics_to_platform=False,
        )
        return [after - before for before, after in pairwise(self._clock.stamps)]

    def _dataset(self, user: int) -> Any:
        """What a user takes its steps on this round: the batches that every runner takes."""
        from pfl.data.dataset import Dataset

        taken = list(batches(self._kind, self._seed, user, self._clock.rounds + 1))
        images, labels = (torch.cat(part) for part in zip(*taken, strict=True))
        return Dataset((images, labels), user_id=str(user))


class _Classifier(nn.Module):
    """A network with the two methods that pfl asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._network(images), labels)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        from pfl.metrics import Weighted

        return {"loss": Weighted(float(self.loss(images, labels)) * len(labels), len(labels))}


class _Clock:
    """A callback: when each round ended, and how many there were."""

    def __init__(self) -> None:
        from pfl.metrics import Metrics

        self._nothing = Metrics
        self.rounds = 0
        self.stamps: list[float] = []

    def on_train_begin(self, *, model: Any) -> Any:
        return self._nothing()

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        self.rounds += 1
        self.stamps.append(time.perf_counter())
        return False, self._nothing()

    def on_train_end(self, *, model: Any) -> None:
        """Nothing is left to do."""
