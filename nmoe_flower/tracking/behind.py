"""One tracker in a thread of its own: a run neither waits for it nor fails with it."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nmoe_flower.tracking.kept import Kept, TrackingFile
from nmoe_flower.tracking.tracker import Outcome, TrackedRound, TrackedRun, Tracker, numbers

__all__ = ["Behind"]

_INTERVAL = 2.0  # seconds in which rounds are gathered, to be kept together
_MOST_ROUNDS = 200  # at a time


class Behind:
    """Tells a tracker, and whatever it raises once to whoever follows the run.

    Args:
        name: What messages and tracking.json call it.
        make: Makes the tracker, in the thread.
        run: The run.
        file: What is known from the last start, and will be at the next.
        tell: Takes what is to be said of it.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Tracker],
        run: TrackedRun,
        file: TrackingFile,
        tell: Callable[[str], None],
    ) -> None:
        self.name = name
        self._make, self._run, self._file, self._tell = make, run, file, tell
        self._waiting: list[tuple[Mapping[str, Any], float]] = []
        self._found: tuple[Mapping[str, Any], Sequence[Path]] | None = None
        self._outcome: Outcome = "failed"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"track-{name}", daemon=True)
        self._thread.start()

    def round(self, record: Mapping[str, Any]) -> None:
        """Hand over a round record."""
        self._waiting.append((record, time.time()))

    def finish(self, results: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Hand over the results."""
        self._found = results, figures

    def end(self, outcome: Outcome) -> None:
        """Say that nothing more will come."""
        self._outcome = outcome
        self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Give it time to keep the rest; False if it needs more."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        tracker: Tracker | None = None
        try:
            kept = self._file.entry(self.name)
            if kept.finished:
                return
            tracker = self._make()
            known = dict(tracker.begin(self._run, kept.known))
            if known != kept.known:
                kept = Kept(known)
                self._file.write(self.name, kept)
            while not self._ended.wait(_INTERVAL):
                self._keep(tracker, kept, last=False)
            self._keep(tracker, kept, last=self._found is not None)
            if self._found is not None:
                tracker.finish(*self._found)
            tracker.close(self._outcome)
            if self._found is not None:
                kept.finished = True
                self._file.write(self.name, kept)
        except BaseException as error:  # even a tool that calls sys.exit
            self._tell(f"failed and keeps no more of this run ({said(error)})")
            if tracker is not None:
                with contextlib.suppress(BaseException):
                    tracker.close("failed")

    def _keep(self, tracker: Tracker, kept: Kept, *, last: bool) -> None:
        """Pass on what has come since the last time.

        A round that was interrupted has a record, too, the last one, and is repeated when the run
        goes on. So the newest record waits for the next, which shows whether it is repeated.

        Args:
            tracker: Gets the rounds.
            kept: What it has.
            last: Whether nothing more comes, and the run has finished.
        """
        count = max(len(self._waiting) - (not last), 0)  # others may append meanwhile
        arrived, after = self._waiting[:count], self._waiting[1 : count + 1]
        del self._waiting[:count]
        new = [
            TrackedRound(record["stage"], record["round"], numbers(record), kept.order, when)
            for (record, when), later in zip_longest(arrived, after)
            if not (later and _repeats(later[0], record)) and kept.takes(record)
        ]
        for start in range(0, len(new), _MOST_ROUNDS):
            tracker.rounds(new[start : start + _MOST_ROUNDS])
        if new:
            self._file.write(self.name, kept)


def _repeats(later: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether a run went back, so that ``record`` will come again."""
    return bool(later["stage"] == record["stage"] and later["round"] <= record["round"])


def said(error: BaseException) -> str:
    """Class and first line of an error.

    >>> said(ValueError("no such run")), said(KeyboardInterrupt())
    ('ValueError: no such run', 'KeyboardInterrupt')
    """
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])
