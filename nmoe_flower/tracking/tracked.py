"""A run with all its trackers, from its begin to its end."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from nmoe_flower.catalogue import TRACKERS
from nmoe_flower.commands import command_line
from nmoe_flower.progress import Progress
from nmoe_flower.results import RunFolder
from nmoe_flower.tracking.behind import Behind
from nmoe_flower.tracking.choice import Track
from nmoe_flower.tracking.kept import TrackingFile
from nmoe_flower.tracking.tracker import Outcome, TrackedRun

__all__ = ["Tracked"]


class Tracked:
    """Trackers of a run: a context, whose end tells them how the run ended.

    No method raises what a tracker raises; what is to be said of it comes once.

    Args:
        track: The trackers.
        complain: Takes a line of text that no view has shown.
        patience: Seconds that trackers have at the end for what they have not kept.
    """

    def __init__(
        self, track: Track, complain: Callable[[str], None], *, patience: float = 30.0
    ) -> None:
        self._track, self._complain, self._patience = track, complain, patience
        self._complaints: SimpleQueue[str] = SimpleQueue()
        self._trackers: list[Behind] = []
        self._folder: RunFolder | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        outcome: Outcome = "finished" if kind is None else "failed"
        if kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit):
            outcome = "stopped"
        for tracker in self._trackers:
            tracker.end(outcome)
        self._wait()
        self._pass_on(self._complain)

    def begin(self, folder: RunFolder) -> None:
        """Begin to track a run, or go on where its last start left off.

        Args:
            folder: The run folder; records that are there and were not kept are made up for.
        """
        if not self._track.trackers:
            return
        self._folder = folder
        run = TrackedRun(
            self._track.name or folder.path.name,
            folder.path,
            folder.config.flat(),
            folder.provenance(),
            self._track.experiment,
            self._track.tags,
        )
        file = TrackingFile(folder.path)
        for name, make in self._track.makers().items():
            tell = partial(self._complain_of, name)
            self._trackers.append(Behind(name, make, run, file, tell))
        for record in folder.rounds():
            self._round(record)

    def beside(self, view: Progress, *, tell: Callable[[str], None] | None) -> Progress:
        """A view whose records are tracked, too.

        Args:
            view: What shows the run.
            tell: Takes what is to be said of a tracker meanwhile; None: it is said at the end.
        """
        if not self._track.trackers:
            return view
        look = partial(self._pass_on, tell) if tell is not None else (lambda: None)
        return _Both(view, self._round, look)

    def finish(self, figures: Sequence[Path]) -> None:
        """Track what the run found.

        Args:
            figures: The figures that were drawn.
        """
        if self._folder is None:
            return
        for record in self._folder.rounds():  # the last ones, if somebody else wrote them
            self._round(record)
        for tracker in self._trackers:
            tracker.finish(self._folder.results(), figures)

    def _round(self, record: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.round(record)

    def _complain_of(self, name: str, what: str) -> None:
        """Called from their threads, too: it is told from this one."""
        assert self._folder is not None
        resume = command_line("nmoe", "run", "--resume", self._folder.path, "--track", name)
        later = f"; to catch up later: {resume}"
        self._complaints.put(f"tracking: {name} {what}{later if name in TRACKERS else ''}")

    def _pass_on(self, tell: Callable[[str], None]) -> None:
        with suppress(Empty):
            while True:
                tell(self._complaints.get_nowait())

    def _wait(self) -> None:
        """Whoever is tired of waiting says so with Ctrl-C; the run itself is over."""
        until = time.monotonic() + self._patience
        with suppress(KeyboardInterrupt):
            for tracker in self._trackers:
                tracker.wait(max(until - time.monotonic(), 0))
        for tracker in self._trackers:
            if not tracker.wait(0):
                self._complain_of(tracker.name, "has not kept all of this run, and is left")


class _Both:
    """A view that also hands every record on, and now and then looks for what is to be said."""

    def __init__(
        self, view: Progress, also: Callable[[Mapping[str, Any]], None], look: Callable[[], None]
    ) -> None:
        self._view, self._also, self._look = view, also, look

    def update(self, record: Mapping[str, Any]) -> None:
        self._also(record)
        self._look()
        self._view.update(record)

    def answered(self, stage: str, count: int, clients: int) -> None:
        self._look()
        self._view.answered(stage, count, clients)

    def message(self, text: str) -> None:
        self._view.message(text)

    def close(self) -> None:
        self._view.close()
