"""What the runs of a study have come to, read from their folders: those of runs, or published ones.

Both have the same layout, ``<study>/<variant>/seed-N`` below one folder. What a published run began
with stands beside the others' in the study's ``runs.json``.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from nmoe_flower.begun import is_run, read_settings, run_folders
from nmoe_flower.config import Config
from nmoe_flower.errors import NMoEError
from nmoe_flower.files import rounded
from nmoe_flower.report import read_provenance, read_results
from nmoe_flower.results import RunFolder, settings_lost
from nmoe_flower.study.elsewhere import differing, fingerprint_in, folder_of
from nmoe_flower.study.file import Study
from nmoe_flower.study.plan import OF_STAGE_1, failure_in
from nmoe_flower.study.product import StudyRun
from nmoe_flower.study.rows import KEPT_DIGITS, RunOutcome
from nmoe_flower.study.share import Stages1, depends_on, is_ready, trains_stage_1

__all__ = ["outcomes_of", "read_outcome", "refuse_another"]

_MOST_SHOWN = 4


def outcomes_of(
    study: Study, runs: Path, finished: Sequence[Path] = (), *, stage_1: Path | None = None
) -> list[RunOutcome]:
    """Every run of a study, as far as it got.

    Args:
        study: The study.
        runs: The folder that holds the study's folder.
        finished: Folders like it, of runs that finished elsewhere.
        stage_1: The folder of shared stages: a run whose stage 1 has failed there has failed.
            None: ``stage-1`` below ``runs``.

    Raises:
        NMoEError: A folder holds a run of other settings, or its files cannot be read; every one
            is named.
    """
    found, faults = [], []
    stages = Stages1(stage_1 or runs / "stage-1")
    for run in study.runs:
        try:
            place = folder_of(run, runs, finished)
            outcome = read_outcome(run, place)
            if outcome.results is None and not (outcome.failed or RunFolder.has_trained(place)):
                outcome = replace(outcome, failed=_failure_of_stage_1(run, stages))
            found.append(outcome)
        except NMoEError as error:
            faults.append(str(error))
    if faults:
        more = len(faults) - _MOST_SHOWN
        told = [*faults[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise NMoEError("\n".join(told))
    return found


def read_outcome(run: StudyRun, folder: Path) -> RunOutcome:
    """One run, as far as it got.

    Args:
        run: The run.
        folder: Where it is; it need not exist.

    Raises:
        NMoEError: The folder holds a run of other settings or of none, or its files cannot be read.
    """
    if not is_run(folder):
        if lost := settings_lost(folder):
            raise NMoEError(lost)
        return RunOutcome(run, failed=failure_in(folder))
    there = RunFolder.resume(folder)
    trainer = _trainer(there.config, folder.parents[2])
    refuse_another(run, there.config, folder, trainer=trainer)
    if not there.results_path.is_file():
        return RunOutcome(run, path=folder, failed=failure_in(folder))
    known = trainer is not None and (trainer / "results.json").is_file()
    return RunOutcome(
        run,
        _digits_of(there.results_path),
        _digits_of(trainer / "results.json") if trainer is not None and known else None,
        path=folder,
        provenance=read_provenance(folder),
    )


def _failure_of_stage_1(run: StudyRun, stages: Stages1) -> str:
    """Why the stage 1 has failed that a run waits for; empty: it has not, or the run has none."""
    if not trains_stage_1(run.config):
        return ""
    with suppress(NMoEError):  # what is wrong with the folder is the plan's to say
        place = stages.place(run.config)
        if not is_ready(place) and (reason := failure_in(place)):
            return f"{OF_STAGE_1}{reason}"
    return ""


def _digits_of(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = rounded(read_results(path), KEPT_DIGITS)
    return results


def refuse_another(
    run: StudyRun, found: Config, folder: Path, *, trainer: Path | None = None
) -> None:
    """Refuse a folder whose run is not the study's.

    Where data and weights lie may differ. A run that was given its extractor may have the settings
    of stage 1 from the run that trained it.

    Args:
        run: The study's run.
        found: The settings of the run that is there.
        folder: Where it is.
        trainer: The folder of the run that trained its extractor, if that was another one.

    Raises:
        NMoEError: Settings differ; each is named with both values.
    """
    fingerprint = fingerprint_in(folder)
    different = differing(run.config, found.flat(), fingerprint)
    if different and trainer is not None:
        first = depends_on(RunFolder.resume(trainer).config)
        if not differing(run.config, {**found.flat(), **first}, fingerprint):
            return
    if different:
        raise NMoEError(
            f"{folder} holds a run of other settings ({'; '.join(different)}): move it away, or "
            "put its settings back"
        )


def _trainer(config: Config, runs: Path) -> Path | None:
    """The run that trained the extractor, if another one did and can be found."""
    start = config.extractor.start
    if not start:
        return None
    place = Path(start).expanduser()
    of_study = runs.joinpath(*place.parts[-3:])  # study, variant, seed
    known = (place, of_study, _by_name(runs).get(place.name))
    return next((folder for folder in known if folder is not None and is_run(folder)), None)


@cache
def _by_name(runs: Path) -> dict[str, Path]:
    """The runs below a folder of studies, by the names they had when they ran, each its own."""
    found = defaultdict(list)
    for folder in run_folders(runs):
        with suppress(NMoEError):
            found[str(read_settings(folder).get("run", {}).get("name"))].append(folder)
    return {name: folders[0] for name, folders in found.items() if len(folders) == 1}
