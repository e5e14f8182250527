"""Finished runs, read back from their folders and grouped by configuration."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nmoe_flower.config import Config, Scalar
from nmoe_flower.errors import NMoEError
from nmoe_flower.results import FREE_KEYS, RunFolder

__all__ = ["FinishedRun", "load_runs"]

_ROW_KEYS = ("extractor", "gate", "test", "clients", "top_k", "accuracy")
# Columns of the results table, so no label has to repeat them.
_SHOWN_KEYS = frozenset(
    {"data.scheme", "data.tau", "data.num-clients", "extractor.method", "gate.top-k"}
)
# Which setting belongs to which way of splitting the data.
_SCHEME_KEYS = {
    "dominant": "data.tau",
    "dirichlet": "data.alpha",
    "pathological": "data.classes-per-client",
}


@dataclass(frozen=True)
class FinishedRun:
    """One run that left results.

    Attributes:
        path: Its folder.
        config: Its configuration.
        results: What results.json holds.
        provenance: What provenance.json holds.
        label: The settings in which it differs from the other runs of the report; seeds and
            settings that have a column of their own left out.
    """

    path: Path
    config: Config
    results: dict[str, Any]
    provenance: dict[str, Any]
    label: str = ""

    @property
    def group(self) -> tuple[tuple[str, Scalar], ...]:
        """What two runs share when they differ in nothing but the seed."""
        return tuple(_settings(self.config).items())


def load_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read finished runs and label their configurations; a folder named twice counts once.

    Raises:
        NMoEError: A folder is no run, its run is not finished, its results are not readable, or
            two of them repeat the same configuration and seed.
    """
    if not folders:
        raise NMoEError("name at least one run folder")
    runs = [_load(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    seen: dict[Any, Path] = {}
    for run in runs:
        other = seen.setdefault((run.group, run.config.run.seed), run.path)
        if other != run.path:
            raise NMoEError(
                f"{other} and {run.path} hold the same configuration and seed "
                f"{run.config.run.seed}: they are no independent runs, report one of them"
            )
    return _label(runs)


def _load(folder: Path) -> FinishedRun:
    if not folder.is_dir():
        raise NMoEError(f"{folder} is not a folder")
    if not (folder / "config.toml").is_file():
        raise NMoEError(f"{folder} is not a run folder: it has no config.toml")
    run = RunFolder.resume(folder)
    if not run.results_path.is_file():
        raise NMoEError(
            f"the run in {folder} is not finished: it has no results.json; "
            f"finish it with nmoe run --resume {folder}"
        )
    try:
        results = json.loads(run.results_path.read_bytes())
    except (OSError, ValueError) as error:
        raise NMoEError(f"cannot read {run.results_path}: {error}") from error
    rows = results.get("rows") if isinstance(results, dict) else None
    if not isinstance(rows, list) or not rows:
        raise NMoEError(f"{run.results_path} has no rows")
    for number, row in enumerate(rows):
        missing = [key for key in _ROW_KEYS if not isinstance(row, dict) or key not in row]
        if missing:
            raise NMoEError(f"{run.results_path}: row {number} lacks {', '.join(missing)}")
    cells = [tuple(row[key] for key in _ROW_KEYS[:-1]) for row in rows]
    if len(set(cells)) < len(cells):
        twice = next(cell for cell in cells if cells.count(cell) > 1)
        raise NMoEError(f"{run.results_path} has two rows for {twice}")
    return FinishedRun(folder, run.config, results, run.provenance())


def _settings(config: Config) -> dict[str, Scalar]:
    """The settings that decide the outcome, seed apart; those without effect are left out."""
    idle = {key for scheme, key in _SCHEME_KEYS.items() if scheme != config.data.scheme}
    return {
        key: value
        for key, value in config.flat().items()
        if key not in FREE_KEYS and key not in idle and key != "run.seed"
    }


def _label(runs: list[FinishedRun]) -> list[FinishedRun]:
    settings = [_settings(run.config) for run in runs]
    keys = [key for key in runs[0].config.flat() if key not in _SHOWN_KEYS]
    differing = {key for key in keys if len({str(values.get(key)) for values in settings}) > 1}
    differing |= {"data.alpha", "data.classes-per-client"}
    return [
        replace(
            run,
            label=", ".join(
                f"{key} = {values[key]}" for key in keys if key in differing and key in values
            ),
        )
        for run, values in zip(runs, settings, strict=True)
    ]
