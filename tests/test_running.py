"""``nmoe_flower.run``: what the command does, from Python."""

import json
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import nmoe_flower as nmoe
from nmoe_flower import cli, files, running, server_app
from nmoe_flower.errors import CheckpointError, ConfigError, DataError, EngineError
from nmoe_flower.results import RunFolder

SMALL = {
    "data": {"num-clients": 3, "train-per-client": 60, "test-per-client": 10},
    "extractor": {"rounds": 2, "batch-size": 8, "widths": (8, 8)},
    "expert": {"hidden": 8, "epochs": 1},
    "gate": {"methods": "federated,local", "rounds": 2, "local-steps": 2},
    "run": {"controls": ""},
}
ROW = {"gate": "local", "test": "local", "accuracy": 0.5, "per_client": {"accuracy": [1.0, 0.0]}}
ROUND = {
    "stage": "extractor", "round": 1, "rounds": 1, "metrics": {"loss": 2.5}, "clients": [0],
    "failures": [], "bytes_up": 1, "bytes_down": 1, "seconds": 0.1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, warm_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    return tmp_path


class Training:
    """Stands in for the stages; notes the configurations it was given."""

    def __init__(self) -> None:
        self.configs: list[nmoe.Config] = []
        self.workers: list[int] = []
        self.fail: BaseException | None = None
        self.results: dict[str, Any] | None = {"rows": [ROW]}

    @contextmanager
    def grid(self, *_: Any, workers: int, **__: Any) -> Iterator[None]:
        self.workers.append(workers)
        yield

    def execute(self, _: None, folder: RunFolder, *, on_round: Any, **_more: Any) -> None:
        self.configs.append(folder.config)
        folder.append_round(ROUND)
        on_round(ROUND)
        if self.fail is not None:
            raise self.fail
        if self.results is not None:
            folder.write_results(self.results)


class Forks:
    """Stands in for the process that workers are forked from."""

    open: ClassVar[list["Forks"]] = []
    started = 0

    def __init__(self, reference: str) -> None:
        assert reference == running.CLIENT_APP
        Forks.open.append(self)
        Forks.started += 1

    @staticmethod
    def works_here() -> bool:
        return True

    def close(self) -> None:
        Forks.open.remove(self)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    stand_in = Training()
    monkeypatch.setattr(running, "InProcessGrid", stand_in.grid)
    monkeypatch.setattr(running, "ForkServer", Forks)
    monkeypatch.setattr(server_app, "execute", stand_in.execute)
    return stand_in


def test_it_leaves_the_folder_and_the_numbers_of_the_command(here: Path) -> None:
    recipe = here / "small.toml"
    recipe.write_text(nmoe.Config.parse(SMALL).to_toml(), encoding="utf-8")
    words = ["small.toml", "--seed", "3", "--workers", "0", "--out", "command", "--no-figures"]
    assert cli.main(["run", *words, "--format", "json", "--set", "run.name=one"]) == 0
    result = nmoe.run(
        SMALL, seed=3, workers=0, out="python", name="one", figures=False, progress=None
    )
    theirs, ours = here / "command" / "one", here / "python" / "one"
    assert result.path == ours
    told = json.loads((theirs / "results.json").read_text(encoding="utf-8"))
    assert result.results == json.loads(result.folder.results_path.read_text(encoding="utf-8"))
    timed = {"seconds", "stages"}
    assert {k: v for k, v in told.items() if k not in timed} == {
        k: v for k, v in result.results.items() if k not in timed
    }
    names = sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    for path in sorted((ours / "weights").iterdir()):
        mine, like = files.load_arrays(path), files.load_arrays(theirs / "weights" / path.name)
        assert mine.keys() == like.keys()
        assert all(np.array_equal(array, like[name]) for name, array in mine.items())
    assert [record["stage"] for record in result.folder.rounds()] == [
        record["stage"] for record in RunFolder.resume(theirs).rounds()
    ]


@pytest.mark.parametrize("form", ["table", "dotted", "config", "path", "text"])
def test_a_recipe_may_come_in_any_form(training: Training, here: Path, form: str) -> None:
    table = {"gate": {"rounds": 7}, "data": {"num-clients": 4}}
    path = here / "mine.toml"
    path.write_text("[gate]\nrounds = 7\n[data]\nnum-clients = 4\n", encoding="utf-8")
    recipes: dict[str, Any] = {
        "table": table,
        "dotted": {"gate.rounds": 7, "data.num_clients": np.int64(4)},
        "config": nmoe.Config.parse(table),
        "path": path,
        "text": "mine.toml",
    }
    result = nmoe.run(recipes[form], set={"gate.top-k": 2}, seed=5, progress=None, figures=False)
    (config,) = training.configs
    assert (config.gate.rounds, config.data.num_clients, config.gate.top_k) == (7, 4, 2)
    assert config.run.seed == 5
    assert result.path.name == ("mine" if form in ("path", "text") else "nmoe")


@pytest.mark.parametrize(
    "given",
    [
        {"set": {"gate.rounds": 5}},
        {"set": ["gate.rounds=5"]},
        {"set": {"gate": {"rounds": 5}}},
        {"gate__rounds": 5},
        {"gate.rounds": 5},
        {"gate__rounds": 5, "set": {"gate.rounds": 6}},
    ],
)
def test_what_is_set_goes_before_the_recipe(training: Training, given: Mapping[str, Any]) -> None:
    result = nmoe.run({"gate.rounds": 7}, progress=None, figures=False, **given)
    assert training.configs[0].gate.rounds == 5
    assert result["rows"] == result.results["rows"]


def test_underscores_in_an_argument_stand_for_those_of_its_key(training: Training) -> None:
    nmoe.run(gate__local_steps=3, data__num_clients=4, progress=None, figures=False)
    config = training.configs[0]
    assert (config.gate.local_steps, config.data.num_clients) == (3, 4)


def test_a_name_nobody_chose_never_collides_and_a_chosen_one_is_refused(
    training: Training, here: Path
) -> None:
    options: dict[str, Any] = {"progress": None, "figures": False}
    assert [nmoe.run(**options).path.name for _ in range(2)] == ["nmoe", "nmoe-2"]
    assert nmoe.run(name="mine", out=here / "there", **options).path == here / "there" / "mine"
    with pytest.raises(ConfigError, match="already holds a run"):
        nmoe.run(name="mine", out="there", **options)
    late = {"data.dataset": "gone"}  # the name and the place are looked at before the data
    with pytest.raises(ConfigError, match="already holds a run"):
        nmoe.run(name="mine", out="there", set=late, **options)
    (here / "file").write_text("")
    for out in ("file", "file/below"):
        with pytest.raises(ConfigError, match=r"cannot write .*file is a file: not a directory"):
            nmoe.run(out=out, set=late, **options)
    assert nmoe.run(name="mine", out="there", overwrite=True, **options).rows


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ({"recipe": "digitz"}, ConfigError, "there is no file 'digitz' and no recipe"),
        ({"recipe": "absent.toml"}, ConfigError, "cannot read the recipe absent.toml"),
        ({"recipe": {"gate": 3}}, ConfigError, "gate: is a section"),
        ({"recipe": {3: 3}}, ConfigError, "3: unknown key"),
        ({"set": {"gate.round": 3}}, ConfigError, "unknown key; did you mean rounds?"),
        ({"set": ["gate.rounds"]}, ConfigError, "wants key=value, got 'gate.rounds'"),
        ({"set": {"data.tau": float("nan")}}, ConfigError, "data.tau"),
        ({"set": {"data.dataset": Path("nowhere") / "a" / "b"}}, DataError, "'nowhere/a/b'"),
        ({"gate__round": 3}, ConfigError, "gate.round: unknown key; did you mean rounds?"),
        ({"epochs": 3}, ConfigError, "no argument 'epochs'; a configuration key is written"),
        ({"seed": -1}, ConfigError, "run.seed"),
        ({"seed": True}, ConfigError, "run.seed"),
        ({"name": "a/b"}, ConfigError, "run.name"),
        ({"engine": "spark"}, ConfigError, "engine is 'spark'; allowed: inprocess, ray"),
        ({"workers": -1}, ConfigError, "workers is -1; allowed: a whole number from 0"),
        ({"workers": 2.0}, ConfigError, "workers is 2.0"),
        ({"workers": 0, "engine": "ray"}, ConfigError, "allowed: a whole number from 1"),
        ({"progress": "loud"}, ConfigError, "progress is 'loud'; allowed: auto, text, json"),
        ({"resume": "runs/nmoe", "name": "x"}, ConfigError, "leave out recipe, out, name"),
        ({"resume": "nowhere"}, CheckpointError, "nothing to resume: nowhere is not a folder"),
    ],
)
def test_what_cannot_be_is_an_error_of_ours_and_leaves_no_run(
    training: Training, here: Path, call: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said.replace("?", r"\?")) as raised:
        nmoe.run(**{"progress": None, **call})
    assert isinstance(raised.value, nmoe.NMoEError)
    assert not (here / "runs").exists()
    assert not training.configs


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupted_run_says_how_it_goes_on(
    training: Training, here: Path, stop: BaseException
) -> None:
    training.fail = stop
    with pytest.raises(type(stop)) as stopped:
        nmoe.run(progress=None, figures=False)
    folder = here / "runs" / "nmoe"
    told = f"interrupted; resume with: nmoe run --resume {folder}"
    if isinstance(stop, KeyboardInterrupt):
        assert str(stopped.value) == told
    else:
        assert (stopped.value.code, stopped.value.__notes__) == (143, [told])
    training.fail = None
    result = nmoe.run(resume=folder, progress=None, figures=False)
    assert (result.path, len(result.folder.rounds())) == (folder, 2)
    assert nmoe.run(resume=str(folder), progress=None, figures=False).rows == result.rows
    assert len(training.configs) == 2  # the third was finished already


@pytest.mark.parametrize(
    ("workers", "refused", "started"), [(2, False, 1), (2, True, 1), (1, False, 0), (0, False, 0)]
)
def test_what_workers_are_forked_from_starts_while_the_run_is_checked_and_ends_with_it(
    workers: int,
    refused: bool,
    started: int,
    training: Training,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = Forks.started

    def check(*_: object) -> None:
        assert len(Forks.open) == Forks.started - before == started
        if refused:
            raise ConfigError("extractor.widths is too wide")

    monkeypatch.setattr(running, "rehearse", check)
    with pytest.raises(ConfigError, match="too wide") if refused else nullcontext():
        nmoe.run(SMALL, workers=workers, progress=None, figures=False)
    assert (Forks.started - before, Forks.open) == (started, [])
    assert len(training.configs) == (not refused)


def test_a_run_that_fails_raises_and_closes_its_view(training: Training) -> None:
    view = View()
    training.fail = EngineError("worker 1 died")
    with pytest.raises(EngineError, match="worker 1 died"):
        nmoe.run(progress=view)
    training.fail, training.results = None, None
    with pytest.raises(EngineError, match="ended without results"):
        nmoe.run(progress=view)
    assert view.closed == 2


class View:
    """A progress view of somebody's own."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []
        self.closed = 0

    def update(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)

    def answered(self, stage: str, count: int, clients: int) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None:
        self.closed += 1


def test_progress_goes_where_it_is_wanted(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    view = View()
    nmoe.run(progress=view, figures=False)
    assert view.records == [ROUND]
    nmoe.run(progress=None, figures=False)
    assert capsys.readouterr() == ("", "")
    nmoe.run(figures=False)
    assert "extractor 1/1  loss 2.500" in capsys.readouterr().out
    nmoe.run(progress="json", figures=False)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == ROUND


def test_a_result_is_shown_as_the_command_shows_it(training: Training) -> None:
    result = nmoe.run(progress=None, figures=False)
    assert result.rows == [{"gate": "local", "test": "local", "accuracy": 0.5}]
    assert result.results == {"rows": [ROW]}
    shown = str(result)
    assert "local           0.500" in shown
    assert str(result.path / "results.json") in shown
    assert repr(result) == f"RunResult({str(result.path)!r})"
    printed: list[str] = []
    result._repr_pretty_(types.SimpleNamespace(text=printed.append), False)
    assert printed == [shown]


def test_figures_are_drawn_and_why_not_is_told(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.results = {"rows": []}
    result = nmoe.run(progress=None)
    assert all(path.is_file() for path in result.figures)

    def refuse(folder: RunFolder, complain: Any) -> list[Path]:
        complain("no figures: no matplotlib")
        return []

    monkeypatch.setattr(running, "draw", refuse)
    result = nmoe.run(progress=None)
    assert result.notes == ["no figures: no matplotlib"]
    assert str(result).startswith("no figures: no matplotlib\n")
