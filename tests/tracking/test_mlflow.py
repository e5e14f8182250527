"""A local store of MLflow's, read with its own client."""

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower.config import Config
from nmoe_flower.results import RunFolder
from nmoe_flower.tracking import Track, Tracked, mlflow
from nmoe_flower.tracking.mlflow import MLflow
from tests.tracking.conftest import FINAL, TABLE, finished, record
from tests.tracking.test_tracked import follow

# Looked for, not imported: whoever imports it before its telemetry is off lets it call home.
pytestmark = [
    pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is missing"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning"),
]


@pytest.fixture
def client(store: str, offline: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store)


def run_of(client: Any, experiment: str = "nmoe-flower") -> Any:
    there = client.get_experiment_by_name(experiment)
    return client.search_runs([there.experiment_id])[0]


def test_what_was_written_reads_back_and_goes_on(
    folder: RunFolder, client: Any, tmp_path: Path
) -> None:
    first = record("extractor", 1, loss=2.0, routing=[0.5])
    assert follow(folder, "mlflow", rounds=[first], end=False) == ""
    begun = run_of(client)
    assert begun.info.status == "FINISHED"
    rounds = [record("extractor", number, loss=1 / number) for number in range(2, 403)]
    assert follow(folder, "mlflow", rounds=[first, *rounds]) == ""
    (run,) = client.search_runs([begun.info.experiment_id])
    assert run.info.run_id == begun.info.run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", "one")
    assert run.data.params["data.tau"] == "0.5"
    assert run.data.params.keys() == folder.config.flat().keys()
    assert run.data.tags["seed"] == "0"
    assert run.data.tags["mlflow.source.git.commit"] == run.data.tags["git.revision"] == "1f"
    losses = client.get_metric_history(run.info.run_id, "extractor/loss")
    assert [(m.step, m.value) for m in losses] == [
        (1, 2.0), *((number, 1 / number) for number in range(2, 403)),
    ]  # fmt: skip
    assert run.data.metrics["extractor/bytes"] == 42
    assert FINAL.items() <= run.data.metrics.items()
    files = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path / "made")))
    assert (files / "results.csv").read_text() == TABLE
    assert (files / "config.toml").read_text() == folder.config.to_toml()
    assert (files / "figures" / "accuracy.png").stat().st_size > 0
    assert (files / "results.json").read_bytes() == folder.results_path.read_bytes()


def test_a_study_s_runs_are_an_experiment_with_tags(folder: RunFolder, client: Any) -> None:
    track = Track.of(Track(["mlflow"], "table-2", {"variant": "fedsc-tau-0.2"}))
    with pytest.raises(KeyboardInterrupt), Tracked(track, print) as tracked:  # noqa: PT012
        tracked.begin(folder)
        raise KeyboardInterrupt
    run = run_of(client, "table-2")
    assert run.data.tags["variant"] == "fedsc-tau-0.2"
    assert run.info.status == "KILLED"


def test_a_tracked_run_that_was_deleted_is_begun_anew(folder: RunFolder, client: Any) -> None:
    follow(folder, "mlflow", rounds=[record("gate/rolling", 1, loss=2.0)], end=False)
    gone = run_of(client)
    client.delete_run(gone.info.run_id)
    follow(folder, "mlflow", rounds=[record("gate/rolling", 2, loss=1.0)])
    run = run_of(client)
    assert run.info.run_id != gone.info.run_id
    losses = client.get_metric_history(run.info.run_id, "gate/rolling/loss")
    assert [m.step for m in losses] == [1, 2]


def test_an_experiment_that_was_deleted_is_named(folder: RunFolder, client: Any) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    with Tracked(Track.of(Track(["mlflow"], "gone")), said := [].append) as tracked:
        tracked.begin(folder)
    assert "the experiment 'gone' was deleted" in said.__self__[0]


def test_without_a_word_the_store_is_in_the_working_folder(
    folder: RunFolder, client: Any, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MLflow has it since its version 3; where a run began is remembered."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    shutil.copy(store.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    assert follow(folder, "mlflow", rounds=[record("extractor", 1)], end=False) == ""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert follow(folder, "mlflow") == ""
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len(list((tmp_path / "mlruns").glob("*/*/artifacts/results.csv"))) == 1


def test_a_store_that_another_process_makes_meanwhile_is_taken(
    tmp_path: Path, client: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where MLflow itself makes one table after the other, two at once break it for good."""
    from mlflow import MlflowClient

    place, link = tmp_path / "new.db", mlflow.os.link
    inodes = []

    class Quick:
        """Makes a store in no time."""

        def __init__(self, uri: str, files: str) -> None:
            shutil.copy(store.removeprefix("sqlite:///"), uri.removeprefix("sqlite:///"))
            self.engine = self

        def dispose(self) -> None:
            pass

    def later(new: Path, there: Path) -> None:
        shutil.copy(store.removeprefix("sqlite:///"), there)
        inodes.append(there.stat().st_ino)
        link(new, there)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow.os, "link", later)
    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore", Quick)
    mlflow._make_whole(f"sqlite:///{place}")
    assert [place.stat().st_ino] == inodes
    assert [path.name for path in tmp_path.glob("*new*")] == ["new.db"]
    mlflow._make_whole(f"sqlite:///{place}")  # it is there
    mlflow._make_whole("http://127.0.0.1:9")  # not ours to make
    assert len(inodes) == 1
    monkeypatch.undo()
    MlflowClient(tracking_uri=f"sqlite:///{place}").create_experiment("works")


def test_values_that_are_too_long_are_cut(folder: RunFolder, client: Any) -> None:
    config = Config.parse({"gate.methods": "local"})
    long = RunFolder(folder.path, config)
    tracker = MLflow()
    tags = {"long": "x" * 20_000, "odd+name!": "y"}
    with Tracked(Track.of(Track([tracker], "long", tags)), said := [].append) as tracked:
        tracked.begin(long)
        tracked.finish(finished(long))
    assert said.__self__ == []
    run = run_of(client, "long")
    assert len(run.data.tags["long"]) == 5000
    assert run.data.tags["odd_name_"] == "y"
