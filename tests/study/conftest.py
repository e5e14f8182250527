from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower.study import Study
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
