"""Show round records: a live view on a terminal, plain lines elsewhere, JSON for scripts.

A round record is one line of ``rounds.jsonl``: ``stage``, ``round`` of ``rounds``, ``metrics``,
``clients``, ``failures``, ``bytes_up``, ``bytes_down`` and ``seconds``.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

__all__ = ["Follower", "Format", "Progress", "duration", "make_progress"]

Format = Literal["auto", "text", "json"]

_INTERVAL = 2.0
_MOST_METRICS = 4


class Progress(Protocol):
    """Where a run reports to."""

    def update(self, record: Mapping[str, Any]) -> None:
        """Show one round record."""

    def message(self, text: str) -> None:
        """Show one line of text."""

    def close(self) -> None:
        """Finish; nothing more will come."""


def make_progress(
    format: Format, stream: TextIO, *, clock: Callable[[], float] = time.monotonic
) -> Progress:
    """Choose the view: ``auto`` is live on a terminal and plain text elsewhere."""
    if format == "json":
        return _JsonLines(stream)
    if format == "auto" and stream.isatty():
        return _Live(stream, clock)
    return _Text(stream, clock)


class Follower:
    """Read a growing ``rounds.jsonl``: each call passes on the records that are new.

    The file may not exist yet, its last line may be half written, and a resumed run may make it
    shorter: then reading goes on from its new end.

    Args:
        path: The file.
        progress: Takes the records.
        from_end: Skip what is there already, as after a resume.
    """

    def __init__(self, path: Path, progress: Progress, *, from_end: bool = False) -> None:
        self._path = path
        self._progress = progress
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def __call__(self) -> None:
        """Pass on every complete new line."""
        try:
            size = self._path.stat().st_size
            if size <= self._offset:
                self._offset = size
                return
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except OSError:
            return
        complete = new[: new.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    self._progress.update(record)


class _JsonLines:
    """One JSON object per line; messages are ``{"message": text}``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def update(self, record: Mapping[str, Any]) -> None:
        print(json.dumps(record), file=self._stream, flush=True)

    def message(self, text: str) -> None:
        self.update({"message": text})

    def close(self) -> None:
        self._stream.flush()


class _Text:
    """Plain lines: the first and last round of a stage, every failure, else one per 2 seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._shown: dict[str, float] = {}

    def update(self, record: Mapping[str, Any]) -> None:
        stage, now = str(record.get("stage", "?")), self._clock()
        last = record.get("round") == record.get("rounds")
        if stage not in self._shown or last or now - self._shown[stage] >= _INTERVAL:
            self._shown[stage] = now
            self.message(f"{_position(record)}  {_facts(record)}".rstrip())
        for line in _failures(record):
            self.message(line)

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        self._stream.flush()


class _Live:
    """Stages that are done with a tick, the current one with its bar, figures and time left."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._clock = clock
        self._last: dict[str, Mapping[str, Any]] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._console = Console(file=stream)
        self._live = Live(console=self._console, refresh_per_second=8, transient=False)
        self._live.start()

    def update(self, record: Mapping[str, Any]) -> None:
        stage = str(record.get("stage", "?"))
        begun = self._clock() - float(record.get("seconds", 0.0))
        self._started.setdefault(stage, (begun, int(record.get("round", 1)) - 1))
        self._last[stage] = record
        for line in _failures(record):
            self.message(line)
        self._live.update(self._table())

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._live.update(self._table())
        self._live.stop()

    def _table(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 1))
        for _ in range(5):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for stage, record in self._last.items():
            done, total = int(record.get("round", 0)), int(record.get("rounds", 0))
            over = done >= total or self._overtaken(stage)
            mark = "[green]✓[/]" if over else "[cyan]▸[/]"
            bar = ProgressBar(total=max(total, 1), completed=done, width=12)
            left = "" if over else self._time_left(stage, done, total)
            table.add_row(mark, stage, bar, f"{done}/{total}", left, _facts(record))
        return table

    def _overtaken(self, stage: str) -> bool:
        """A stage that converged early ends when another begins; its own tests do not count."""
        order = list(self._last)
        later = order[order.index(stage) + 1 :]
        return any(not name.startswith(f"{stage}-") for name in later)

    def _time_left(self, stage: str, done: int, total: int) -> str:
        begun, skipped = self._started[stage]
        pace = (self._clock() - begun) / max(done - skipped, 1)
        return f"{duration(pace * (total - done))} left"


def _position(record: Mapping[str, Any]) -> str:
    width = len(str(record.get("rounds", 0)))
    return f"{record.get('stage', '?')} {record.get('round', 0):>{width}}/{record.get('rounds', 0)}"


def _facts(record: Mapping[str, Any]) -> str:
    """The first metrics, clients, bytes and seconds of one round.

    >>> _facts({"metrics": {"loss": 1.25}, "clients": [0, 1], "bytes_up": 2_000_000,
    ...         "bytes_down": 0, "seconds": 0.5})
    'loss 1.250  2 ok  2.0 MB  0.50 s/round'
    """
    numbers = {
        name: value
        for name, value in (record.get("metrics") or {}).items()
        if isinstance(value, int | float)
    }
    facts = [f"{name} {value:.3f}" for name, value in islice(numbers.items(), _MOST_METRICS)]
    failed = len(record.get("failures") or ())
    clients = len(record.get("clients") or ())
    if clients or failed:
        facts.append(f"{clients} ok" + (f", {failed} failed" if failed else ""))
    moved = int(record.get("bytes_up", 0)) + int(record.get("bytes_down", 0))
    if moved:
        facts.append(_size(moved))
    if "seconds" in record:
        facts.append(f"{float(record['seconds']):.2f} s/round")
    return "  ".join(facts)


def _failures(record: Mapping[str, Any]) -> list[str]:
    return [
        f"  {_position(record)}: client {failure.get('partition')} dropped: {failure.get('reason')}"
        for failure in record.get("failures") or ()
    ]


def _size(count: float) -> str:
    """Bytes for people, in powers of 1000.

    >>> _size(999), _size(1500), _size(2.5e9)
    ('999 B', '1.5 kB', '2.5 GB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(8), duration(75), duration(7300)
    ('8 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
