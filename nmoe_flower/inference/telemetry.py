"""What a device tells those who watch it: logs of one JSON object per line, times in buckets.

A flood of the same event is told once.
"""

import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

__all__ = ["SECONDS", "JsonFormatter", "RefusalLog", "log_event"]

# The buckets of every histogram of times: those of who asks and of who answers can be compared.
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

_MOST_KEYS = 1024


def log_event(logger: logging.Logger, level: int, event: str, **fields: Any) -> None:
    """Log an event with its facts. A plain formatter shows them behind the event's name."""
    if logger.isEnabledFor(level):
        text = " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in fields.items())
        logger.log(level, "%s %s", event, text, extra={"event": event, "fields": fields})


class JsonFormatter(logging.Formatter):
    """``{"time": ..., "level": ..., "logger": ..., "event": ..., facts...}``.

    What a peer sent is quoted as JSON quotes it: it cannot begin a line of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class RefusalLog:
    """Logs refusals: the first of a kind at once, then at most one line per ``seconds`` each.

    Args:
        logger: The logger that gets the lines.
        seconds: Seconds between two lines about the same caller and reason.
        clock: Gives the time in seconds; it never runs back.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._seconds = seconds
        self._clock = clock
        self._told: dict[tuple[str, str], float] = {}
        self._silent: dict[tuple[str, str], int] = {}

    def __call__(self, caller: str, reason: str, text: str) -> None:
        """Tell, or only count, that ``caller`` was refused for ``reason``."""
        key, now = (caller, reason), self._clock()
        last = self._told.get(key)
        if last is not None and now - last < self._seconds:
            self._silent[key] = self._silent.get(key, 0) + 1
            return
        if len(self._told) >= _MOST_KEYS:
            self._told.clear()
            self._silent.clear()
        self._told[key] = now
        log_event(
            self._logger,
            logging.WARNING,
            "refused",
            peer=caller,
            reason=reason,
            detail=text,
            untold=self._silent.pop(key, 0),
        )
