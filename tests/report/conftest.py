from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower.config import Config
from nmoe_flower.report import canvas
from nmoe_flower.results import RunFolder

GATES = ("random", "rolling", "federated", "local", "prototype", "global", "oracle")


def sample_results(config: Config) -> dict[str, Any]:
    """Results shaped like a real run's, with the seed's own noise."""
    rng = np.random.default_rng(config.run.seed)
    clients = config.data.num_clients
    rows = []
    for test in ("local", "iid"):
        for place, gate in enumerate(GATES):
            for suffix in ("", "+prior"):
                middle = 0.6 + 0.04 * place + (0.08 if suffix and test == "local" else 0)
                per_client = np.clip(rng.normal(middle, 0.03, clients), 0, 1)
                rows.append(
                    sample_row(config, gate + suffix, test, float(per_client.mean()))
                    | {"per_client": {"accuracy": per_client.tolist()}}
                )
        for place, control in enumerate(("fedavg", "local-classifier", "centralized")):
            row = sample_row(config, f"control:{control}", test, 0.5 + 0.2 * place)
            rows.append(
                {k: v for k, v in row.items() if k not in {"local_ratio", "bytes_per_sample"}}
            )
    diagonal = np.full((clients, clients), 0.5 / (clients - 1)) + np.eye(clients) * 0.5
    diagonal /= diagonal.sum(1, keepdims=True)
    counts = np.full((clients, 10), 4) + 30 * np.eye(clients, 10, dtype=int)
    return {
        "rows": rows,
        "routing": {
            f"{method}/{test}": diagonal.tolist()
            for method in ("federated", "federated+prior", "random", "control:centralized")
            for test in ("iid", "local")
        },
        "stages": {"extractor": {"seconds": 31.5, "bytes_up": 2_500_000, "bytes_down": None}},
        "partition": {
            "train": counts.tolist(),
            "test": (counts // 3).tolist(),
            "classes": [str(digit) for digit in range(10)],
        },
        "seconds": 90.0,
    }


def sample_row(config: Config, gate: str, test: str, accuracy: float) -> dict[str, Any]:
    return {
        "extractor": "fedce",
        "gate": gate,
        "tau": config.data.tau,
        "scheme": config.data.scheme,
        "test": test,
        "seed": config.run.seed,
        "clients": config.data.num_clients,
        "top_k": config.gate.top_k,
        "accuracy": accuracy,
        "balanced_accuracy": accuracy - 0.02,
        "macro_f1": accuracy - 0.03,
        "auc": 0.95,
        "local_ratio": 0.25,
        "bytes_per_sample": 1566.0,
        "per_client": {},
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures as they were finished, instead of files."""
    kept: list[Any] = []
    monkeypatch.setattr(canvas, "_write", lambda figure, path: kept.append(figure))
    return kept


@pytest.fixture
def finished_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a finished run; ``rows`` replaces the sample's rows by (gate, test, accuracy)."""

    def make(
        name: str,
        values: dict[str, Any] | None = None,
        *,
        rows: list[tuple[str, str, float]] | None = None,
    ) -> Path:
        config = Config.parse({"run.name": name, **(values or {})})
        run = RunFolder.create(tmp_path / name, config)
        results = sample_results(config)
        if rows is not None:
            results["rows"] = [sample_row(config, *row) for row in rows]
        for number in range(1, 101):
            run.append_round(
                {"stage": "extractor", "round": number, "metrics": {"loss": 2.3 / number**0.3}}
            )
            if number % 10 == 0:
                metrics = {"accuracy-iid": 1 - 0.9 / number**0.3, "accuracy-local": 0.5}
                run.append_round({"stage": "extractor-test", "round": number, "metrics": metrics})
        for number in range(1, 21):
            record = {"stage": "gate/federated", "round": number, "metrics": {"loss": 1 / number}}
            run.append_round(record)
        run.append_round({"stage": "experts", "round": 1, "metrics": {}})
        run.write_results(results)
        return run.path

    return make
