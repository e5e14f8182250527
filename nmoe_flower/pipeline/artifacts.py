"""What stages say and keep: messages to clients, and named arrays of the run."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import ARRAYS, CONFIG

__all__ = ["has", "keep", "kept", "message"]


def message(arrays: ArrayRecord | None, config: Mapping[str, Any] | None = None) -> RecordDict:
    """Arrays and settings as one message."""
    content = RecordDict()
    if arrays is not None:
        content[ARRAYS] = arrays
    if config:
        content[CONFIG] = ConfigRecord(dict(config))
    return content


def keep(run: Run, name: str, arrays: ArrayRecord) -> None:
    """Put arrays among the results of the run, under ``name/``."""
    run.arrays |= {f"{name}/{key}": value for key, value in records.to_numpy(arrays).items()}


def kept(run: Run, name: str) -> ArrayRecord:
    """The arrays that were kept under ``name/``."""
    return records.from_numpy(run.part(f"{name}/"))


def has(run: Run, name: str) -> bool:
    """Whether anything was kept under ``name/``."""
    return any(key.startswith(f"{name}/") for key in run.arrays)
