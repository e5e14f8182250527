"""Whole runs on a table of numbers: every stage, every gate, the controls, both systems."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_wine

New = Callable[..., Any]


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wines of scikit-learn: 178 rows, 13 columns of very different scales, 3 classes."""
    path, table = tmp_path_factory.mktemp("table") / "wine.csv", load_wine()
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([*table.feature_names, "label"])
        lines.writerows([*row, label] for row, label in zip(table.data, table.target, strict=True))
    return path


def settings(wine: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data.dataset": str(wine),
        "data.kind": "features",
        "data.train-per-client": 25,
        "data.test-per-client": 0,
        "extractor.backbone": "mlp",
        "extractor.widths": "16,16",
        **changes,
    }


def accuracies(results: dict[str, Any], test: str = "iid") -> dict[str, float]:
    return {row["gate"]: row["accuracy"] for row in results["rows"] if row["test"] == test}


def test_all_stages_gates_and_controls_work_on_a_table(new_pipeline: New, wine: Path) -> None:
    changes = {"extractor.rounds": 40, "gate.rounds": 10, "extractor.local-steps": 2}
    found = accuracies(new_pipeline("table", settings(wine, **changes))())
    gates = ["random", "rolling", "federated", "local", "prototype", "global", "oracle"]
    controls = ["control:fedavg", "control:local-classifier", "control:centralized"]
    assert set(found) >= {*gates, *controls}
    # A third is a guess; standardised wines are all but linearly separable.
    assert min(found["federated"], found["global"], found["control:fedavg"]) > 0.8


def test_fedsc_learns_a_table_without_labels(new_pipeline: New, wine: Path) -> None:
    changes = {
        "extractor.method": "fedsc", "extractor.server-optimizer": "adamw",
        "extractor.rounds": 20, "extractor.learning-rate": 0.003, "expert.init": "scratch",
        "contrast.dim": 8, "contrast.hidden": 16, "run.controls": "", "gate.methods": "federated",
    }  # fmt: skip
    pipeline = new_pipeline("fedsc", settings(wine, **changes))
    found = accuracies(pipeline())
    assert found["federated"] > 0.5
    probes = [line["metrics"] for line in pipeline.lines if line["stage"] == "extractor-test"]
    assert probes[-1]["probe-accuracy"] > 0.8


def test_the_alignment_system_works_on_a_table(new_pipeline: New, wine: Path) -> None:
    changes = {"run.system": "aligned", "alignment.rounds": 3, "run.controls": ""}
    found = accuracies(new_pipeline("aligned", settings(wine, **changes))())
    assert set(found) == {"mixture", "placed"}
    assert all(np.isfinite(value) for value in found.values())
