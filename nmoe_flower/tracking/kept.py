"""What is known of a run's trackers from one start to the next: ``tracking.json``."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmoe_flower.errors import NMoEError
from nmoe_flower.files import read_json, write_json

__all__ = ["Kept", "TrackingFile"]


@dataclass
class Kept:
    """What one tracker has kept of a run.

    Attributes:
        known: What its ``begin`` returned.
        rounds: The last round it kept, by stage.
        finished: Whether it has the results.
    """

    known: Mapping[str, str] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    finished: bool = False

    def takes(self, record: Mapping[str, Any]) -> bool:
        """Note a record; False if it was kept before, as one that a resumed run repeats."""
        stage, number = str(record["stage"]), int(record["round"])
        if number <= self.rounds.get(stage, 0):
            return False
        self.rounds[stage] = number
        return True

    @property
    def order(self) -> int:
        """A number that grows with every record."""
        return sum(self.rounds.values())


class TrackingFile:
    """The file of all trackers of a run; each writes its own entry, from its own thread.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "tracking.json"
        self._lock = threading.Lock()

    def entry(self, name: str) -> Kept:
        """What a tracker has kept; nothing if the file is missing, or was damaged."""
        entry: Any = self._read().get(name)
        try:
            return Kept(
                known={str(key): str(value) for key, value in entry["known"].items()},
                rounds={str(stage): int(number) for stage, number in entry["rounds"].items()},
                finished=entry["finished"] is True,
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return Kept()

    def write(self, name: str, kept: Kept) -> None:
        """Replace the entry of a tracker, atomically.

        Raises:
            NMoEError: The file cannot be written.
        """
        with self._lock:
            write_json(self._path, {**self._read(), name: vars(kept)})

    def _read(self) -> dict[str, Any]:
        try:
            entries = read_json(self._path)
        except NMoEError:
            return {}
        return entries if isinstance(entries, dict) else {}
