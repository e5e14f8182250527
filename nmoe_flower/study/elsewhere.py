"""Where a run of a study is: in the folder of runs, or where it finished before."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nmoe_flower.begun import is_run
from nmoe_flower.config import Config
from nmoe_flower.errors import NMoEError
from nmoe_flower.results import FREE_KEYS, PATH_KEYS, RunFolder
from nmoe_flower.study.product import StudyRun
from nmoe_flower.study.share import FILLED_IN

__all__ = ["differing", "folder_of"]


def folder_of(run: StudyRun, runs: Path, finished: Sequence[Path] = ()) -> Path:
    """The folder of a run; what the folder of runs holds goes before all others.

    Args:
        run: The run.
        runs: The folder that holds the study's folder.
        finished: Folders like it, of runs that finished elsewhere, as ``results``. Of these a run
            with the settings of this one counts, and no other.

    Returns:
        A folder that holds the run, or else the one below ``runs`` where it would be.
    """
    own = runs / run.place
    if not is_run(own):
        for root in finished:
            there = root / run.place
            if is_run(there) and (there / "results.json").is_file() and _is(run, there):
                return there
    return own


def _is(run: StudyRun, folder: Path) -> bool:
    with suppress(NMoEError):
        return not differing(run.config, RunFolder.resume(folder).config.flat())
    return False


def differing(asked: Config, there: Mapping[str, Any]) -> list[str]:
    """Keys in which settings differ, with both values.

    Where data and weights lie is the machine's affair; a run fills in what its data say.

    Args:
        asked: The settings of a study's run.
        there: Those that are there, by dotted key.
    """
    return [
        f"{key} = {there[key]!r}, the study has {value!r}"
        for key, value in asked.flat().items()
        if key not in FREE_KEYS | set(PATH_KEYS)
        and value != there[key]
        and not (key in FILLED_IN and not value)
    ]
