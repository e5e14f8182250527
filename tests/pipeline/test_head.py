"""A head on frozen features: what FedSC's experts may start from."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nmoe_flower.files import load_arrays
from nmoe_flower.models import Expert
from nmoe_flower.schedules import schedule
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import batch_indices

New = Callable[..., Any]
HEAD: dict[str, Any] = {
    "extractor.method": "fedsc",
    "extractor.rounds": 1,
    "contrast.dim": 8,
    "contrast.hidden": 8,
    "contrast.probe": "none",
    "head.rounds": 4,
    "head.batch-size": 5,
    "head.learning-rate": 0.05,
    "head.weight-decay": 0.1,
    "expert.init": "head",
    "gate.methods": "local",
    "run.controls": "fedavg",
}


def head_of(pipeline: Any) -> dict[str, np.ndarray]:
    prefix = "classifier/head."
    return {k.removeprefix(prefix): v for k, v in pipeline.weights.items() if k.startswith(prefix)}


def test_its_rounds_are_steps_of_adamw_on_everybodys_batches(new_pipeline: New) -> None:
    pipeline = new_pipeline("head", HEAD)
    results = pipeline()
    assert results["stages"]["head"]["rounds"] == 4
    clients = [
        load_arrays(pipeline.folder / f"clients/{client}/latents.safetensors")
        for client in range(4)
    ]
    expert = Expert(64, 10, hidden=(16,))
    start = pipeline.run.artifacts.initial_head
    expert.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in start.items()})
    matrices = [p for p in expert.parameters() if p.ndim > 1]
    others = [p for p in expert.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    rate = schedule("cosine", peak=0.05, steps=4)
    for step in range(4):
        loss = torch.zeros(())
        for client, kept in enumerate(clients):
            seed = derive_seed(0, "head-batches", client)
            (chosen,) = batch_indices(60, 5, first=step, count=1, seed=seed)
            logits = expert(torch.from_numpy(kept["train"][chosen].copy()))
            labels = torch.from_numpy(kept["train-labels"][chosen])
            loss = loss + F.cross_entropy(logits, labels) / 4  # equal shares of the samples
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in groups:
            group["lr"] = rate(step + 1)
        optimizer.step()
    found = head_of(pipeline)
    for name, value in expert.state_dict().items():
        np.testing.assert_allclose(found[name], value.numpy(), atol=2e-4, err_msg=name)
    # With expert.init = head every expert is this head, and so is the averaged classifier.
    own = load_arrays(pipeline.folder / "clients/2/expert.safetensors")
    for name, value in found.items():
        np.testing.assert_array_equal(own[name], value)
    rows = {(row["gate"], row["test"]): row["accuracy"] for row in results["rows"]}
    assert rows["local", "iid"] == rows["control:fedavg", "iid"]


def test_a_run_that_is_killed_in_its_rounds_goes_on_bit_by_bit(
    new_pipeline: New, interrupted: type[Exception]
) -> None:
    whole = new_pipeline("whole", HEAD)
    whole()
    killed = new_pipeline("killed", HEAD)
    with pytest.raises(interrupted):
        killed(stop=lambda record: record["stage"] == "head" and record["round"] == 3)
    killed()
    for name, value in head_of(whole).items():
        np.testing.assert_array_equal(head_of(killed)[name], value)


def test_without_rounds_there_is_no_head(new_pipeline: New) -> None:
    pipeline = new_pipeline("none", HEAD | {"head.rounds": 0, "expert.init": "scratch"})
    results = pipeline()
    assert "head" not in results["stages"]
    assert head_of(pipeline) == {}
