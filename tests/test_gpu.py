"""What only a machine with a GPU can show; elsewhere these say so and are left out.

scripts/gpu-check runs them, and times what clients cost there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower.clients.device import Device, Store
from nmoe_flower.config import Config
from nmoe_flower.rendezvous import run_together
from nmoe_flower.results import RunFolder
from nmoe_flower.running import run
from nmoe_flower.training import (
    RowBatches,
    SharedLoss,
    autocast,
    batch_indices,
    fit,
    seeded,
    sgd,
    use_bf16,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA device here"),
]

CUDA = torch.device("cuda")
TINY: dict[str, Any] = {
    "data.num-clients": 4,
    "data.train-per-client": 60,
    "data.test-per-client": 30,
    "extractor.rounds": 3,
    "expert.hidden": "16",
    "gate.rounds": 3,
    "gate.methods": "federated,local",
    "run.controls": "",
    "run.precision": "float32",
}


def accuracies(folder: Path, **options: Any) -> dict[tuple[str, str], float]:
    found = run(TINY, set=options, out=folder, workers=0, progress=None, figures=False)
    return {(row["gate"], row["test"]): row["accuracy"] for row in found.rows}


def test_a_run_scores_as_on_a_cpu(tmp_path: Path) -> None:
    wanted = accuracies(tmp_path, **{"run.device": "cpu"})
    assert accuracies(tmp_path, **{"run.device": "cuda"}) == pytest.approx(wanted, abs=0.1)


def test_clients_that_train_together_score_as_alone(tmp_path: Path) -> None:
    alone = accuracies(tmp_path, **{"run.device": "cuda"})
    together = accuracies(tmp_path, **{"run.device": "cuda", "engine.stack": 4})
    assert together == pytest.approx(alone, abs=0.05)


def test_several_clients_share_a_gpu(tmp_path: Path) -> None:
    found = run(TINY, set={"run.device": "cuda"}, out=tmp_path, workers=2, progress=None)
    assert RunFolder.has_trained(found.path)


def test_networks_and_weights_are_where_they_compute(tmp_path: Path) -> None:
    config = Config.parse({**TINY, "run.device": "cuda"})
    network = Device(config, 0, 4, Store(tmp_path)).classifier()
    assert {p.device.type for p in network.parameters()} == {"cuda"}
    kernels = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_bf16_is_computed_where_the_hardware_has_it() -> None:
    has = torch.cuda.is_bf16_supported(including_emulation=False)
    assert use_bf16("auto", CUDA, worthwhile=True) == has
    layer = torch.nn.Linear(2, 2, device=CUDA)
    with autocast(True, CUDA):
        assert layer(torch.ones(1, 2, device=CUDA)).dtype == torch.bfloat16


def test_a_stack_ends_where_the_loop_ends() -> None:
    def loss(
        network: Any, batch: tuple[torch.Tensor, ...], *, reduction: str = "mean"
    ) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(network(batch[0]), batch[1], reduction=reduction)

    def train(network: torch.nn.Module, seed: int) -> np.ndarray:
        rows = torch.randn(9 + seed, 8, generator=torch.Generator().manual_seed(seed)).to(CUDA)
        batches = RowBatches(
            (rows, torch.arange(9 + seed, device=CUDA) % 3),
            batch_indices(9 + seed, 4 + seed, first=0, count=3 + seed, seed=seed),
        )
        optimizer = sgd(network, learning_rate=0.1, momentum=0.9)
        fit(network, batches, SharedLoss(loss, network), optimizer=optimizer)
        return torch.cat([p.detach().flatten() for p in network.parameters()]).cpu().numpy()

    def networks() -> list[torch.nn.Module]:
        with seeded(0):
            return [torch.nn.Linear(8, 3).to(CUDA) for _ in range(3)]

    wanted = [train(network, seed) for seed, network in enumerate(networks())]
    calls = [lambda n=network, s=seed: train(n, s) for seed, network in enumerate(networks())]
    for one, other in zip(wanted, run_together(calls), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)


def test_seeded_leaves_the_stream_of_the_device_as_it_was() -> None:
    torch.manual_seed(1)
    first, second = (torch.rand(1, device=CUDA) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1, device=CUDA), first)
    with seeded(1):
        assert torch.equal(torch.rand(1, device=CUDA), first)
    assert torch.equal(torch.rand(1, device=CUDA), second)
