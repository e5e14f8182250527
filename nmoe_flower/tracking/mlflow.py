"""MLflow: a local store in the working folder, unless ``MLFLOW_TRACKING_URI`` names another.

The store is ``mlflow.db``, with files in ``mlruns/``: the one that MLflow uses, too, where nothing
is said.
"""

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmoe_flower.tracking.tracker import (
    Outcome,
    TrackedRound,
    TrackedRun,
    final_metrics,
    table_text,
    tidy,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["MLflow"]

_EXPERIMENT = "nmoe-flower"
_SQLITE = "sqlite:///"
_FILES = "./mlruns"
_MOST_PARAMS = 100  # of one request, as MLflow has it
_MOST_METRICS = 1000
_LONGEST = 5000  # characters of a value
_STATUS: dict[Outcome, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow:
    """A `Tracker` that keeps a run in an MLflow store.

    Parameters are the configuration, tags say where the run comes from; the final table is metrics
    and ``results.csv``, beside the small files and the figures of the run folder.
    """

    def __init__(self) -> None:
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._folder = Path()

    def begin(self, run: TrackedRun, known: Mapping[str, str]) -> Mapping[str, str]:
        """Open the store, and begin a run or take up the one that is known."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)  # what it raises says the same
        warnings.filterwarnings("ignore", "The ``noload`` loader", DeprecationWarning)  # MLflow's
        self._folder = run.folder
        store = known.get("store") or os.environ.get("MLFLOW_TRACKING_URI") or _local()
        _make_whole(store)
        self._client = MlflowClient(tracking_uri=store)
        if known and self._is_there(known.get("run", "")):
            self._run_id = known["run"]
            self._client.update_run(self._run_id, status="RUNNING")
            return known
        experiment = self._experiment(
            run.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        )
        begun = self._client.create_run(experiment, run_name=run.name, tags=_tags(run))
        self._run_id = begun.info.run_id
        self._log_params(run.config)
        return {"store": store, "run": self._run_id}

    def rounds(self, rounds: Sequence[TrackedRound]) -> None:
        """Send the numbers of many rounds at once."""
        self._log_metrics(
            [
                (name, value, round(1000 * one.time), one.round)
                for one in rounds
                for name, value in one.metrics.items()
            ]
        )

    def finish(self, results: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Send the table, the run folder's small files and the figures."""
        assert self._client is not None
        now = round(1000 * time.time())
        self._log_metrics([(name, value, now, 0) for name, value in final_metrics(results).items()])
        self._client.log_text(self._run_id, table_text(results), "results.csv")
        for name in ("config.toml", "provenance.json", "results.json"):
            self._client.log_artifact(self._run_id, str(self._folder / name))
        for path in figures:
            self._client.log_artifact(self._run_id, str(path), "figures")

    def close(self, outcome: Outcome) -> None:
        """Give the run its status."""
        if self._client is not None and self._run_id:
            self._client.set_terminated(self._run_id, _STATUS[outcome])

    def _is_there(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _experiment(self, name: str) -> str:
        """The experiment's id; another process may make it at the same moment."""
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        there = self._client.get_experiment_by_name(name)
        if there is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                there = self._client.get_experiment_by_name(name)
                if there is None:
                    raise
        if there.lifecycle_stage != "active":
            raise ValueError(f"the experiment {name!r} was deleted: restore it, or choose another")
        return str(there.experiment_id)

    def _log_params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        assert self._client is not None
        params = [Param(key, str(value)[:_LONGEST]) for key, value in config.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + _MOST_PARAMS])

    def _log_metrics(self, points: Sequence[tuple[str, float, int, int]]) -> None:
        """Send name, value, milliseconds and step of each."""
        from mlflow.entities import Metric

        assert self._client is not None
        for start in range(0, len(points), _MOST_METRICS):
            part = points[start : start + _MOST_METRICS]
            self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in part])


def _make_whole(store: str) -> None:
    """Make a store that is missing, all of its tables at once.

    MLflow makes them one after the other, and neither two processes that begin together nor one
    that is killed meanwhile leaves a store that works.
    """
    place = Path(store.removeprefix(_SQLITE))
    if not store.startswith(_SQLITE) or place.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    made: Any = SqlAlchemyStore  # untyped
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as folder:
        new = Path(folder, place.name)
        made(f"{_SQLITE}{new}", _FILES).engine.dispose()
        with suppress(FileExistsError):  # somebody else was faster
            os.link(new, place)


def _local() -> str:
    return f"{_SQLITE}{Path('mlflow.db').resolve()}"


def _tags(run: TrackedRun) -> dict[str, str]:
    tags = {tidy(name): text[:_LONGEST] for name, text in run.labels().items()}
    tags["mlflow.source.type"], tags["mlflow.source.name"] = "LOCAL", "nmoe run"
    if "git.revision" in tags:  # shown as the version of the source
        tags["mlflow.source.git.commit"] = tags["git.revision"]
    return tags
