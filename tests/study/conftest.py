import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower.results import RunFolder
from nmoe_flower.study import ROW_METRICS, Study, gates_of, tests_of
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.rows import Row, RunOutcome

Write = Callable[..., Study]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """A study from the text of its file."""

    def write(text: str, name: str = "little") -> Study:
        path = tmp_path / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return Study.load(path)

    return write


def finish(study: Study, at: int, runs: Path, shift: float = 0.0, **more: Any) -> Path:
    """Leave a finished run's folder: rows of every gate and test, a little better by seed."""
    run = study.runs[at]
    folder = RunFolder.create(runs / run.place, run.config)
    told = [metric for metric in ROW_METRICS if metric != "worst_client"]
    rows = [
        {
            "extractor": "fedce", "gate": gate, "test": test, "clients": 10, "top_k": 1,
            **dict.fromkeys(told, 0.5 + run.seed / 100 + shift),
            "per_client": {"accuracy": [0.123456789] * 10, "auc": [0.5] * 10},
        }
        for gate in gates_of(run.config)
        for test in tests_of(run.config)
    ]  # fmt: skip
    shares = [[0.75, 0.25], [0.5, 0.5]]
    stages = {"extractor": {"rounds": 6, "seconds": 60.0, "bytes_up": 1e6, "bytes_down": 1e6}}
    results = {"rows": rows, "routing": {"federated/iid": shares}, "stages": stages,
               "seconds": 60.0, **more}  # fmt: skip
    rounds = [
        {"stage": stage, "round": number, "metrics": metrics, "seconds": 2.0, "bytes_up": 5_000_000,
         "bytes_down": 5_000_000}
        for number in range(1, 7)
        for stage, metrics in (
            ("extractor", {"loss": 1.0}), ("extractor-test", {"accuracy-iid": number / 10 + shift}),
        )
    ]  # fmt: skip
    folder.rounds_path.write_text("".join(json.dumps(one) + "\n" for one in rounds))
    folder.set_provenance(**{"stage-1": {"from": str(runs / "stage-1" / "some-key")}})
    folder.write_results(results)
    return folder.path


def labels_of(study: Study) -> Labels:
    variants = {one.name: one.label for one in study.variants.values()}
    return Labels(variants, {axis.name: axis.values for axis in study.axes.values()})


def outcome(
    study: Study, at: int, cells: Mapping[tuple[str, str], float], **more: Any
) -> RunOutcome:
    """A finished run: accuracy by gate and test."""
    rows = [{"gate": gate, "test": test, "accuracy": v} for (gate, test), v in cells.items()]
    return RunOutcome(study.runs[at], {"rows": rows, **more})


def row(each: Mapping[int, Any], **more: Any) -> Row:
    """A row of little interest but for its values."""
    values = {"variant": "a", "folder": "a", "values": {}, "gate": "federated", "test": "iid",
              "metric": "accuracy", "asked": tuple(each), **more}  # fmt: skip
    return Row(**{**values, "each": each})
