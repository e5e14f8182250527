"""Weights & Biases: files in the run folder for ``wandb sync``, unless ``WANDB_MODE`` says more."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nmoe_flower.errors import NMoEError
from nmoe_flower.tracking.tracker import (
    Outcome,
    TrackedRound,
    TrackedRun,
    final_metrics,
    final_table,
    tidy,
)

if TYPE_CHECKING:
    from wandb import Run

__all__ = ["WeightsAndBiases"]

_PROJECT = "nmoe-flower"
_LOCAL_MODES = ("offline", "dryrun", "disabled")
_LONGEST_TAG = 64
_EXIT_CODES: dict[Outcome, int] = {"finished": 0, "stopped": 130, "failed": 1}


class WeightsAndBiases:
    """A `Tracker` that writes ``wandb/`` into the run folder.

    Each stage counts its own rounds (``<stage>/round``); the final table is in the summary and a
    table of its own, the figures are images, and the run folder's small files are an artifact.
    """

    def __init__(self) -> None:
        self._run: Run | None = None
        self._folder = Path()
        self._stages = set[str]()

    def begin(self, run: TrackedRun, known: Mapping[str, str]) -> Mapping[str, str]:
        """Begin a run, or another part of the one that is known."""
        mode = os.environ.get("WANDB_MODE") or "offline"
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported
        import wandb

        local = mode in _LOCAL_MODES
        if not local and not wandb.login(prompt=False):
            raise NMoEError(f"WANDB_MODE is {mode}, but nobody is logged in: wandb login")
        self._folder = run.folder
        self._run = wandb.init(
            project=known.get("project") or os.environ.get("WANDB_PROJECT") or _PROJECT,
            name=run.name,
            group=run.experiment,
            tags=[f"{key}:{value}"[:_LONGEST_TAG] for key, value in run.tags.items()],
            config={**run.config, "provenance": run.labels()},
            id=known.get("run"),
            resume=None if local else "allow",
            dir=os.environ.get("WANDB_DIR") or str(run.folder),
            mode=cast(Any, mode),
            reinit="create_new",  # a notebook may have a run of its own
            settings=wandb.Settings(silent=True, console="off"),
        )
        return {"project": self._run.project, "run": self._run.id}

    def rounds(self, rounds: Sequence[TrackedRound]) -> None:
        """Log the numbers of each round as one step."""
        assert self._run is not None
        for one in rounds:
            axis = tidy(f"{one.stage}/round")
            if axis not in self._stages:
                self._stages.add(axis)
                self._run.define_metric(tidy(f"{one.stage}/*"), step_metric=axis)
            values = {**one.metrics, axis: one.round}
            self._run.log(values, step=one.order, commit=True)  # now, not with the next one

    def finish(self, results: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Log the table, the figures and the run folder's small files."""
        import wandb

        assert self._run is not None
        self._run.summary.update(final_metrics(results))
        columns, rows = final_table(results)
        images = {
            f"figures/{path.stem}": wandb.Image(str(path))
            for path in figures
            if path.suffix == ".png"
        }
        self._run.log({"results": wandb.Table(columns=[*columns], data=rows), **images})
        files = wandb.Artifact(f"run-{self._run.id}", type="run-folder")
        for name in ("config.toml", "provenance.json", "results.json"):
            files.add_file(str(self._folder / name))
        for path in figures:
            files.add_file(str(path), f"figures/{path.name}")
        self._run.log_artifact(files)

    def close(self, outcome: Outcome) -> None:
        """End the run, or this part of it."""
        if self._run is not None:
            self._run.finish(exit_code=_EXIT_CODES[outcome])
