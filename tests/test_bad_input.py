"""What people and clients get wrong: one clear message, the exit code, nothing half-written."""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower import cli, files
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import RoundError
from nmoe_flower.results import RunFolder
from nmoe_flower.server_app import execute

Arguments = list[str]
Prepare = Callable[[Path], Arguments]

TINY: dict[str, Any] = {
    "data.num-clients": 4,
    "data.train-per-client": 60,
    "data.test-per-client": 10,
    "extractor.rounds": 3,
    "extractor.batch-size": 8,
    "expert.hidden": "8",
    "expert.epochs": 1,
    "gate.methods": "federated,rolling,local",
    "gate.rounds": 2,
    "gate.cycles": 1,
    "gate.local-steps": 1,
    "run.controls": "",
}


# --- the command line -----------------------------------------------------------------------------


def settings(*overrides: str, command: str = "run") -> Prepare:
    return lambda folder: [command, "--set", *overrides]


def recipe(text: str) -> Prepare:
    def prepare(folder: Path) -> Arguments:
        (folder / "recipe.toml").write_text(text, encoding="utf-8")
        return ["run", "recipe.toml"]

    return prepare


def images(columns: dict[str, list[object]], content: bytes | None = None) -> Prepare:
    """A data folder with one parquet file of these columns, or of these bytes."""

    def prepare(folder: Path) -> Arguments:
        import pyarrow
        from pyarrow import parquet

        (folder / "images").mkdir()
        path = folder / "images" / "train.parquet"
        if content is None:
            parquet.write_table(pyarrow.table(columns), path)
        else:
            path.write_bytes(content)
        return ["run", "--set", "data.dataset=./images"]

    return prepare


def empty_folder(folder: Path) -> Arguments:
    (folder / "images").mkdir()
    return ["run", "--set", "data.dataset=./images"]


def file_as_data(folder: Path) -> Arguments:
    (folder / "images.zip").write_bytes(b"PK")
    return ["run", "--set", "data.dataset=./images.zip"]


def stopped(folder: Path) -> RunFolder:
    """A run that was begun and stopped before its first round."""
    return RunFolder.create(folder / "runs" / "begun", Config.parse({**TINY, "run.name": "begun"}))


def resumed(*overrides: str) -> Prepare:
    def prepare(folder: Path) -> Arguments:
        stopped(folder)
        return ["run", "--resume", "runs/begun", *(["--set", *overrides] if overrides else [])]

    return prepare


def spoilt_run(name: str, content: str) -> Prepare:
    def prepare(folder: Path) -> Arguments:
        (stopped(folder).path / name).write_text(content)
        return ["run", "--resume", "runs/begun"]

    return prepare


def not_a_run(folder: Path) -> Arguments:
    (folder / "photos").mkdir()
    return ["run", "--resume", "photos"]


def another_run_is_there(folder: Path) -> Arguments:
    stopped(folder).append_round({"stage": "extractor", "round": 1})
    return ["run", "--name", "begun"]


def a_file_in_the_way(*arguments: str) -> Prepare:
    """Nobody, not even root, can make a folder below a file."""

    def prepare(folder: Path) -> Arguments:
        (folder / "closed").write_text("a file")
        return list(arguments)

    return prepare


PIXELS = [{"bytes": b"not an image", "path": "0.png"}] * 2

CASES: dict[str, tuple[Prepare, list[str]]] = {
    "unknown table": (settings("gates.top-k=2"), ["gates", "unknown key", "gate?"]),
    "unknown key": (settings("data.colour=red"), ["data.colour", "unknown key", "tau"]),
    "misspelt key": (settings("extractor.round=3"), ["extractor.round:", "did you mean rounds?"]),
    "misspelt key in a recipe": (
        recipe("[data]\nnum-client = 4\n"),
        ["data.num-client:", "did you mean num-clients?"],
    ),
    "a value in place of a table": (recipe("data = 5\n"), ["data", "5"]),
    "text for a number": (settings("gate.top-k=two"), ["gate.top-k", "'two'"]),
    "a fraction for a whole number": (settings("extractor.rounds=2.5"), ["rounds", "2.5"]),
    "a switch for a number": (settings("gate.rounds=true"), ["gate.rounds", "True"]),
    "a number for a switch": (settings("data.flip=7"), ["data.flip", "7"]),
    "not one of the choices": (settings("extractor.norm=layer"), ["'layer'", "group-ws"]),
    "tau zero": (settings("data.tau=0"), ["data.tau", "greater than 0", "got 0"]),
    "tau negative": (settings("data.tau=-0.2"), ["data.tau", "greater than 0", "-0.2"]),
    "tau not a number": (settings("data.tau=nan"), ["data.tau", "finite", "nan"]),
    "tau too large for the data": (
        settings("data.tau=30"),
        ["tau is 30", "10 classes", "at most 9"],
    ),
    "tau too large, only looking": (
        settings("data.tau=30", command="partition"),
        ["tau is 30", "10 classes", "at most 9"],
    ),
    "one client": (settings("data.num-clients=1"), ["data.num-clients", "2", "got 1"]),
    "more clients than samples": (
        settings("data.num-clients=2000"),
        ["2,000 clients", "1,438 samples", "train split"],
    ),
    "more samples than there are": (
        settings("data.train-per-client=900"),
        ["900", "10 clients"],
    ),
    "top-k above the experts": (
        settings("gate.top-k=5", "data.num-clients=4"),
        ["gate.top-k is 5", "only 4 experts"],
    ),
    "zero gates": (settings("gate.methods="), ["gate", "at least one", "oracle"]),
    "unknown gate": (settings("gate.methods=local,magic"), ["gate.methods", "'magic'"]),
    "unknown device": (settings("run.device=banana"), ["run.device", "'banana'", "cuda"]),
    "a name that is a path": (settings("run.name=../up"), ["run.name", "'../up'"]),
    "no value": (settings("data.tau"), ["key=value", "'data.tau'"]),
    "recipe missing": (lambda folder: ["run", "no.toml"], ["no.toml", "No such file"]),
    "recipe is a folder": (lambda folder: ["run", "."], ["recipe .", "directory"]),
    "recipe not TOML": (recipe("[data\n"), ["recipe.toml", "not valid TOML", "line 1"]),
    "data folder missing": (settings("data.dataset=./gone"), ["'./gone' does not exist"]),
    "data folder empty": (empty_folder, ["images", "is empty"]),
    "data is a file": (file_as_data, ["images.zip", "is a file"]),
    "no label column": (
        images({"picture": PIXELS, "caption": ["a", "b"]}),
        ["images", "no label column", "data.label-column", "picture, caption"],
    ),
    "no image column": (
        images({"label": [0, 1], "size": [2, 3]}),
        ["images", "no image column", "data.image-column", "label, size"],
    ),
    "images that are none": (
        images({"image": PIXELS, "label": [0, 1]}),
        ["row 0 of the train split", "not a readable image"],
    ),
    "one class": (images({"image": PIXELS, "label": [3, 3]}), ["images", "fewer than 2 classes"]),
    "corrupt parquet": (
        images({}, b"PAR1" + bytes(range(256)) + b"PAR1"),
        ["images", "cannot be read"],
    ),
    "parquet of nothing": (images({}, b""), ["images", "cannot be read"]),
    "resume folder missing": (
        lambda folder: ["run", "--resume", "gone"],
        ["nothing to resume", "gone", "not a folder"],
    ),
    "resume folder is no run": (not_a_run, ["nothing to resume", "photos", "no config.toml"]),
    "resume from another config": (
        resumed("gate.rounds=7"),
        ["another configuration", "gate.rounds: 2 in the folder, 7 asked for"],
    ),
    "resume with a damaged config": (
        spoilt_run("config.toml", "[data"),
        ["config.toml", "not valid TOML"],
    ),
    "resume without provenance": (
        spoilt_run("provenance.json", "{"),
        ["provenance.json is not valid JSON"],
    ),
    "resume a run of the future": (
        spoilt_run("provenance.json", '{"format-version": 99}'),
        ["format version 99", "reads 1"],
    ),
    "a run is there": (another_run_is_there, ["begun", "already holds a run", "--resume"]),
    "out is a file": (
        a_file_in_the_way("run", "--out", "closed"),
        ["cannot write", "closed", "ot a directory"],
    ),
    "out is below a file": (
        a_file_in_the_way("run", "--out", "closed/deeper"),
        ["cannot write", "closed/deeper", "ot a directory"],
    ),
    "cache is a file": (
        a_file_in_the_way("run", "--set", "data.cache-dir=closed"),
        ["data cache", "closed", "NMOE_CACHE"],
    ),
    "figure below a file": (
        a_file_in_the_way("partition", "--out", "closed/who.png"),
        ["cannot write", "closed/who.png"],
    ),
    "report of nothing": (lambda folder: ["report", "gone"], ["gone", "not a folder"]),
}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for those of the data cache."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] != "cache"
    }


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_message_and_nothing_is_left(
    case: str,
    tmp_path: Path,
    warm_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare, words = CASES[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    arguments = prepare(tmp_path)
    before = contents(tmp_path)
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("nmoe: error: ")
    assert err.count("nmoe:") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert contents(tmp_path) == before
    assert not list(warm_cache.rglob(".*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--workers", "-1"], ["--workers: '-1'; allowed: a whole number from 0"]),
        (["run", "--engine", "spark"], ["--engine", "'spark'", "inprocess"]),
        (["run", "--resume", "runs/x", "--name", "y"], ["--resume", "--name"]),
        (["fly"], ["'fly'", "run"]),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: Arguments,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        cli.main(arguments)
    assert leaving.value.code == 2
    err = capsys.readouterr().err
    for word in words:
        assert word in err
    assert not contents(tmp_path)


def test_every_problem_of_a_recipe_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--set", "data.tau=0", "gate.topk=1", "run.seed=-1"]) == 1
    err = capsys.readouterr().err
    assert [name for name in ("data.tau", "gate.topk", "run.seed") if name in err] == [
        "data.tau",
        "gate.topk",
        "run.seed",
    ]


# --- clients --------------------------------------------------------------------------------------

EXTRACTOR, TEST, EXPERT, GATE, ROLLING = (
    "train.extractor",
    "evaluate.extractor",
    "train.expert",
    "train.gate",
    "train.rolling",
)


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """The workers inherit sys.path, so they find the app beside this file."""
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def plant(kind: str, type: str, partition: int, round: int, *, once: bool = False) -> None:
        fault = {"kind": kind, "type": type, "partition": partition, "round": round, "once": once}
        monkeypatch.setenv("NMOE_FAULT", json.dumps(fault))

    return plant


def run(tmp_path: Path, cache: Path, *, workers: int = 0, **overrides: Any) -> RunFolder:
    """The whole pipeline with the faulty app; the folder is there even if this raises."""
    values = {**TINY, **overrides, "run.out": str(tmp_path), "data.cache-dir": str(cache)}
    config = Config.parse(values)
    folder = RunFolder.create(tmp_path / config.run.name, config)
    with InProcessGrid(
        "faulty_app:app", config.data.num_clients, run_config=config.flat(), workers=workers
    ) as grid:
        execute(grid, folder)
    return folder


def failures(folder: RunFolder) -> list[tuple[str, int, int, str]]:
    return [
        (record["stage"], record["round"], failure["partition"], failure["reason"])
        for record in folder.rounds()
        for failure in record["failures"]
    ]


def assert_sound(folder: RunFolder) -> None:
    """The run finished, and nothing in it is NaN or infinite."""
    assert json.loads(folder.results_path.read_text())["rows"]
    weights = list(folder.weights_path.iterdir())
    assert {path.stem for path in weights} >= {"extractor", "head", "gate-federated"}
    for path in weights:
        for name, array in files.load_arrays(path).items():
            assert np.isfinite(array).all(), f"{path.name}: {name}"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("raise", "ValueError: the camera is broken"),
        ("nan", "has NaN or infinite entries"),
        ("infinite", "has NaN or infinite entries"),
        ("shape", r"shape \(.*, 1\), wanted \("),
        ("names", "array names differ: missing .* unknown .*-of-mine"),
        ("missing", "the weight 'num-examples' is missing"),
        ("negative", "the weight 'num-examples' is negative: -5"),
    ],
)
def test_a_bad_reply_in_stage_1_is_dropped_and_named(
    kind: str, reason: str, plant: Callable[..., None], tmp_path: Path, warm_cache: Path
) -> None:
    plant(kind, EXTRACTOR, partition=2, round=2)
    folder = run(tmp_path, warm_cache)
    ((stage, round, partition, found),) = failures(folder)
    assert (stage, round, partition) == ("extractor", 2, 2)
    assert re.search(reason, found)
    (record,) = (r for r in folder.rounds() if (r["stage"], r["round"]) == ("extractor", 2))
    assert record["clients"] == [0, 1, 3]
    assert_sound(folder)


def test_a_loss_that_is_nan_is_left_out_and_costs_the_client_nothing_else(
    plant: Callable[..., None], tmp_path: Path, warm_cache: Path
) -> None:
    plant("nan-metric", EXTRACTOR, partition=2, round=2)
    folder = run(tmp_path, warm_cache)
    assert failures(folder) == []
    rounds = {r["round"]: r for r in folder.rounds() if r["stage"] == "extractor"}
    assert rounds[2]["clients"] == [0, 1, 2, 3]
    assert ["loss" in rounds[number]["metrics"] for number in (1, 2, 3)] == [True, False, True]
    assert_sound(folder)


@pytest.mark.parametrize(
    ("kind", "type", "round", "stage"),
    [
        ("raise", TEST, 1, "extractor-test"),
        ("nan", GATE, 1, "gate/federated"),
        ("negative", ROLLING, 1, "gate/rolling"),
        ("shape", ROLLING, 1, "gate/rolling"),
    ],
)
def test_a_bad_reply_in_other_rounds_is_dropped_and_named(
    kind: str,
    type: str,
    round: int,
    stage: str,
    plant: Callable[..., None],
    tmp_path: Path,
    warm_cache: Path,
) -> None:
    plant(kind, type, partition=0, round=round)
    folder = run(tmp_path, warm_cache, **{"gate.fraction-train": 1.0})
    assert [failure[:3] for failure in failures(folder)] == [(stage, round, 0)]
    assert_sound(folder)


def test_a_client_that_dies_is_named_and_its_worker_replaced(
    plant: Callable[..., None], tmp_path: Path, warm_cache: Path
) -> None:
    plant("die", EXTRACTOR, partition=1, round=2)
    folder = run(tmp_path, warm_cache, workers=1)
    assert failures(folder) == [
        ("extractor", 2, 1, "the worker died on partition 1: exit code 7"),
    ]
    assert_sound(folder)


@pytest.mark.parametrize("kind", ["raise", "nan", "missing", "negative"])
def test_a_client_whose_part_is_needed_is_asked_again(
    kind: str, plant: Callable[..., None], tmp_path: Path, warm_cache: Path
) -> None:
    plant(kind, EXPERT, partition=3, round=0, once=True)
    folder = run(tmp_path, warm_cache)
    assert [failure[:3] for failure in failures(folder)] == [("experts", 1, 3)]
    (record,) = (r for r in folder.rounds() if r["stage"] == "experts")
    assert record["clients"] == [0, 1, 2, 3]
    assert_sound(folder)


def test_a_client_whose_part_never_comes_ends_the_run(
    plant: Callable[..., None], tmp_path: Path, warm_cache: Path
) -> None:
    plant("raise", EXPERT, partition=3, round=0)
    with pytest.raises(RoundError, match="experts: client 3: ValueError: the camera is broken"):
        run(tmp_path, warm_cache)
    assert not (tmp_path / "nmoe" / "results.json").exists()
    assert not (tmp_path / "nmoe" / "weights").exists()


def test_too_few_replies_end_the_run(
    plant: Callable[..., None], tmp_path: Path, warm_cache: Path
) -> None:
    plant("nan", EXTRACTOR, partition=2, round=2)
    with pytest.raises(RoundError, match=r"round 2: 3 usable replies, 4 needed \(client 2: .*NaN"):
        run(tmp_path, warm_cache, **{"run.min-replies": 4, "gate.fraction-train": 1.0})
    folder = tmp_path / "nmoe"
    assert not (folder / "results.json").exists()
    assert not (folder / "weights").exists()
    assert not list(folder.rglob("*.tmp"))
