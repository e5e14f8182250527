"""Any tracker: told everything once, in order, and unable to stop or change a run."""

import json
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nmoe_flower as nmoe
from nmoe_flower import cli
from nmoe_flower.catalogue import TRACKERS, found
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, NMoEError
from nmoe_flower.progress import make_progress
from nmoe_flower.results import RunFolder
from nmoe_flower.tracking import Outcome, Track, Tracked, TrackedRound, TrackedRun
from tests.tracking.conftest import finished, record

CALLS = ("begin", "rounds", "finish", "close")
TINY = {
    "data.num-clients": 2, "data.crop-padding": 0, "extractor.rounds": 2,
    "extractor.backbone": "linear", "expert.epochs": 1, "expert.hidden": 4, "gate.rounds": 1,
    "gate.methods": "federated,local", "run.controls": "",
}  # fmt: skip


class Notebook:
    """A tracker that notes what it is told, and may fail at one call."""

    def __init__(self, fails: str = "", error: BaseException | None = None) -> None:
        self.fails, self.error = fails, error or RuntimeError(f"no {fails}")
        self.calls: list[Any] = []
        self.told: list[TrackedRound] = []
        self.known: Mapping[str, str] = {"run": "1"}

    def _note(self, name: str, told: Any) -> None:
        self.calls.append((name, told))
        if name == self.fails:
            raise self.error

    def begin(self, run: TrackedRun, known: Mapping[str, str]) -> Mapping[str, str]:
        self.run = run
        self._note("begin", dict(known))
        return self.known

    def rounds(self, rounds: Sequence[TrackedRound]) -> None:
        self.told += rounds
        self._note("rounds", [(one.stage, one.round) for one in rounds])

    def finish(self, results: Mapping[str, Any], figures: Sequence[Path]) -> None:
        self._note("finish", len(results["rows"]))

    def close(self, outcome: Outcome) -> None:
        self._note("close", outcome)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    @property
    def kept(self) -> list[tuple[str, int]]:
        return [one for name, told in self.calls if name == "rounds" for one in told]


def follow(folder: RunFolder, *trackers: Any, rounds: Sequence[Any] = (), end: bool = True) -> str:
    """A start of a run with some rounds; returns what was said."""
    said = list[str]()
    with Tracked(Track.of(trackers), said.append) as tracked:
        tracked.begin(folder)
        view = tracked.beside(make_progress(None), tell=None)
        for one in rounds:
            folder.append_round(one)
            view.update(one)
        if end:
            tracked.finish(finished(folder))
    return "\n".join(said)


# --- what a tracker is told ---


def test_a_tracker_is_told_everything_in_order(folder: RunFolder) -> None:
    one = Notebook()
    said = follow(folder, one, rounds=[record("extractor", 1), record("extractor", 2)])
    assert said == ""
    assert one.calls == [
        ("begin", {}),
        ("rounds", [("extractor", 1), ("extractor", 2)]),
        ("finish", 2),
        ("close", "finished"),
    ]
    assert (one.run.name, one.run.folder, one.run.experiment) == ("one", folder.path, None)
    assert one.run.config["data.tau"] == 0.5
    assert one.run.labels()["seed"] == "0"
    assert "versions.torch" in one.run.labels()


def test_an_experiment_and_tags_go_along(folder: RunFolder) -> None:
    one = Notebook()
    follow(folder, *Track.of(Track([one], "table-2", {"variant": "fedsc"})).trackers)
    with Tracked(Track.of(Track([one], "table-2", {"variant": "b"})), print) as tracked:
        tracked.begin(RunFolder.create(folder.path.parent / "two", Config()))
    assert (one.run.experiment, one.run.labels()["variant"]) == ("table-2", "b")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(KeyboardInterrupt(), "stopped"), (SystemExit(143), "stopped"), (NMoEError("x"), "failed")],
)
def test_how_a_run_ended_is_told(folder: RunFolder, error: BaseException, outcome: str) -> None:
    one = Notebook()
    with pytest.raises(type(error)), Tracked(Track.of([one]), print) as tracked:  # noqa: PT012
        tracked.begin(folder)
        raise error
    assert one.calls == [("begin", {}), ("close", outcome)]


# --- a run that goes on ---


def test_a_resumed_run_goes_on_where_it_was(folder: RunFolder) -> None:
    rounds = [record("extractor", number) for number in range(1, 6)]
    first, second, third = Notebook(), Notebook(), Notebook()
    follow(folder, first, rounds=rounds[:3], end=False)
    folder.append_round(rounds[3])  # the tracker was killed before it kept this one
    follow(folder, second, rounds=[rounds[2], *rounds[3:]])  # a checkpoint after the second round
    assert first.kept == [("extractor", 1), ("extractor", 2)]  # the newest may be repeated
    assert second.calls[0] == ("begin", {"run": "1"})
    assert second.kept == [("extractor", 3), ("extractor", 4), ("extractor", 5)]
    follow(folder, third)
    assert third.calls == []  # finished, and kept
    assert "tracking" not in json.dumps(folder.results())


@pytest.mark.parametrize("clients", [[], [0]])
def test_a_round_that_was_interrupted_is_kept_when_it_comes_again(
    folder: RunFolder, clients: list[int]
) -> None:
    first, second = Notebook(), Notebook()
    cut = record("extractor", 2) | {"clients": clients}
    follow(folder, first, rounds=[record("extractor", 1), cut], end=False)
    follow(folder, second, rounds=[record("extractor", 2, loss=0.5), record("extractor", 3)])
    assert first.kept == [("extractor", 1)]
    assert second.kept == [("extractor", 2), ("extractor", 3)]
    assert second.told[0].metrics["extractor/loss"] == 0.5


def test_a_tracked_run_that_is_gone_is_told_anew(folder: RunFolder) -> None:
    first, second = Notebook(), Notebook()
    second.known = {"run": "2"}
    follow(folder, first, rounds=[record("extractor", 1)], end=False)
    follow(folder, second, rounds=[record("extractor", 2)])
    assert second.kept == [("extractor", 1), ("extractor", 2)]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Notebook": 3}', '{"Notebook": {"known": []}}'])
def test_a_damaged_file_is_begun_anew(folder: RunFolder, text: str) -> None:
    (folder.path / "tracking.json").write_text(text)
    one = Notebook()
    assert follow(folder, one, rounds=[record("extractor", 1)]) == ""
    assert one.names == list(CALLS)


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_every_round_is_kept_once_however_often_a_run_stops(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    stages = data.draw(st.dictionaries(st.sampled_from("abc"), st.integers(1, 4), min_size=1))
    rounds = [record(stage, n + 1) for stage, count in stages.items() for n in range(count)]
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "one", Config())
    kept, begun = list[tuple[str, int]](), 0
    for _ in range(data.draw(st.integers(0, 3))):
        stop = data.draw(st.integers(begun, len(rounds)))
        one = Notebook()
        follow(folder, one, rounds=rounds[begun:stop], end=False)
        kept += one.kept
        begun = data.draw(st.integers(0, stop))  # its checkpoint
        left = iter(range(begun))
        folder.truncate_rounds(lambda _, left=left: next(left, None) is not None)  # type: ignore[misc]
    last = Notebook()
    follow(folder, last, rounds=rounds[begun:])
    assert kept + last.kept == [(one["stage"], one["round"]) for one in rounds]


# --- one that fails ---


@pytest.mark.parametrize("error", [RuntimeError("dead\nlong story"), SystemExit(3)])
@pytest.mark.parametrize("fails", CALLS)
def test_a_tracker_that_fails_is_told_once_and_others_go_on(
    folder: RunFolder, fails: str, error: BaseException
) -> None:
    bad, good = Notebook(fails, error), Notebook()
    said = follow(folder, bad, good, rounds=[record("extractor", n) for n in range(1, 4)])
    reason = "RuntimeError: dead" if isinstance(error, RuntimeError) else "SystemExit: 3"
    assert said == f"tracking: Notebook failed and keeps no more of this run ({reason})"
    assert bad.names[: CALLS.index(fails) + 1] == list(CALLS[: CALLS.index(fails) + 1])
    assert bad.names[-1] == "close"
    assert good.names == list(CALLS)
    again = Notebook()
    assert follow(folder, again) == ""
    assert ("finish", 2) in again.calls  # what is missing can be made up for


def test_what_cannot_be_loaded_is_told_with_the_way_to_catch_up(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nmoe_flower.tracking.mlflow", ModuleType("broken"))
    assert follow(folder, "mlflow") == (
        "tracking: mlflow failed and keeps no more of this run (AttributeError: module 'broken' "
        "has no attribute 'MLflow'); to catch up later: "
        f"nmoe run --resume {folder.path} --track mlflow"
    )


def test_a_full_disk_ends_the_tracking_alone(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise NMoEError("cannot write tracking.json: no space left on device")

    monkeypatch.setattr("nmoe_flower.tracking.kept.write_json", full)
    assert "no space left" in follow(folder, Notebook(), rounds=[record("extractor", 1)])


def test_a_tracker_that_hangs_is_left(folder: RunFolder) -> None:
    free = threading.Event()

    class Hanging(Notebook):
        def begin(self, run: TrackedRun, known: Mapping[str, str]) -> Mapping[str, str]:
            free.wait()
            return super().begin(run, known)

    said = list[str]()
    with Tracked(Track.of([Hanging()]), said.append, patience=0.01) as tracked:
        tracked.begin(folder)
    free.set()
    assert said == ["tracking: Hanging has not kept all of this run, and is left"]


def test_what_goes_wrong_meanwhile_is_said_meanwhile(folder: RunFolder) -> None:
    said, later = list[str](), list[str]()
    with Tracked(Track.of([Notebook("begin")]), later.append) as tracked:
        tracked.begin(folder)
        assert tracked._trackers[0].wait(60)
        view = tracked.beside(make_progress(None), tell=said.append)
        view.update(record("extractor", 1))
        view.answered("experts", 1, 2)
    assert said == [
        "tracking: Notebook failed and keeps no more of this run (RuntimeError: no begin)"
    ]
    assert later == []


# --- who is asked for ---


def test_every_row_leads_to_a_tracker() -> None:
    for row in TRACKERS.values():
        tracker = found(row.tracker)()
        assert all(callable(getattr(tracker, name)) for name in CALLS)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("tensorbord", "track names 'tensorbord'; allowed: tensorboard, mlflow, wandb"),
        (["mlflow", 3], "track names 3; allowed: tensorboard, mlflow, wandb, an object with begin"),
        ([Notebook], "an object with begin, rounds, finish, close"),
        (7, "track is 7; allowed: a list of tensorboard, mlflow, wandb"),
        (None, "track is None; allowed: a list of"),
        (Track(["x"]), "track names 'x'"),
    ],
)
def test_an_unknown_tracker_is_refused_before_anything(
    wanted: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        nmoe.run(track=wanted, progress=None)
    assert told in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_lists_may_be_text_and_name_something_twice() -> None:
    assert Track.of("mlflow, tensorboard,,mlflow").trackers == ("mlflow", "tensorboard")
    assert Track.of("").trackers == Track.of(()).trackers == ()
    one, two = Notebook(), Notebook()
    assert list(Track.of([one, two, one, "mlflow"]).makers()) == ["Notebook", "Notebook2", "mlflow"]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_names_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = TRACKERS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, row.package, None)
    assert cli.main(["run", "--track", name]) == 1
    told = capsys.readouterr().err
    assert f"tracking needs {row.label}: pip install" in told
    assert told.endswith(f"[{row.extra}]'\n")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_package_s_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B leaves a folder ``wandb`` where a program runs that does not name another."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(NMoEError, match="tracking needs Weights & Biases"):
        Track.of("wandb")


# --- a real run ---


def test_a_run_has_the_same_numbers_whoever_tracks_it(
    tmp_path: Path, warm_cache: Path, store: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    words = [f"{key}={value}" for key, value in TINY.items()]
    command = ["run", "--workers", "0", "--no-figures", "--format", "json", "--set", *words]
    assert cli.main([*command, "run.name=plain"]) == 0
    names = ",".join(TRACKERS)
    assert cli.main([*command, "run.name=tracked", "--track", names, "--tensorboard"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    broken = [Notebook(name) for name in CALLS]
    result = nmoe.run(TINY, track=broken, name="broken", workers=0, figures=False, progress=None)
    assert len(result.notes) == len(broken)
    plain = RunFolder.resume(tmp_path / "runs" / "plain")
    for name in ("tracked", "broken"):
        other = RunFolder.resume(tmp_path / "runs" / name)
        assert other.results()["rows"] == plain.results()["rows"]
        assert other.results().keys() == plain.results().keys()
        assert [one["metrics"] for one in other.rounds()] == [
            one["metrics"] for one in plain.rounds()
        ]
        for path in plain.weights_path.iterdir():
            assert (other.weights_path / path.name).read_bytes() == path.read_bytes()
    kept = json.loads((tmp_path / "runs" / "tracked" / "tracking.json").read_text())
    assert kept.keys() == TRACKERS.keys()
    assert all(entry["finished"] for entry in kept.values())
    left = {path.name for path in plain.path.iterdir()}
    assert {path.name for path in (tmp_path / "runs" / "tracked").iterdir()} - left == {
        "tracking.json", "tensorboard", "wandb",
    }  # fmt: skip


def test_what_was_tracked_goes_with_the_run_that_is_overwritten(folder: RunFolder) -> None:
    follow(folder, Notebook(), rounds=[record("extractor", 1)])
    (folder.path / "wandb").mkdir()
    RunFolder.create(folder.path, folder.config, overwrite=True)
    assert not (folder.path / "tracking.json").exists()
    assert not (folder.path / "wandb").exists()
