"""One run of a study, or one shared stage 1, from what is there to its end."""

import errno
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from nmoe_flower.config import Config
from nmoe_flower.errors import LockedError, NMoEError
from nmoe_flower.files import write_json
from nmoe_flower.lock import locked
from nmoe_flower.progress import Progress
from nmoe_flower.results import RunFolder
from nmoe_flower.study.plan import FAILED
from nmoe_flower.study.product import StudyRun, value_name
from nmoe_flower.study.share import (
    HALF_TAKEN,
    begin_after,
    drop_latents,
    give_latents,
    head_place,
    ready,
    trains_head,
)
from nmoe_flower.tracking import Track

__all__ = ["StudyTask", "carry_out", "is_hopeless", "note_failure", "told", "track_of"]

_ATTEMPTS, _BETWEEN = 16, 2.0  # seconds between two, while somebody else works in the folder
# What no other run could do either: there is no room, or nothing may be written.
_HOPELESS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES})


@dataclass(frozen=True)
class StudyTask:
    """What is to be done in one process.

    Attributes:
        path: The run folder.
        config: The configuration, as nested tables.
        stage_1: The run folder of the shared stage 1; empty: the run needs none.
        stage_alone: Only train the stage.
        workers: Client processes.
        track: What makes a `nmoe_flower.tracking.Track` of the run; empty: nothing is tracked.
    """

    path: str
    config: Mapping[str, Any]
    stage_1: str
    stage_alone: bool
    workers: int
    track: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        path: Path,
        config: Config,
        *,
        stage_1: Path | None,
        alone: bool,
        workers: int,
        track: Track | None = None,
    ) -> "StudyTask":
        """The task for a run or a stage."""
        settings = config.model_dump(by_alias=True, mode="json", exclude_unset=True)
        for key in ("name", "out"):
            settings.get("run", {}).pop(key, None)
        tracked = {} if track is None else asdict(track)
        return cls(str(path), settings, str(stage_1 or ""), alone, workers, tracked)

    def to_line(self) -> str:
        """The task as one line of text."""
        return json.dumps(asdict(self))


def track_of(study: str, run: StudyRun, trackers: Sequence[str]) -> Track:
    """How a study's run is tracked: the study is the experiment; variant, axes and seed are tags.

    Args:
        study: The study's name.
        run: The run.
        trackers: Names of `nmoe_flower.catalogue.TRACKERS`.
    """
    values = {axis: value_name(value) for axis, value in run.values.items()}
    tags = {**values, "study": study, "variant": run.variant, "seed": str(run.seed)}
    return Track(tuple(trackers), study, tags, name=run.name)


def carry_out(
    task: StudyTask, view: Progress, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Do it, or what of it is left.

    Args:
        task: What is to be done.
        view: Where it reports to.
        sleep: Waits so many seconds.

    Raises:
        LockedError: Somebody else works in the run's folder, and goes on doing so.
        NMoEError: It cannot be done. The reason is left in the folder it is about.
    """
    config, path = Config.parse(task.config), Path(task.path)
    stage = Path(task.stage_1) if task.stage_1 else None
    if stage is not None and not (RunFolder.has_trained(path) and not _is_half(path)):
        with _noted(stage):
            ready(stage, config, workers=task.workers, view=view, sleep=sleep)
        if trains_head(config) and not task.stage_alone:
            head = head_place(stage, config)
            with _noted(path):
                ready(head, config, workers=task.workers, view=view, after=stage, sleep=sleep)
            stage = head
    if task.stage_alone:
        return
    with _noted(path):
        for attempt in count(1):
            try:
                _run(path, config, stage, task.workers, view, Track(**task.track))
                break
            except LockedError as error:  # perhaps by one that was stopped, and saves its round
                if attempt == _ATTEMPTS:
                    raise
                if attempt == 1:
                    view.message(f"waiting for a while: {error}")
                sleep(_BETWEEN)
    if stage is not None:
        give_latents(path, stage)
    elif config.extractor.is_given:
        drop_latents(path)


def _run(
    path: Path, config: Config, stage: Path | None, workers: int, view: Progress, track: Track
) -> None:
    from nmoe_flower.running import run_in

    with locked(path, otherwise="another --out"):  # before all that a run checks first
        pass

    def begun(folder: RunFolder) -> None:
        if stage is not None:
            view.message(f"stage 1 is that of {stage}")
            begin_after(stage, folder)

    anew = _is_half(path)
    run_in(path, config, workers=workers, view=view, begun=begun, anew=anew, track=track)


def _is_half(path: Path) -> bool:
    return (path / HALF_TAKEN).exists()


# Somebody else works there, or whoever started it is gone: the run has not failed.
_INTERRUPTIONS = (LockedError, BrokenPipeError)


class _noted:  # noqa: N801 - reads as what it does
    """Keep the reason of a failure in its folder, until it does not fail."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            with suppress(OSError):
                (self.path / FAILED).unlink(missing_ok=True)
        elif isinstance(error, Exception) and not isinstance(error, _INTERRUPTIONS):
            note_failure(self.path, told(error))


def note_failure(path: Path, reason: str) -> None:
    """Write down why a run failed; a disk that refuses must not hide the reason."""
    with suppress(NMoEError, OSError):
        path.mkdir(parents=True, exist_ok=True)
        date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(path / FAILED, {"format-version": 1, "error": reason, "date": date})


def told(error: BaseException) -> str:
    """An error in words: of this package as it is, of others with its kind."""
    return str(error) if isinstance(error, NMoEError) else f"{type(error).__name__}: {error}"


def is_hopeless(error: BaseException | None) -> bool:
    """Whether other runs would fail as well: the disk is full, or nothing may be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _HOPELESS:
            return True
        error = error.__cause__
    return False
