"""The nmoe command: arguments, exit codes, messages. The pipeline itself is replaced."""

import argparse
import itertools
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import nmoe_flower.server_app
from nmoe_flower import cli
from nmoe_flower import running as run_module
from nmoe_flower.baselines.network import ExpertNetwork
from nmoe_flower.cli.bench import BENCHMARKS
from nmoe_flower.config import Config
from nmoe_flower.errors import EngineError
from nmoe_flower.results import RunFolder
from tests.domain_text import TINY_LANGUAGE, write_domains

ROOT = Path(__file__).parents[1]
ROW = {
    "extractor": "fedce",
    "clients": 10,
    "top_k": 1,
    "gate": "local",
    "accuracy": 0.5,
    "balanced_accuracy": 0.25,
    "per_client": {"accuracy": []},
}
RESULTS = {
    "rows": [
        {**ROW, "test": "local", "local_ratio": 1.0, "bytes_per_sample": 1234.0},
        {**ROW, "test": "iid", "accuracy": 0.125, "local_ratio": 1.0, "bytes_per_sample": 0.0},
        {**ROW, "gate": "control:fedavg", "test": "iid", "local_ratio": None},
    ]
}
ROUND = {
    "stage": "extractor",
    "round": 1,
    "rounds": 1,
    "metrics": {"loss": 2.5},
    "clients": [0],
    "failures": [{"partition": 3, "reason": "NaN in head.weight"}],
    "bytes_up": 10,
    "bytes_down": 10,
    "seconds": 0.1,
}


class Pipeline:
    """Stands in for the grid and for ``execute``; notes what it was given."""

    def __init__(self) -> None:
        self.grids: list[dict[str, Any]] = []
        self.open = 0
        self.fail: BaseException | None = None
        self.writes_results = True
        self.findings: dict[str, Any] = {}

    def grid(self, client_app: str, num_nodes: int, **options: Any) -> "Pipeline":
        self.grids.append({"client_app": client_app, "num_nodes": num_nodes, **options})
        return self

    def __enter__(self) -> "Pipeline":
        self.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.open -= 1

    def execute(
        self,
        grid: Any,
        folder: RunFolder,
        *,
        on_round: Callable[[Mapping[str, Any]], None],
        **_more: object,
    ) -> None:
        assert grid is self
        folder.append_round(ROUND)
        on_round(ROUND)
        if self.fail is not None:
            raise self.fail
        if self.writes_results:
            folder.write_results({**RESULTS, **self.findings})


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pipeline:
    stand_in = Pipeline()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_module, "InProcessGrid", stand_in.grid)
    monkeypatch.setattr(nmoe_flower.server_app, "execute", stand_in.execute)
    return stand_in


def run(*arguments: str) -> int:
    return cli.main(["run", "--no-figures", *arguments])


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from nmoe_flower import cli; cli._parser().format_help();"
        "print([m for m in ('torch', 'flwr', 'pydantic', 'numpy', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_command_has_one_line_of_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    abouts = {module.__name__.rpartition(".")[2]: module.ABOUT for module in cli._COMMANDS}
    longest = max(map(len, abouts))
    lines = cli._parser().format_help().splitlines()
    for name, about in abouts.items():
        assert f"    {name:<{longest}}  {about}" in lines


def test_all_benchmarks_are_told_and_are_on_their_page(capsys: pytest.CaptureFixture[str]) -> None:
    folder = ROOT / "benchmarks"
    there = {
        path.stem if path.stem != "__main__" else path.parent.name
        for path in (*folder.glob("*.py"), *folder.glob("*/__main__.py"))
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert set(BENCHMARKS) == there
    page = (ROOT / "docs" / "how-to" / "benchmarks.md").read_text(encoding="utf-8")
    assert cli.main(["bench"]) == 0
    told = capsys.readouterr().out
    for name, about in BENCHMARKS.items():
        assert f"{name} " in told
        assert about in told
        assert f"`{name}`" in page
        with pytest.raises(SystemExit):
            cli.main(["bench", name])
        assert f"python -m benchmarks.{name} " in capsys.readouterr().err


def test_an_interrupt_is_one_word_also_while_the_options_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_parser", interrupted)
    assert cli.main(["recipes"]) == 130
    assert capsys.readouterr().err == "nmoe: interrupted\n"


# Commands of which each is given a path where nothing is, and what it says of it.
NOWHERE = {
    "infer nope a.png": "cannot read the bundle nope/bundle.json",
    "infer nope --text word": "cannot read the bundle nope/bundle.json",
    "infer has a.png --peers nope --insecure": "cannot read the list of peers nope",
    "infer has a.png --peers list --certificate nope --key k --authority a": "cannot read nope",
    "infer --node nope a.png": "nope is not a folder: nmoe deploy did not write it",
    "serve nope --insecure": "cannot read the bundle nope/bundle.json",
    "serve has --certificate nope --key k --authority a": "cannot read nope",
    "serve has --insecure --peers nope": "cannot read the list of peers nope",
    "serve --node nope": "nope is not a folder: nmoe deploy did not write it",
    "peers --peers nope --insecure": "cannot read the list of peers nope",
    "peers --peers nope --sign a": "cannot read the list of peers nope",
    "peers --peers list --certificate nope --key k --authority a": "cannot read nope",
    "peers --node nope": "nope is not a folder: nmoe deploy did not write it",
    "bundle nope": "nope is not a folder: it is no folder of a run",
    "bundle --store nope": "nope is no store of a device",
    "deploy check nope": "nope is not a folder: nmoe deploy did not write it",
    "deploy sign nope": "nope/server is not a folder: nmoe deploy did not write it",
    "deploy renew nope node-0": "nope/server is not a folder: nmoe deploy did not write it",
    "deploy add nope --hosts h": "nope/server is not a folder: nmoe deploy did not write it",
    "forget nope --client 0 --out o": "nothing to forget: nope is not a folder",
    "join nope --share 1 --out o": "nothing to join: nope is not a folder",
    "report nope": "nope is not a folder",
    "run --resume nope": "nothing to resume: nope is not a folder",
    "align nope": "cannot read the file nope",
}  # fmt: skip


def test_a_path_to_nowhere_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    """In one process: whichever command loads it first is named."""
    code = (
        "import sys, json; from contextlib import redirect_stderr; from io import StringIO\n"
        "from nmoe_flower.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    with redirect_stderr(StringIO()) as told: code = main(words.split())\n"
        "    print(json.dumps([words, code, told.getvalue(), 'torch' in sys.modules]))"
    )
    (tmp_path / "has").mkdir()
    (tmp_path / "has" / "bundle.json").write_text("{}")
    peer = {"name": "fox", "partition": 0, "address": "h:1"}
    (tmp_path / "list").write_text(json.dumps({"peers": [peer]}))
    command = [sys.executable, "-c", code, json.dumps(list(NOWHERE))]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for words, code, told, heavy in map(json.loads, out.stdout.splitlines()):
        assert (code, heavy) == (1, False), words
        assert told.startswith(f"nmoe: error: {NOWHERE[words]}"), words


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run", "--engine", "spark"],
        ["run", "--workers", "-1"],
        ["run", "--workers", "two"],
        ["run", "--engine", "ray", "--workers", "0"],
        ["run", "--seed", "-3"],
        ["run", "--format", "xml"],
        ["run", "recipe.toml", "--resume", "runs/nmoe"],
        ["run", "--resume", "runs/nmoe", "--name", "other"],
        ["run", "--resume", "runs/nmoe", "--out", "elsewhere"],
        ["run", "--resume", "runs/nmoe", "--overwrite"],
        ["report"],
        ["bench", "everything"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(arguments)
    assert leaving.value.code == 2
    assert "usage: nmoe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.toml"], "cannot read the recipe absent.toml"),
        (["run", "--set", "data.numclients=3"], "did you mean num-clients?"),
        (["run", "--set", "data.tau=-1"], "data.tau"),
        (["run", "--set", "data.tau"], "key=value"),
        (["run", "--set", "data.dataset=./nowhere"], "data folder './nowhere' does not exist"),
        (["run", "--set", "data.num-clients=2000", "run.name=big"], "2,000 clients cannot share"),
        (["run", "--name", "a/b"], "run.name"),
        (["run", "--resume", "nowhere"], "nothing to resume: nowhere is not a folder"),
        (["config", "--set", "gate.top-k=11"], "gate.top-k is 11"),
        (["partition", "--set", "data.dataset=./nowhere"], "'./nowhere' does not exist"),
        (["report", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_bad_input_is_one_message_and_leaves_no_run(
    pipeline: Pipeline,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("nmoe: error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
    assert not pipeline.grids


def test_a_run_prints_its_results_and_returns_0(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("--set", "data.num-clients=4", "--seed", "7", "--workers", "3") == 0
    out = capsys.readouterr().out
    # Accuracy local and IID, balanced the same way, local ratio, bytes per sample.
    assert (
        "local                    0.500  0.125           0.250  0.250        1.000         1,234"
        in out
    )
    assert out.index("\nlocal ") < out.index("\ncontrol:fedavg ")
    assert "dropped 1 x client 3: NaN in head.weight" in out
    assert str(tmp_path / "runs" / "nmoe" / "results.json") in out
    (grid,) = pipeline.grids
    assert (grid["client_app"], grid["num_nodes"]) == ("nmoe_flower.client_app:app", 4)
    assert grid["workers"] == 3
    assert grid["run_config"]["run.seed"] == 7
    assert grid["run_config"]["run.out"] == str(tmp_path / "runs")
    assert pipeline.open == 0


def test_more_workers_than_clients_are_not_started(pipeline: Pipeline) -> None:
    assert run("--set", "data.num-clients=2", "--workers", "16") == 0
    assert pipeline.grids[0]["workers"] == 2


def test_json_output_is_json_only(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--format", "json", "--name", "x") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ROUND in lines
    assert lines[-1]["finished"] is True
    assert lines[-1]["rows"][0]["accuracy"] == 0.5
    assert "per_client" not in lines[-1]["rows"][0]
    assert lines[-1]["failures"] == [{"partition": 3, "reason": "NaN in head.weight", "times": 1}]


def test_collapse_and_privacy_are_told(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    statement = "Correlation matrices: epsilon 8. Not covered: the weights, " + 20 * "which leave "
    pipeline.findings = {
        "privacy": {"epsilon": 8.0, "statement": statement},
        "representation": {"collapse": "collapsed to zero", "effective_rank": 1.0},
    }
    assert run() == 0
    out = capsys.readouterr().out
    assert "WARNING  features: collapsed to zero\n" in out
    assert "privacy  Correlation matrices: epsilon 8. Not covered: the weights, which" in out
    assert max(map(len, out.split("WARNING")[1].split("results  ")[0].splitlines())) <= 100
    assert run("--format", "json", "--name", "x") == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {key: last[key] for key in pipeline.findings} == pipeline.findings


def test_nothing_is_said_of_features_that_are_sound(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.findings = {"representation": {"collapse": None, "effective_rank": 30.0}}
    assert run() == 0
    out = capsys.readouterr().out
    assert "WARNING" not in out
    assert "privacy" not in out


def test_an_interrupted_run_says_how_to_go_on(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pipeline.fail = KeyboardInterrupt()
    assert run() == 130
    folder = tmp_path / "runs" / "nmoe"
    assert f"resume with: nmoe run --resume {folder}" in capsys.readouterr().err
    assert pipeline.open == 0
    pipeline.fail = None
    assert run("--resume", str(folder)) == 0
    assert len(RunFolder.resume(folder).rounds()) == 2


def test_a_terminated_run_exits_as_the_shell_expects(pipeline: Pipeline) -> None:
    pipeline.fail = SystemExit(143)
    assert run() == 143


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (EngineError("worker 1 died"), "nmoe: error: worker 1 died"),
        (ZeroDivisionError("a bug"), "Traceback"),
    ],
)
def test_a_failed_run_exits_with_1(
    pipeline: Pipeline, error: Exception, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.fail = error
    assert run() == 1
    assert shown in capsys.readouterr().err


def test_a_run_without_results_is_a_failure(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.writes_results = False
    assert run() == 1
    assert "ended without results" in capsys.readouterr().err


def test_a_run_is_not_overwritten_unasked(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--name", "mine") == 0
    assert run("--name", "mine") == 1
    told = capsys.readouterr().err
    assert all(
        word in told for word in ("already holds a run", "--overwrite", "--resume", "--name")
    )
    assert run("--set", "run.name=mine") == 1
    assert run("--name", "mine", "--overwrite") == 0


def test_a_name_nobody_chose_never_collides(pipeline: Pipeline, tmp_path: Path) -> None:
    """The default, then with numbers; a recipe's run is called like the recipe."""
    recipe = tmp_path / "My recipe (1).toml"
    recipe.write_text("[gate]\nrounds = 3\n", encoding="utf-8")
    for _ in range(3):
        assert run() == 0
    for _ in range(2):
        assert run(str(recipe)) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "My-recipe-1", "My-recipe-1-2", "nmoe", "nmoe-2", "nmoe-3",
    ]  # fmt: skip
    assert pipeline.grids[-1]["run_config"]["run.name"] == "My-recipe-1-2"
    assert run("--overwrite") == 0  # of the first
    assert not (tmp_path / "runs" / "nmoe-4").exists()


def test_resume_takes_equal_settings_only(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.fail = KeyboardInterrupt()
    assert run("--set", "gate.rounds=4") == 130
    pipeline.fail = None
    assert run("--resume", "runs/nmoe", "--set", "gate.rounds=5") == 1
    assert "gate.rounds: 4 in the folder, 5 asked for" in capsys.readouterr().err
    assert run("--resume", "runs/nmoe", "--seed", "9") == 1
    assert "run.seed" in capsys.readouterr().err
    assert run("--resume", "runs/nmoe", "--set", "gate.rounds=4") == 0


def test_a_finished_run_is_shown_again_not_run_again(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert run("--resume", "runs/nmoe") == 0
    assert len(pipeline.grids) == 1
    assert "finished already" in capsys.readouterr().out


def test_a_moved_run_goes_on_where_it_is_now(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.fail = KeyboardInterrupt()
    assert run() == 130
    pipeline.fail = None
    (tmp_path / "runs" / "nmoe").rename(tmp_path / "moved")
    assert run("--resume", "moved") == 0
    assert pipeline.grids[-1]["run_config"]["run.out"] == str(tmp_path)
    assert pipeline.grids[-1]["run_config"]["run.name"] == "moved"
    assert (tmp_path / "moved" / "results.json").is_file()
    assert not (tmp_path / "runs" / "nmoe").exists()


def test_the_ray_engine_follows_the_rounds_of_the_superlink(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    given: dict[str, Any] = {}

    def simulate(app: Path, **options: Any) -> None:
        given.update(options)
        written = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
        config = Config.parse(written["config"])
        folder = RunFolder.resume(config.run.folder(0))
        folder.append_round(ROUND)
        options["on_tick"]()
        options["log"]("a line of the simulation")
        folder.write_results(RESULTS)

    monkeypatch.setattr(run_module, "run_simulation", simulate)
    assert run("--engine", "ray", "--workers", "2", "--out", "there") == 0
    assert "extractor 1/1  loss 2.500" in capsys.readouterr().out
    assert (given["num_supernodes"], given["num_cpus"], given["gpus_per_client"]) == (10, 2, 0.0)
    log = tmp_path / "there" / "nmoe" / "simulation.log"
    assert log.read_text() == "a line of the simulation\n"
    assert not pipeline.grids


def test_config_prints_a_recipe_that_reads_back_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = ["data.tau=0.2", 'data.dataset="a \\"b\\" é"', "gate.methods=local,random"]
    assert cli.main(["config", "--set", *overrides]) == 0
    out = capsys.readouterr().out
    assert Config.parse(tomllib.loads(out)) == Config.load(None, overrides)
    lines = out.splitlines()
    keys = [number for number, line in enumerate(lines) if " = " in line and line[0] != "#"]
    assert len(keys) == len(Config.parse({}).flat())
    assert all(lines[number - 1].startswith("# ") for number in keys)
    assert any(
        "(one of dominant, iid, dirichlet, pathological, natural, or" in line for line in lines
    )


def test_partition_prints_and_draws_who_holds_what(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["data.num-clients=5", "data.train-per-client=100", "data.tau=0.25"]
    assert cli.main(["partition", "--set", *arguments, "--out", "who.png"]) == 0
    train, _, used = capsys.readouterr().out.split("\n\n")
    assert used.startswith(
        "train: 500 of 1,438 samples are used; 938 are not: data.train-per-client is 100\n"
        "local test: 195 of 359 samples are used; 164 are not: every client holds equally many, 39,"
    )
    train = train.splitlines()
    assert train[1].split() == ["client", *map(str, range(10)), "total", "dominant"]
    # Share 1 / (1 + 0.25) = 80 % of 100 samples; client 3's dominant class is 3.
    row = train[2 + 3].split()
    assert row[0] == "3"
    assert row[1 + 3] == "80"
    assert row[-2:] == ["100", "80.0%"]
    assert train[-1].split()[-1] == "500"
    assert (tmp_path / "who.png").read_bytes().startswith(b"\x89PNG")


def change_nothing(folder: Path) -> None:
    """The same bytes in new files: not another data set."""
    for path in sorted(folder.rglob("*.png")):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)


def delete(folder: Path) -> None:
    for number in range(4):
        (folder / "train" / "a" / f"{number}.png").unlink()


def add(folder: Path) -> None:
    Image.new("L", (8, 8), 250).save(folder / "train" / "b" / "new.png")


def replace(folder: Path) -> None:
    Image.new("L", (8, 8), 250).save(folder / "train" / "b" / "0.png")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_nothing, ""),
        (delete, "train had 24 samples and has 20 (class 'a': 12 then, 8 now)"),
        (add, "train had 24 samples and has 25 (class 'b': 12 then, 13 now)"),
        (replace, "as many samples of every class as before, but not the same ones"),
    ],
)
def test_a_run_goes_on_with_the_data_it_began_with(
    pipeline: Pipeline,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    change: Callable[[Path], None],
    told: str,
) -> None:
    folder = tmp_path / "photos"
    for split, label in itertools.product(("train", "test"), "ab"):
        (folder / split / label).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (8, 8), 20 * number).save(folder / split / label / f"{number}.png")
    pipeline.fail = EngineError("stopped")
    assert run("--name", "one", "--set", "data.dataset=photos", "data.num-clients=2") == 1
    change(folder)
    pipeline.fail = None
    assert run("--resume", "runs/one") == (1 if told else 0)
    error = capsys.readouterr().err
    if told:
        assert f"was begun with other data in '{folder}': {told}; put back" in error
    else:
        assert run("--resume", "runs/one") == 0  # finished: nothing is trained


def test_partition_names_the_clients_that_are_in_the_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"{row},{row % 2},user-{row % 3}" for row in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["x,label,user", *lines]))
    settings = ["data.kind=features", "data.dataset=rows.csv", "extractor.backbone=mlp",
                "data.scheme=natural", "data.partition-column=user", "data.num-clients=2",
                "data.cache-dir=cache"]  # fmt: skip
    assert cli.main(["partition", "--set", *settings]) == 0
    out = capsys.readouterr().out
    table = [line.split()[:2] for line in out.split("\n\n")[0].splitlines()]
    assert table[2:4] == [["0", "user-0"], ["1", "user-1"]]
    assert "train: 32 of 48 samples are used; 16 are not: 2 of the 3 in the data are clients" in out


def test_partition_of_a_language_run_counts_the_windows_of_each_domain(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_domains(tmp_path / "texts", documents=9)
    settings = {**TINY_LANGUAGE, "data.dataset": "./texts", "data.cache-dir": "cache",
                "data.num-clients": 2, "data.test-per-client": 3,
                "data.validation-per-client": 4}  # fmt: skip
    assert cli.main(["partition", "--set", *(f"{k}={v}" for k, v in settings.items())]) == 0
    printed = capsys.readouterr()
    _, test, validation, _ = printed.out.split("\n\n")
    assert [line.split() for line in test.splitlines()[1:]] == [
        ["client", "code", "numbers", "total", "dominant"],
        ["0", "code", "3", "0", "3", "100.0%"],
        ["1", "numbers", "0", "3", "3", "100.0%"],
        ["all", "3", "3", "6"],
    ]
    assert validation.startswith("validation windows of ./texts")
    assert "note: text of animals is nobody's: 2 of the 3 in the data are clients" in printed.err


@pytest.mark.parametrize("content", ["[]", "{}", '{"rows": 3}', '{"rows": [[]]}', '{"rows": [{}]}'])
def test_results_of_no_run_are_told_as_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    path = tmp_path / "one"
    RunFolder.create(path, Config()).results_path.write_text(content)
    assert cli.main(["run", "--resume", str(path), "--no-figures"]) == 1
    assert "results.json does not hold a run's results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rn"], "argument COMMAND: 'rn' is unknown; did you mean run?"),
        (["studdy", "plan", "digits"], "'studdy' is unknown; did you mean study?"),
        (["fly"], "argument COMMAND: 'fly' is unknown; allowed: run, partition, report, "),
        (["study", "reprot", "digits"], "argument VERB: 'reprot' is unknown; did you mean report?"),
        (["deploy", "chek", "lab"], "argument VERB: 'chek' is unknown; did you mean check?"),
        (["deploy", "lab"], "arguments are required: --nodes"),
        (["run", "--engine", "inproces"], "--engine: 'inproces' is unknown; did you mean inproc"),
        (["run", "--format", "xml"], "'xml' is unknown; allowed: auto, text, json"),
        (["align", "c.csv", "--policy", "greddy"], "'greddy' is unknown; did you mean greedy?"),
        (["run", "cifar10-quik"], "no recipe of that name; did you mean cifar10-quick?"),
    ],
)
def test_a_misspelt_choice_is_named(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli._parser().parse_args(words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from commands(below)


def test_every_command_and_every_option_says_what_it_is() -> None:
    silent, shouting = [], []
    for parser in commands(cli._parser()):
        if not parser.description:
            silent.append(parser.prog)
        for action in parser._actions:
            name = f"{parser.prog} {'/'.join(action.option_strings) or action.metavar}"
            if isinstance(action, argparse._SubParsersAction) or action.nargs == "...":
                continue
            if not action.help:
                silent.append(name)
            if action.metavar is None and not action.choices and action.nargs != 0:
                shouting.append(name)  # argparse makes --max-batch MAX_BATCH of it
    assert silent == []
    assert shouting == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--sed", "1"], "unknown option --sed; did you mean --seed?"),
        (["run", "--see", "1"], "unknown option --see; did you mean --seed?"),
        (["study", "plan", "digits", "--forma=json"], "--forma; did you mean --format?"),
        (["partition", "--ouput", "x.png"], "unknown option --ouput; did you mean --out?"),
        (["deploy", "check", "lab", "--jason"], "unknown option --jason"),
        (["privacy", "--images", "5"], "unknown option --images\n"),
        (["privacy", "--examples", "5", "--exmaples", "5"], "--exmaples; did you mean --examples?"),
        (["infer", "bundle", "--qqq", "1"], "unknown option --qqq"),
    ],
)
def test_a_misspelt_option_is_named(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its value must not be taken for a recipe, a folder or an image."""
    with pytest.raises(SystemExit) as ended:
        cli._parser().parse_args(words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


LITTLE = ("extractor.backbone=mlp", "extractor.widths=4", "expert.hidden=", "data.num-clients=4",
          "extractor.head=linear")  # fmt: skip


def test_systems_tell_what_each_costs_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    shaped = ["--shape", "1,8,8", "--classes", "3"]
    assert cli.main(["systems", *shaped, "--format", "json", "--set", *LITTLE]) == 0
    told = json.loads(capsys.readouterr().out)
    trunk, head, arrays = 64 * 4 + 4, 4 * 3 + 3, 4  # weights and biases; a header of 128 bytes each
    whole = 4 * (trunk + head) + 128 * arrays
    assert told["fedavg"]["cost"] == {
        "parameters": trunk + head, "at_home": 0, "bytes_down": whole, "bytes_up": whole,
    }  # fmt: skip
    assert told["ditto"]["cost"]["parameters"] == 2 * (trunk + head)
    assert told["fedper"]["cost"]["bytes_up"] == 4 * trunk + 128 * 2
    assert told["fedper"]["cost"]["at_home"] == head
    assert "frozen features" in told["pfedmoap"]["refused"]
    assert cli.main(["systems", *shaped, "--set", *LITTLE]) == 0
    text = capsys.readouterr().out
    assert ["ditto", "550", "275", "1,612", "1,612"] in [line.split() for line in text.splitlines()]
    assert "pfedmoap: configuration: run.system" in text
    nobody = "expert.hidden=8"  # fine-tuned from a linear head: no system's fault
    assert cli.main(["systems", *shaped, "--set", *LITTLE, nobody]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("expert.init = fine-tune") == 1


def test_systems_take_the_shape_from_the_data_or_both_of_its_parts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["systems", "--format", "json", "--set", *LITTLE]) == 0
    told = json.loads(capsys.readouterr().out)  # of the digits: 8 x 8 pixels, ten classes
    assert told["fedavg"]["cost"]["parameters"] == 64 * 4 + 4 + 4 * 10 + 10
    assert cli.main(["systems", "--format", "json"]) == 0
    default = json.loads(capsys.readouterr().out)
    network = ExpertNetwork(Config.parse({"run.system": "fedavg"}), (1, 8, 8), 10)
    assert default["fedavg"]["cost"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert {name for name, one in default.items() if "cost" not in one} == {"pfedmoap"}
    assert cli.main(["systems", "--shape", "1,8,8"]) == 1
    assert "--shape and --classes belong together" in capsys.readouterr().err
