"""Show round records: a live view on a terminal, plain lines elsewhere, JSON for scripts.

A round record is one line of ``rounds.jsonl``: ``stage``, ``round`` of ``rounds``, ``metrics``,
``clients``, ``failures``, ``bytes_up``, ``bytes_down`` and ``seconds``.
"""

import contextlib
import html
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TextIO, get_args

from nmoe_flower.errors import ConfigError
from nmoe_flower.files import parse_json
from nmoe_flower.plurals import how_many

__all__ = ["Follower", "Format", "Progress", "duration", "make_progress"]

Format = Literal["auto", "text", "json"]

_INTERVAL = 2.0
_MOST_METRICS = 4
_SILENT = 5.0
_BAR = 12
_REDRAWN = 0.25  # seconds between two drawings in a notebook
_CELL = 100  # columns of a notebook's output
_A_FACT = 12  # "loss 1.250" and what parts it from the rest
_LEAST_NAME = 4


class Progress(Protocol):
    """Where a run reports to."""

    def update(self, record: Mapping[str, Any]) -> None:
        """Show one round record."""

    def answered(self, stage: str, count: int, clients: int) -> None:
        """Know how many of a stage's clients have answered a question that is under way."""

    def message(self, text: str) -> None:
        """Show one line of text."""

    def close(self) -> None:
        """Finish; nothing more will come."""


def make_progress(
    format: Format | None,
    stream: TextIO | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Choose the view: ``auto`` is live on a terminal and in a notebook, plain text elsewhere.

    Args:
        format: ``auto``, ``text`` or ``json``. None: nothing is shown.
        stream: Where the lines go. None: standard output, which a notebook shows in its cell.
        clock: Seconds, of any origin.

    Raises:
        ConfigError: There is no such format.
    """
    if format not in (None, *get_args(Format)):
        raise ConfigError(f"progress is {format!r}; allowed: {', '.join(get_args(Format))}, None")
    if format is None:
        return _Silent()
    notebook = _notebook() if format == "auto" and stream is None else None
    if notebook is not None:
        return _InNotebook(notebook, clock)
    stream = sys.stdout if stream is None else stream
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
            with contextlib.suppress(ConfigError):
                record = parse_json(line)
                if isinstance(record, dict):
                    self._progress.update(record)


class _JsonLines:
    """One JSON object per line; messages are ``{"message": text}``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def update(self, record: Mapping[str, Any]) -> None:
        print(json.dumps(record), file=self._stream, flush=True)

    def answered(self, stage: str, count: int, clients: int) -> None:
        pass  # a script waits for the record

    def message(self, text: str) -> None:
        self.update({"message": text})

    def close(self) -> None:
        self._stream.flush()


class _Silent:
    """Nothing."""

    def update(self, record: Mapping[str, Any]) -> None:
        pass

    def answered(self, stage: str, count: int, clients: int) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Text:
    """Plain lines: the first and last round of a stage, every failure, else one per 2 seconds.

    After 5 seconds without a line comes one that says so, and how many clients have answered.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._shown: dict[str, float] = {}
        self._answers = ""
        self._lock = threading.Lock()
        self._silence = _Silence(self._still, clock)

    def update(self, record: Mapping[str, Any]) -> None:
        stage, now = str(record.get("stage", "?")), self._clock()
        self._answers = ""
        last = record.get("round") == record.get("rounds")
        if stage not in self._shown or last or now - self._shown[stage] >= _INTERVAL:
            self._shown[stage] = now
            self.message(f"{_position(record)}  {_facts(record)}".rstrip())
        for line in _failures(record):
            self.message(line)

    def answered(self, stage: str, count: int, clients: int) -> None:
        self._answers = _answers(stage, count, clients)

    def message(self, text: str) -> None:
        self._print(text)
        self._silence.broken()

    def close(self) -> None:
        self._silence.end()
        self._stream.flush()

    def _still(self, seconds: float) -> None:
        self._print(f"  {self._answers or 'still at work'}, {duration(seconds)} without news")

    def _print(self, text: str) -> None:
        with self._lock:
            print(text, file=self._stream, flush=True)


class _Silence:
    """Calls ``tell`` with the seconds of a silence: after 5, 10, 20, 40, then once a minute.

    A thread watches from the start: who is silent is busy.
    """

    def __init__(self, tell: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._tell, self._clock = tell, clock
        self._since, self._next = clock(), _SILENT
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="silence", daemon=True)
        self._watcher.start()

    def broken(self) -> None:
        """Something was said."""
        self._since, self._next = self._clock(), _SILENT

    def look(self) -> None:
        """Tell, if it is time to."""
        seconds = self._clock() - self._since
        if seconds >= self._next:
            self._next += min(self._next, 60.0)
            self._tell(seconds)

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            try:
                self.look()
            except (OSError, ValueError):  # nobody reads any more
                return


class _Stages:
    """Stages that are done with a tick, the current one with its bar, figures and time left.

    Where there is little room bytes go first, then seconds, further metrics, the bar and the time
    left; stage and round stay.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[str, Mapping[str, Any]] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._left: dict[str, float] = {}
        self._answers = ""
        self._heard = clock()

    def update(self, record: Mapping[str, Any]) -> None:
        stage = str(record.get("stage", "?"))
        self._heard = self._clock()
        number = int(record.get("round", 1))
        now_begun = self._heard - float(record.get("seconds", 0.0)), number - 1
        begun, skipped = self._started.setdefault(stage, now_begun)
        pace = (self._heard - begun) / max(number - skipped, 1)
        self._left[stage] = pace * (int(record.get("rounds", number)) - number)
        self._last[stage] = record
        self._answers = ""
        for line in _failures(record):
            self.message(line)

    def answered(self, stage: str, count: int, clients: int) -> None:
        self._answers = _answers(stage, count, clients)

    def message(self, text: str) -> None:
        raise NotImplementedError

    def _lines(self, *, width: int, height: int) -> list[tuple[bool, str]]:
        """The newest stages: whether each is done, and what stands behind its mark."""
        last = dict(self._last)
        shown = list(last.items())[-max(height, 1) :]
        done = [self._done(stage, record, last) for stage, record in shown]
        lefts = [
            "" if over else f"{duration(self._left[stage])} left"
            for (stage, _), over in zip(shown, done, strict=True)
        ]
        columns = _Columns.that_fit(shown, lefts, width)
        return [
            (over, columns.line(stage, record, left))
            for (stage, record), over, left in zip(shown, done, lefts, strict=True)
        ]

    def _silence(self) -> str:
        """How long nothing was heard, in words; empty if it is not long."""
        silent = self._clock() - self._heard
        if silent < _SILENT:
            return ""
        return f"  {self._answers or 'still at work'}, {duration(silent)} without news"

    def _done(self, stage: str, record: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
        """A stage that converged early ends when another begins; its own tests do not count."""
        if int(record.get("round", 0)) >= int(record.get("rounds", 0)):
            return True
        order = list(last)
        later = order[order.index(stage) + 1 :]
        return any(not name.startswith(f"{stage}-") for name in later)


class _Live(_Stages):
    """The stages on a terminal, drawn anew eight times a second; messages scroll above."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(clock)
        self._console = Console(file=stream)
        # Drawn anew at each refresh: the seconds without news grow, and a terminal may change.
        self._live = Live(console=self._console, refresh_per_second=8, get_renderable=self._view)
        self._live.start()

    def message(self, text: str) -> None:
        self._heard = self._clock()
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._heard = math.inf  # whatever comes, it is no silence
        self._live.refresh()
        self._live.stop()

    def _view(self) -> Any:
        from rich.text import Text

        lines = []
        room = self._console.height - 3
        for done, line in self._lines(width=self._console.width, height=room):
            mark = Text("✓" if done else "▸", "green" if done else "cyan")
            lines.append(mark + Text(f" {line}"))
        if silence := self._silence():
            lines.append(Text(silence, "dim"))
        view = Text("\n").join(lines)
        view.no_wrap, view.overflow = True, "ellipsis"
        return view


class _InNotebook(_Stages):
    """The stages in the output of a notebook's cell, below what was said.

    Args:
        display: IPython's; what it shows can be drawn anew.
        clock: Seconds, of any origin.
    """

    def __init__(self, display: Callable[..., Any], clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._said: list[str] = []
        self._lock = threading.Lock()
        self._drawn = clock()
        self._display = display
        self._handle: Any = None  # until there is something to show
        self._watch = _Silence(lambda seconds: self._draw(), clock)

    def update(self, record: Mapping[str, Any]) -> None:
        begins = str(record.get("stage", "?")) not in self._last
        super().update(record)
        self._watch.broken()
        if begins or self._clock() - self._drawn >= _REDRAWN:
            self._draw()

    def message(self, text: str) -> None:
        self._heard = self._clock()
        self._watch.broken()
        self._said.append(text)
        self._draw()

    def close(self) -> None:
        self._watch.end()
        self._heard = math.inf
        self._draw()

    def _draw(self) -> None:
        with self._lock:
            self._drawn = self._clock()
            view = self._view()
            if self._handle is not None:
                self._handle.update(view, raw=True)
            elif view["text/plain"]:
                self._handle = self._display(view, raw=True, display_id=True)

    def _view(self) -> dict[str, str]:
        """The text, by the kinds of output that a notebook knows."""
        lines = [*self._said]
        for done, line in self._lines(width=_CELL, height=_CELL):
            lines.append(f"{'✓' if done else '▸'} {line}")
        lines += filter(None, [self._silence()])
        text = "\n".join(lines)
        return {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}


def _notebook() -> Callable[..., Any] | None:
    """IPython's ``display``, if this program is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return None
    display: Callable[..., Any] = import_module("IPython.display").display
    return display


@dataclass(frozen=True)
class _Columns:
    """Widths of what stands in a line after its mark; 0 for what has no room."""

    stage: int
    bar: int
    count: int
    left: int
    facts: int

    @classmethod
    def that_fit(
        cls, shown: Sequence[tuple[str, Mapping[str, Any]]], lefts: Sequence[str], width: int
    ) -> Self:
        """Room for stage and round first, then a fact, the time left, the bar, more facts."""
        count = max((len(_count(record)) for _, record in shown), default=0)
        wanted = max((len(stage) for stage, _ in shown), default=0)
        stage = min(wanted, max(width - len("▸ ") - 1 - count, _LEAST_NAME))
        room = width - len("▸ ") - stage - 1 - count
        left = max(map(len, lefts), default=0)
        left = left if room - 1 - left >= _A_FACT else 0
        room -= 1 + left if left else 0
        bar = _BAR if room - 1 - _BAR >= 2 * _A_FACT else 0
        room -= 1 + bar if bar else 0
        return cls(stage, bar, count, left, max(room - 2, 0))

    def line(self, stage: str, record: Mapping[str, Any], left: str) -> str:
        """One stage; a name that is too long keeps its beginning."""
        name = stage if len(stage) <= self.stage else stage[: self.stage - 1] + "…"
        cells = [name.ljust(self.stage)]
        if self.bar:
            part = int(record.get("round", 0)) / max(int(record.get("rounds", 0)), 1)
            full = round(self.bar * min(part, 1.0))
            cells.append("━" * full + "╌" * (self.bar - full))
        cells.append(_count(record).rjust(self.count))
        if self.left:
            cells.append(left.ljust(self.left))
        facts = _facts(record, self.facts)
        return " ".join([*cells, f" {facts}" if facts else ""]).rstrip()


def _position(record: Mapping[str, Any]) -> str:
    width = len(str(record.get("rounds", 0)))
    return f"{record.get('stage', '?')} {record.get('round', 0):>{width}}/{record.get('rounds', 0)}"


def _count(record: Mapping[str, Any]) -> str:
    return f"{record.get('round', 0)}/{record.get('rounds', 0)}"


def _answers(stage: str, count: int, clients: int) -> str:
    return f"{stage}: {count} of {how_many(clients, 'client has', 'clients have')} answered"


def _facts(record: Mapping[str, Any], room: float = math.inf) -> str:
    """The first metrics, clients, bytes and seconds of one round, as far as there is room.

    >>> round = {"metrics": {"loss": 1.25}, "clients": [0, 1], "bytes_up": 2_000_000,
    ...          "bytes_down": 0, "seconds": 0.5}
    >>> _facts(round)
    'loss 1.250  2 ok  2.0 MB  0.50 s/round'
    >>> _facts(round, 32), _facts(round, 24), _facts(round, 11)
    ('loss 1.250  2 ok  0.50 s/round', 'loss 1.250  2 ok', 'loss 1.250')
    """
    numbers = {
        name: value
        for name, value in (record.get("metrics") or {}).items()
        if isinstance(value, int | float)
    }
    # With each fact its rank: the highest goes first.
    facts = [
        (2 * place, f"{name} {value:.3f}")
        for place, (name, value) in enumerate(islice(numbers.items(), _MOST_METRICS))
    ]
    failed = len(record.get("failures") or ())
    clients = len(record.get("clients") or ())
    if clients or failed:
        facts.append((1, f"{clients} ok" + (f", {failed} failed" if failed else "")))
    moved = int(record.get("bytes_up", 0)) + int(record.get("bytes_down", 0))
    if moved:
        facts.append((2 * _MOST_METRICS + 1, _size(moved)))
    if "seconds" in record:
        facts.append((2 * _MOST_METRICS, f"{float(record['seconds']):.2f} s/round"))
    while facts and len("  ".join(text for _, text in facts)) > room:
        facts.remove(max(facts, key=lambda fact: fact[0]))
    return "  ".join(text for _, text in facts)


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
    from rich.filesize import decimal

    return re.sub("bytes?", "B", decimal(int(count)))


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
