"""The seam: what a tracker is told, in an order and form that suit every tool."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

__all__ = [
    "Outcome",
    "TrackedRound",
    "TrackedRun",
    "Tracker",
    "final_metrics",
    "final_table",
    "flattened",
    "numbers",
    "table_text",
]

Outcome = Literal["finished", "stopped", "failed"]

_STRANGE = re.compile(r"[^\w./-]")


@dataclass(frozen=True)
class TrackedRun:
    """The run that is tracked, as it begins.

    Attributes:
        name: What the tool is to call it.
        folder: The run folder, absolute.
        config: The resolved configuration by dotted key.
        provenance: Versions, revision, seed and machine, as provenance.json has them.
        experiment: Under what the tool is to list it, such as a study's name; None: its default.
        tags: More that is to be found by, such as a study's variant.
    """

    name: str
    folder: Path
    config: Mapping[str, str | int | float | bool]
    provenance: Mapping[str, Any]
    experiment: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def labels(self) -> dict[str, str]:
        """The tags and the provenance, flat: ``versions.torch``, ``git.revision``, ``seed``."""
        return {**flattened(self.provenance), **self.tags}


@dataclass(frozen=True)
class TrackedRound:
    """One round record as numbers.

    Attributes:
        stage: What was asked, as in rounds.jsonl.
        round: Which round of its stage, from 1.
        metrics: Numbers by ``<stage>/<name>``: the metrics, seconds, bytes and failures.
        order: Which round of the whole run, ever growing.
        time: When it ended, in seconds since 1970.
    """

    stage: str
    round: int
    metrics: Mapping[str, float]
    order: int
    time: float


class Tracker(Protocol):
    """A tool that keeps runs. Calls come one after the other, from a thread of its own.

    Whatever it raises is told once, and the run goes on without it.
    """

    def begin(self, run: TrackedRun, known: Mapping[str, str]) -> Mapping[str, str]:
        """Begin a tracked run, or go on with the one that ``known`` names, if it is still there.

        Args:
            run: The run.
            known: What this returned when the run began; empty for a new one.

        Returns:
            What is to be known to go on after the run was stopped. If it differs from ``known``,
            every round is told again.
        """

    def rounds(self, rounds: Sequence[TrackedRound]) -> None:
        """Keep some rounds, in order; what was kept must outlive this process."""

    def finish(self, results: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Keep what results.json holds, and the figures that were drawn."""

    def close(self, outcome: Outcome) -> None:
        """Say how the run ended; nothing more will come until it is resumed."""


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a round record by ``<stage>/<name>``.

    >>> numbers({"stage": "gate/rolling", "round": 1, "metrics": {"loss": 2.0, "share": [1]},
    ...          "seconds": 0.5, "bytes_up": 30, "bytes_down": 12, "failures": []})
    {'gate/rolling/loss': 2.0, 'gate/rolling/seconds': 0.5, 'gate/rolling/bytes': 42, \
'gate/rolling/failures': 0}
    """
    found = {
        **record["metrics"],
        "seconds": record["seconds"],
        "bytes": record["bytes_up"] + record["bytes_down"],
        "failures": len(record["failures"]),
    }
    return {
        tidy(f"{record['stage']}/{name}"): value
        for name, value in found.items()
        if isinstance(value, int | float)
    }


def final_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """The final table by ``<gate>/<test>/<metric>``, the means over clients.

    >>> final_metrics({"rows": [{"gate": "federated+prior", "test": "iid", "seed": 0,
    ...                          "accuracy": 0.9, "auc": None, "per_client": {"accuracy": [0.9]}}]})
    {'federated_prior/iid/accuracy': 0.9}
    """
    return {
        tidy(f"{row['gate']}/{row['test']}/{name}"): row[name]
        for row in results["rows"]
        for name in row.get("per_client", {})
        if isinstance(row.get(name), int | float)
    }


def final_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The final table as columns and rows: gate, test, and each metric's mean over clients."""
    rows = results["rows"]
    names = dict.fromkeys(name for row in rows for name in row.get("per_client", {}))
    columns = ["gate", "test", *names]
    return columns, [[row.get(column) for column in columns] for row in rows]


def table_text(results: Mapping[str, Any]) -> str:
    """The final table as CSV."""
    columns, rows = final_table(results)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as text by dotted key; what is None is left out.

    >>> flattened({"git": {"revision": "1f", "dirty": False}, "seed": 0, "ray": None})
    {'git.revision': '1f', 'git.dirty': 'False', 'seed': '0'}
    """
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = str(value)
    return found


def tidy(name: str) -> str:
    """A name that every tool takes, alike.

    >>> tidy("control:fedavg/iid/accuracy")
    'control_fedavg/iid/accuracy'
    """
    return _STRANGE.sub("_", name)
