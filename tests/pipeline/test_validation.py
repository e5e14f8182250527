"""Rows of the validation test, for every gate and control; all other rows stay, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower.clients.control import central_rows
from nmoe_flower.clients.device import Device, Store
from nmoe_flower.config import Config

New = Callable[..., Any]
RUNS = {
    "all": {"gate.rounds": 1},
    "latents": {
        "expert.sharing": "latents", "gate.folds": 2, "run.controls": "",
        "gate.methods": "federated,local",
    },
    "alone": {"expert.sharing": "none", "gate.methods": "local", "run.controls": "fedavg"},
    "fedsc": {
        "extractor.method": "fedsc", "extractor.server-optimizer": "adamw", "head.rounds": 1,
        "expert.init": "scratch", "contrast.dim": 8, "contrast.hidden": 16,
        "gate.methods": "local", "run.controls": "",
    },
    "aligned": {"run.system": "aligned", "alignment.rounds": 2, "alignment.extractor": "stage-1"},
    "aligned-trained": {
        "run.system": "aligned", "alignment.rounds": 1, "alignment.extractor": "trained",
    },
}  # fmt: skip
FEW = {"extractor.rounds": 2, "expert.epochs": 1, "run.control-epochs": 1}


@pytest.mark.parametrize("name", RUNS)
def test_other_rows_stay_and_validation_has_one_for_each(new_pipeline: New, name: str) -> None:
    runs = [
        new_pipeline(f"{name}-{size}", FEW | RUNS[name] | {"data.validation-per-client": size})
        for size in (0, 20)
    ]
    without, with_ = (run() for run in runs)
    rest = [row for row in with_["rows"] if row["test"] != "validation"]
    assert rest == without["rows"]
    found = [row for row in with_["rows"] if row["test"] == "validation"]
    for test in ("local", "iid"):
        assert {row["gate"] for row in found} == {r["gate"] for r in rest if r["test"] == test}
    # Accuracies of 20 images each.
    hits = 20 * np.array([row["per_client"]["accuracy"] for row in found])
    assert np.allclose(hits, np.rint(hits))
    assert np.array(with_["partition"]["validation"]).sum(axis=1).tolist() == [20] * 4
    assert "validation" not in without["partition"]
    told = [line["metrics"] for line in runs[1].lines if line["stage"].endswith("-test")]
    if name != "fedsc":  # its watch measures features
        assert told
        assert all("accuracy-validation" in metrics for metrics in told)
    assert not any("accuracy-validation" in line["metrics"] for line in runs[0].lines)


def test_the_central_mixture_answers_validation_images_behind_the_test_split(
    warm_cache: Path, tmp_path: Path
) -> None:
    config = Config.parse(
        {"data.num-clients": 3, "data.validation-per-client": 7, "data.cache-dir": str(warm_cache)}
    )
    devices = [Device(config, client, 3, Store(tmp_path)) for client in range(3)]
    data = devices[0].data
    rows = [central_rows(device, "validation") for device in devices]
    # Clients in order, 7 images each.
    assert np.concatenate(rows).tolist() == list(range(len(data.test), len(data.test) + 21))
    assert central_rows(devices[1], "iid").tolist() == devices[1].indices.test_iid.tolist()
    for device in devices:
        asked = device.tests["validation"]
        assert asked.split is device.data.train
        assert asked.labels.tolist() == data.train.labels[device.indices.validation].tolist()
