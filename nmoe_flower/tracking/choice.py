"""Which trackers a run has, checked before anything runs."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from nmoe_flower.catalogue import TRACKERS, TrackerEntry, found
from nmoe_flower.errors import ConfigError, NMoEError
from nmoe_flower.installation import install_hint
from nmoe_flower.tracking.tracker import Tracker

__all__ = ["Track"]

_METHODS = ("begin", "rounds", "finish", "close")


@dataclass(frozen=True)
class Track:
    """The trackers of a run, and under what they are to list it.

    Attributes:
        trackers: Names of `nmoe_flower.catalogue.TRACKERS`, or objects with the methods of a
            `Tracker`.
        experiment: MLflow's experiment, and the group in W&B; None: what the environment says
            (``MLFLOW_EXPERIMENT_NAME``), else ``nmoe-flower``, and no group.
        tags: Texts that a run is to be found by, such as a study's variant.
        name: What the tools are to call the run; None: as its folder is called.
    """

    trackers: Sequence[str | Tracker] = ()
    experiment: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None

    @classmethod
    def of(cls, wanted: "Track | str | Sequence[str | Tracker]") -> "Track":
        """What ``track`` of `nmoe_flower.run` says, each tracker once, and all of them there.

        Args:
            wanted: ``"mlflow,wandb"``, ``["mlflow", "wandb"]``, objects among them, or a `Track`.

        Raises:
            ConfigError: There is no such tracker.
            NMoEError: The tracker's package is not installed.

        >>> Track.of("tensorboard, tensorboard").trackers
        ('tensorboard',)
        """
        track = wanted if isinstance(wanted, Track) else cls(_listed(wanted))
        distinct = list[str | Tracker]()
        for tracker in _listed(track.trackers):
            if tracker not in distinct:
                _check(tracker)
                distinct.append(tracker)
        return replace(track, trackers=tuple(distinct))

    def makers(self) -> dict[str, Callable[[], Tracker]]:
        """What makes each tracker, by what it is called in messages and in the run folder."""
        makers: dict[str, Callable[[], Tracker]] = {}
        for tracker in self.trackers:
            if isinstance(tracker, str):
                makers[tracker] = partial(_load, tracker)
            else:
                names = (f"{type(tracker).__name__}{mark}" for mark in ("", *range(2, 10**6)))
                makers[next(name for name in names if name not in makers)] = partial(_same, tracker)
        return makers


def _listed(wanted: Any) -> list[Any]:
    if isinstance(wanted, str):
        return [name.strip() for name in wanted.split(",") if name.strip()]
    if isinstance(wanted, Sequence) or hasattr(wanted, "__iter__"):
        return list(wanted)
    raise ConfigError(f"track is {wanted!r}; allowed: a list of {', '.join(TRACKERS)}")


def _check(tracker: Any) -> None:
    own = not isinstance(tracker, str | type) and all(hasattr(tracker, m) for m in _METHODS)
    if isinstance(tracker, str) and tracker in TRACKERS:
        _check_installed(TRACKERS[tracker])
    elif not own:
        raise ConfigError(
            f"track names {tracker!r}; allowed: {', '.join(TRACKERS)}"
            + ("" if isinstance(tracker, str) else f", an object with {', '.join(_METHODS)}")
        )


def _check_installed(row: TrackerEntry) -> None:
    spec = importlib.util.find_spec(row.package)
    if spec is None or spec.origin is None:  # a folder of that name, as W&B leaves one, is no code
        raise NMoEError(f"tracking needs {row.label}: {install_hint(row.extra)}")


def _load(name: str) -> Tracker:
    tracker: Tracker = found(TRACKERS[name].tracker)()
    return tracker


def _same(tracker: Tracker) -> Tracker:
    return tracker
