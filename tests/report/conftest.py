import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower.config import Config
from nmoe_flower.files import write_bytes
from nmoe_flower.report import canvas
from nmoe_flower.results import RunFolder

# Rounds 1 to 6: never three in a row at 0.59 for greedy; joint from round 3 on.
ACCURACY = {"greedy": [0.2, 0.6, 0.6, 0.4, 0.6, 0.6], "joint": [0.3, 0.5, 0.6, 0.64, 0.65, 0.65]}
GATES = ("random", "rolling", "federated", "local", "prototype", "global", "oracle")


def write_rounds(run: RunFolder, rounds: list[dict[str, Any]]) -> None:
    """All records at once: each alone waits for the disk."""
    run.rounds_path.write_text("".join(json.dumps(record) + "\n" for record in rounds))


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
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and files stand where they go: to render them costs most of the time."""
    monkeypatch.setattr(canvas, "_write", lambda figure, path: write_bytes(path, b"a sketch"))


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
        rounds = []
        for number in range(1, 101):
            rounds.append(
                {"stage": "extractor", "round": number, "metrics": {"loss": 2.3 / number**0.3}}
            )
            if number % 10 == 0:
                metrics = {"accuracy-iid": 1 - 0.9 / number**0.3, "accuracy-local": 0.5}
                rounds.append({"stage": "extractor-test", "round": number, "metrics": metrics})
        for number in range(1, 21):
            rounds.append(
                {"stage": "gate/federated", "round": number, "metrics": {"loss": 1 / number}}
            )
        rounds.append({"stage": "experts", "round": 1, "metrics": {}})
        write_rounds(run, rounds)
        run.write_results(results)
        return run.path

    return make


@pytest.fixture
def text_runs(finished_run: Callable[..., Path]) -> list[Path]:
    """Two seeds of two clients, each with text of two domains."""
    bits = {
        "unigram": (1.5, 2.5),
        "local": (2.0, 3.5),
        "oracle": (1.0, 1.0),
        "control:fedavg": (1.0, 2.0),
    }
    runs = []
    for seed in (0, 1):
        path = finished_run(f"text{seed}", {"run.seed": seed}, rows=[(g, "iid", 0.0) for g in bits])
        results = json.loads((path / "results.json").read_text())
        for row, (first, second) in zip(results["rows"], bits.values(), strict=True):
            row |= dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "auc"))
            row |= {
                "bits_per_byte": (first + second) / 2 + seed,
                "worst_bits_per_byte": second,
                "pooled_bits_per_byte": first,
                "perplexity": 2.0**first,
                "domains": {"code": first, "law": second + seed},
                "per_client": {"bits_per_byte": [first, second]},
            }
        (path / "results.json").write_text(json.dumps(results))
        runs.append(path)
    return runs


@pytest.fixture
def alignment_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a finished run of the alignment system: its policy, seed and number of experts."""

    def make(policy: str, seed: int, *, experts: int = 0, rounds: int = 30) -> Path:
        config = Config.parse(
            {
                "run.system": "aligned", "alignment.policy": policy, "run.seed": seed,
                "data.num-clients": 2, "alignment.experts": experts, "gate.top-k": 1,
                "alignment.rounds": rounds,
            }
        )  # fmt: skip
        path = tmp_path / f"{policy}-{seed}-{experts}-{rounds}"
        folder = RunFolder.create(path, config)
        told = []
        for number, accuracy in enumerate(ACCURACY[policy], start=1):
            shared = {
                "round": number,
                "rounds": 6,
                "clients": [0, 1],
                "failures": [],
                "seconds": 1.0,
            }
            metrics = {"loss": 1.0, "elapsed-seconds": 2.0 * number, "load-variation": 0.5,
                       "bytes-to-part": 1.0 + 0.001 * number}  # fmt: skip
            told.append(
                {**shared, "stage": "alignment",
                 "metrics": {**metrics, "load-variation-total": 0.25},
                 "bytes_up": 1_000_000, "bytes_down": 3_000_000}
            )  # fmt: skip
            told.append(
                {**shared, "stage": "alignment-test", "metrics": {"accuracy-iid": accuracy},
                 "bytes_up": 0, "bytes_down": 9}
            )  # fmt: skip
        rows = [
            {
                "extractor": "trained", "gate": gate, "test": test, "clients": 2, "top_k": 1,
                "accuracy": accuracy, "balanced_accuracy": 0.5, "macro_f1": 0.5,
            }
            for gate, test, accuracy in (
                ("mixture", "iid", ACCURACY[policy][-1] + 0.02 * seed),
                ("mixture", "local", 0.6), ("placed", "iid", 0.2), ("placed", "local", 0.9),
            )
        ]  # fmt: skip
        alignment = {
            "policy": policy, "rounds": 6, "load_variation": 0.25, "assignments": [[6, 0], [2, 4]],
            "bytes_down": [18_000_000, 0], "bytes_up": [2_000_000, 4_000_000],
            "simulated_seconds": 12.0,
        }  # fmt: skip
        write_rounds(folder, told)
        folder.write_results({"rows": rows, "routing": {}, "alignment": alignment, "stages": {}})
        return path

    return make
