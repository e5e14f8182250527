"""How a study stands: what is there, missing, broken; what is shared; how long the rest takes."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower import cli
from nmoe_flower.checkpoint import Checkpoints
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, NMoEError
from nmoe_flower.progress import make_progress
from nmoe_flower.results import RunFolder, placed
from nmoe_flower.running import run_in
from nmoe_flower.study import Study, StudyOutcome, chosen, make_plan
from nmoe_flower.study.one import note_failure
from nmoe_flower.study.outcomes import outcomes_of
from nmoe_flower.study.plan import FAILED
from nmoe_flower.study.share import HALF_TAKEN, key_of
from tests.study.test_share import TINY, assert_equal_runs

FILE = 'title = "Gates of the digits"\nseeds = [0, 1]\n[axes]\ngate.top-k = [1, 2]\n'
RESULTS = {
    "rows": [],
    "stages": {"extractor": {"seconds": 240.0}, "gate/federated": {"seconds": 40.0}},
    "seconds": 300.0,  # with controls and tests
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_cache: Path) -> Path:
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    monkeypatch.chdir(tmp_path)
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in TINY.items())
    (tmp_path / "small.toml").write_text(f"{FILE}[set]\n{settings}")
    return tmp_path


def load(folder: Path) -> Study:
    return Study.load(folder / "small.toml")


def made(folder: Path, number: int, **settings: Any) -> RunFolder:
    """The folder of a run that has only begun."""
    run = load(folder).runs[number]
    path = folder / "runs" / run.place
    config = Config.parse({**run.config.flat(), **settings})
    return RunFolder.create(path, placed(config, path))


def checkpoint(run: RunFolder, **state: Any) -> None:
    Checkpoints(run.path / "checkpoints").save(1, {}, {"stages": [], "costs": {}, **state})


def states(folder: Path, **options: Any) -> list[tuple[str, str]]:
    plan = make_plan(load(folder), folder / "runs", results=folder / "none", **options)
    return [(one.state, one.reason) for one in plan.runs]


# --- code of one's own ---


@pytest.mark.parametrize("verb", ["plan", "run", "commands"])
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("gate.methods=local,my_gates:Nearest", "there is no module 'my_gates'"),
        ("gate.objective=json:dump_", "has no 'dump_'; did you mean dump?"),
        ("data.scheme=json:codecs", "codecs of"),
        ("data.scheme=my_deal:share", "there is no module 'my_deal'"),
    ],
)
def test_code_of_ones_own_that_is_not_there_is_refused_before_a_worker_starts(
    folder: Path, verb: str, setting: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", verb, "small.toml", "--set", setting]) == 1
    told, named = capsys.readouterr().err, setting.replace("=", " = ").replace("local,", "")
    begins = "nmoe: error: the study small.toml: variant base (gate.top-k = 1):"
    assert told.startswith(f"{begins} {named}: ")
    assert said in told
    assert not (folder / "runs").exists()


def test_what_has_finished_needs_no_code_of_ones_own_any_more(folder: Path) -> None:
    with (folder / "small.toml").open("a") as file:
        file.write('gate.objective = "my_loss:gone"\n')
    for number in range(4):
        run = made(folder, number)
        checkpoint(run)
        (run.path / "results.json").write_text(json.dumps(RESULTS))
    assert {state for state, _ in states(folder)} == {"finished"}


# --- states ---


def test_nothing_is_there(folder: Path) -> None:
    plan = make_plan(load(folder), folder / "runs", results=folder / "none")
    assert [one.state for one in plan.runs] == ["missing"] * 4
    assert [(stage.users, stage.state) for stage in plan.stages] == [(2, "missing")] * 2
    assert plan.seconds > 0
    assert not (folder / "runs").exists()


def test_data_that_cannot_be_dealt_out_are_refused_before_anything_begins(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the 1,797 digits nobody has 9,000; what is not in the cache yet, the run itself tells."""
    with (folder / "small.toml").open("a") as file:
        file.write("[[exceptions]]\ngate.top-k = 2\nset = { data.train-per-client = 9000 }\n")
    plan = make_plan(load(folder), folder / "runs", results=folder / "none")
    assert [one.state for one in plan.runs] == ["missing"] * 2 + ["refused"] * 2
    assert [one.runs for one in plan.runs] == [True] * 2 + [False] * 2
    assert [stage.users for stage in plan.stages] == [1, 1]
    assert "data (num-clients = " in plan.runs[2].reason
    assert "9000" in plan.runs[2].reason
    assert cli.main(["study", "run", "small.toml", "--dry-run"]) == 1
    told = capsys.readouterr().out
    assert "top-k-2/seed-0: cannot begin: data (" in told
    assert "4 runs: 2 missing, 2 cannot begin" in told
    assert not (folder / "runs").exists()
    elsewhere = Study.load(folder / "small.toml", [f"data.cache-dir={folder / 'cold'}"])
    plan = make_plan(elsewhere, folder / "runs", results=folder / "none")
    assert {one.state for one in plan.runs} == {"missing"}


def test_what_has_finished_elsewhere_need_not_be_made(folder: Path) -> None:
    """With other data paths, too; where a run is here, it is this one that counts."""
    made(folder, 0, **{"data.dataset": "/another/place"}).write_results(RESULTS)
    made(folder, 1, **{"gate.rounds": 7}).write_results(RESULTS)  # of other settings
    made(folder, 2)  # has not finished
    elsewhere = (folder / "runs").rename(folder / "elsewhere")
    checkpoint(made(folder, 3), stage="extractor", round=5)
    assert [state for state, _ in states(folder)] == ["missing"] * 3 + ["stopped"]
    found = states(folder, finished=[folder / "none", elsewhere])
    assert [state for state, _ in found] == ["finished", "missing", "missing", "stopped"]


def test_every_state_is_told_with_its_reason(folder: Path) -> None:
    made(folder, 0).write_results(RESULTS)
    checkpoint(made(folder, 1), stage="extractor", round=5)
    (broken := made(folder, 2)).results_path.write_text("{")
    other = made(folder, 3, **{"data.tau": 0.9, "gate.rounds": 7})
    checkpoint(other, stage="extractor", round=5)
    found = states(folder)
    assert found[0] == ("finished", "")
    assert found[1] == ("stopped", "after round 5 of extractor")
    assert found[2][0] == "broken"
    assert f"{broken.results_path} is not valid JSON" in found[2][1]
    assert found[3] == (
        "other",
        "another configuration is there: data.tau is 0.9 and not 0.3; gate.rounds is 7 and not 2",
    )


def test_a_run_that_failed_or_never_trained_is_tried_again(folder: Path) -> None:
    made(folder, 0, **{"data.tau": 0.9})  # begun, and nothing to lose
    (folder / "runs" / load(folder).runs[1].place).mkdir(parents=True)
    (folder / "runs" / load(folder).runs[1].place / FAILED).write_text('{"error": "no room"}')
    half = made(folder, 2)
    checkpoint(half, stage="extractor/done")
    (half.path / HALF_TAKEN).write_text("")
    failed = made(folder, 3)
    checkpoint(failed, stage="gate/federated", round=1)
    (failed.path / FAILED).write_text("[")
    assert states(folder) == [
        ("missing", ""),
        ("failed", "no room"),
        ("missing", ""),
        ("failed", "for a reason that cannot be read any more"),
    ]


def test_runs_whose_stage_1_has_failed_have_failed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the plan and in what a report reads; a run that is beyond its stage 1 is none of them."""
    checkpoint(made(folder, 0), stage="gate/federated", round=1, stages=["extractor"])
    study, why = load(folder), "stage 1 failed: it diverged at once"
    stage = folder / "runs" / "stage-1" / key_of(study.runs[0].config)
    note_failure(stage, "it diverged\nat once")
    assert states(folder) == [
        ("stopped", "after round 1 of gate/federated"),
        ("missing", ""),
        ("failed", why),
        ("missing", ""),
    ]
    runs = folder / "runs"
    assert [one.failed for one in outcomes_of(study, runs)] == ["", "", why, ""]
    elsewhere = stage.parent.rename(folder / "elsewhere")
    assert [one.failed for one in outcomes_of(study, runs, stage_1=elsewhere)][2] == why
    plan = make_plan(study, runs, stage_1=elsewhere)
    assert [(one.state, one.reason) for one in plan.stages] == [
        ("missing", ""),
        ("failed", "it diverged at once"),
    ]
    assert nmoe("plan", "small.toml", "--stage-1", "elsewhere") == 0
    shown = capsys.readouterr().out
    assert f"top-k-2/seed-0: failed: {why}" in shown
    assert f"{stage.name}  failed: it diverged at once" in shown
    assert "4 runs: 1 stopped half-way, 1 failed, 2 missing" in shown
    done = RunFolder.create(elsewhere / stage.name, study.runs[0].config)
    checkpoint(done, stage="extractor/done", stages=["extractor"])
    assert [state for state, _ in states(folder, stage_1=elsewhere)][2] == "missing"
    assert [one.failed for one in outcomes_of(study, runs, stage_1=elsewhere)] == [""] * 4


@pytest.mark.parametrize("left", ["results.json", "rounds.jsonl", "checkpoints", "weights"])
def test_a_run_that_has_lost_its_config_is_broken(left: str, folder: Path) -> None:
    run = made(folder, 0)
    (run.path / "config.toml").unlink()
    assert states(folder)[0] == ("missing", "")  # it had only begun
    (run.path / left).touch() if "." in left else (run.path / left).mkdir()
    assert states(folder)[0] == (
        "broken",
        f"{run.path} has no config.toml, but {left}: put it back, or move the folder away",
    )
    with pytest.raises(NMoEError, match=f"has no config.toml, but {left}: put it back"):
        outcomes_of(load(folder), folder / "runs")


def test_a_config_that_cannot_be_read_is_broken(folder: Path) -> None:
    (made(folder, 0).path / "config.toml").write_text("gate = 3")
    assert states(folder)[0][0] == "broken"


def test_what_a_run_fills_in_from_its_data_is_no_difference(folder: Path) -> None:
    table = "data.kind = 'features'\ndata.dataset = 'x.csv'\nextractor.backbone = 'mlp'\n"
    (folder / "small.toml").write_text(f'title = "T"\n[set]\n{table}')
    filled = {
        "data.feature-columns": "a", "data.feature-means": "1.5", "data.feature-deviations": "2.0"
    }  # fmt: skip
    made(folder, 0, **filled).write_results(RESULTS)
    assert states(folder) == [("finished", "")]


def test_stage_1_elsewhere_is_found(folder: Path) -> None:
    run = load(folder).runs[0]
    shared = folder / "shared" / "by-hand"
    checkpoint(RunFolder.create(shared, run.config), stage="extractor/done", stages=["extractor"])
    plan = make_plan(load(folder), folder / "runs", stage_1=folder / "shared")
    assert [(stage.path, stage.state, stage.seconds) for stage in plan.stages[:1]] == [
        (shared, "finished", 0.0)
    ]
    assert plan.stages[1].path == folder / "shared" / key_of(load(folder).runs[1].config)


# --- how long ---


def test_estimates_are_those_of_the_nearest_run_measured(folder: Path) -> None:
    made(folder, 0).write_results(RESULTS)
    plan = make_plan(load(folder), folder / "runs", results=folder / "none")
    assert plan.source == "finished runs of this study"
    assert [one.seconds for one in plan.runs] == [0.0, 60.0, 60.0, 60.0]
    assert [stage.seconds for stage in plan.stages] == [240.0, 240.0]
    published = folder / "published" / "small"
    shutil.move(folder / "runs" / "small", published)
    again = make_plan(load(folder), folder / "runs", results=folder / "published")
    wanted = 4 * 60.0 + 2 * 240.0
    assert (again.source, again.seconds) == ("published runs of this study", wanted)
    for name, slower in (("others", 1), ("busy", 1), ("busier", 9)):
        copied = folder / "published" / name
        shutil.copytree(published, copied)
        for file in copied.rglob("results.json"):
            stages = {"extractor": {"seconds": 240.0 * slower}}
            file.write_text(json.dumps({"rows": [], "stages": stages, "seconds": 300.0 * slower}))
    shutil.rmtree(published)
    again = make_plan(load(folder), folder / "runs", results=folder / "published")
    assert (again.source, again.seconds) == ("published runs", wanted)


def test_a_stopped_run_has_only_its_rest_to_do(folder: Path) -> None:
    made(folder, 0).write_results(RESULTS)
    checkpoint(made(folder, 1), stage="extractor", round=1)  # of 2
    plan = make_plan(load(folder), folder / "runs", results=folder / "none")
    assert plan.runs[1].seconds == 60.0 + 0.5 * 240.0


def test_a_run_stopped_in_its_last_stage_goes_on_at_its_own_pace(folder: Path) -> None:
    with (folder / "small.toml").open("a") as file:
        file.write('run.system = "fedavg"\nbaseline.rounds = 40\n')
    costs = {"baseline": {"rounds": 4, "seconds": 8.0}}
    checkpoint(made(folder, 0), stage="baseline", round=4, costs=costs)
    assert make_plan(load(folder), folder / "runs").runs[0].seconds == 36 * 2.0


# --- which runs ---


@pytest.mark.parametrize(
    ("only", "seeds", "names"),
    [
        ([], [], ["1/0", "1/1", "2/0", "2/1"]),
        (["top-k-2"], [], ["2/0", "2/1"]),
        (["*/seed-1"], [], ["1/1", "2/1"]),
        (["top-k-?"], [1], ["1/1", "2/1"]),
        (["top-k-1/seed-0", "top-k-2/seed-1"], [], ["1/0", "2/1"]),
        (["base"], [0], ["1/0", "2/0"]),
    ],
)
def test_some_runs_are_chosen(
    only: list[str], seeds: list[int], names: list[str], folder: Path
) -> None:
    runs = chosen(load(folder), only=only, seeds=seeds)
    assert [f"{run.values['gate.top-k']}/{run.seed}" for run in runs] == names


def test_a_choice_that_matches_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--only nothing\* matches no run of .*: top-k-1, top-k"):
        chosen(load(folder), only=["nothing*"])
    with pytest.raises(ConfigError, match=r"--seeds 7: .* has no such seed; allowed: 0, 1"):
        chosen(load(folder), seeds=[7])
    with pytest.raises(ConfigError, match=r"--only \*/seed-1 top-k-1/\*1 --seeds 0: .*no such run"):
        chosen(load(folder), only=["*/seed-1", "top-k-1/*1"], seeds=[0])


# --- the commands ---


def nmoe(*words: str) -> int:
    return cli.main(["study", *words])


def test_plan_tells_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(made(folder, 1), stage="extractor", round=1)
    assert nmoe("plan", "small.toml") == 0
    text = capsys.readouterr().out
    assert "Gates of the digits" in text
    assert "top-k-1/seed-1: stopped half-way: after round 1 of extractor" in text
    assert "4 runs: 1 stopped half-way, 3 missing" in text
    assert "of work are left" in text
    assert nmoe("plan", "small.toml", "--format", "json", "--seeds", "1") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(run["run"], run["state"]) for run in told["runs"]] == [
        ("top-k-1/seed-1", "stopped"), ("top-k-2/seed-1", "missing")
    ]  # fmt: skip
    assert [stage["runs"] for stage in told["stage-1"]] == [1]
    assert nmoe("run", "small.toml", "--dry-run") == 0
    assert "4 runs: 1 stopped half-way, 3 missing" in capsys.readouterr().out


def test_a_plan_loads_nothing_that_trains_or_draws(folder: Path) -> None:
    slow = ["torch", "flwr", "scipy", "matplotlib", "nmoe_flower.pipeline", "nmoe_flower.report"]
    program = (
        "import sys; from nmoe_flower.cli import main; main(['study', 'plan', 'small.toml']); "
        f"print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_folder_changed_by_hand_is_named_and_nothing_is_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = made(folder, 0, **{"data.tau": 0.9})
    checkpoint(other, stage="extractor", round=5)
    (broken := made(folder, 1)).results_path.write_text("{")
    before = {path: path.read_bytes() for path in other.path.rglob("*") if path.is_file()}
    assert nmoe("run", "small.toml", "--only", "top-k-1") == 1
    told = capsys.readouterr().out
    assert "top-k-1/seed-0: failed: nothing was touched: another configuration is there" in told
    assert "data.tau is 0.9 and not 0.3" in told
    assert "0 of 2 runs are finished, 0 of them now; 2 failed" in told
    assert {path: path.read_bytes() for path in before} == before
    assert broken.results_path.read_text() == "{"
    assert nmoe("run", "small.toml", "--one", "top-k-1/seed-0") == 1
    assert "nothing was touched" in capsys.readouterr().err
    for verb in (["plan"], ["run", "--dry-run"]):
        assert nmoe(*verb, "small.toml", "--only", "top-k-1", "--format", "json") == 1
        assert len(json.loads(capsys.readouterr().out)["runs"]) == 2
    assert nmoe("plan", "small.toml", "--only", "top-k-1") == 1
    told = "top-k-1/seed-0: another configuration is there: data.tau is 0.9 and not 0.3\n"
    assert told in capsys.readouterr().out
    assert nmoe("commands", "small.toml", "--only", "top-k-1") == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("nmoe: left out: top-k-1/seed-")) == ("", 2)


def test_lines_name_what_they_read_from_everywhere(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine").mkdir()
    options = ["--seeds", "0", "--part", "runs", "--set"]
    assert nmoe("commands", "small.toml", *options, "data.dataset=mine", "gate.rounds=3") == 0
    assert f"--set data.dataset={folder}/mine gate.rounds=3\n" in capsys.readouterr().out
    assert nmoe("commands", "small.toml", *options, "data.dataset=somebody/images") == 0
    assert "--set data.dataset=somebody/images\n" in capsys.readouterr().out


def test_lines_run_anywhere_and_end_as_runs_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--seeds", "0", "--workers", "0", "--set", "gate.rounds=3"]
    assert nmoe("commands", "small.toml", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    study = Study.load("small.toml", ["gate.rounds=3"])
    runs = [run for run in study.runs if run.seed == 0]
    names = [f"stage-1/{key_of(runs[0].config)}", "top-k-1/seed-0", "top-k-2/seed-0"]
    assert [shlex.split(line)[5] for line in lines] == names
    assert nmoe("commands", "small.toml", "--part", "stage-1", *options) == 0
    assert capsys.readouterr().out.splitlines() == lines[:1]
    assert nmoe("commands", "small.toml", "--part", "runs", *options) == 0
    assert capsys.readouterr().out.splitlines() == lines[1:]
    for line in (lines[2], lines[0], lines[1]):  # whoever comes first trains stage 1
        assert cli.main(shlex.split(line)[1:]) == 0
    for run in runs:
        alone = folder / "alone" / run.variant
        run_in(alone, run.config, workers=0, view=make_progress(None))
        assert_equal_runs(folder / "runs" / run.place, alone)
    capsys.readouterr()
    assert nmoe("commands", "small.toml", *options) == 0
    assert capsys.readouterr().out == ""
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0  # a line that was done already
    told = capsys.readouterr().out
    assert f"no run needs {names[0]} any more" in told
    assert "top-k-2/seed-0 is finished already" in told
    assert nmoe("report", "small.toml") == 1  # the runs are of other settings than the file's
    assert "gate.rounds = 3, the study has 2" in capsys.readouterr().err
    assert nmoe("report", "small.toml", "--set", "gate.rounds=3") == 0
    assert "report.md" in capsys.readouterr().out


def test_settings_that_make_two_variants_one_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "small.toml").open("a") as file:
        file.write("[variants.one]\n[variants.two]\nset.gate.rounds = 3\n")
    assert nmoe("plan", "small.toml", "--set", "gate.rounds=4") == 1
    told = "--set gate.rounds=4: the study small.toml: one-top-k-1 and two-top-k-1 are the same"
    assert told in capsys.readouterr().err


def test_after_ctrl_c_the_line_that_goes_on_has_all_options(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = StudyOutcome(interrupted=True)
    monkeypatch.setattr("nmoe_flower.study.run_study", lambda *_, **__: stopped)
    (folder / "of others").mkdir()
    words = ["nmoe", "study", "run", "small.toml", "--out", "mine", "--stage-1", "first",
             "--finished", "of others", "--finished", ".", "--set", "gate.rounds=3",
             "--only", "top-k-1", "--seeds", "0", "--workers", "0", "--format", "json",
             "--jobs", "2"]  # fmt: skip
    assert cli.main(words[1:]) == 130
    line = capsys.readouterr().err.removeprefix("nmoe: interrupted; go on with: ").strip()
    assert shlex.split(line) == words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "small.toml", "--one", "x/seed-0"], "has no such run; nmoe study plan lists them"),
        (
            ["run", "small.toml", "--one", "stage-1/x"],
            "--one stage-1/x: small.toml has no such stage 1; nmoe study commands prints them",
        ),
        (["run", "small.toml", "--one", "x", "--seeds", "0"], "--one names the run"),
        (["run", "small.toml", "--one", "x", "--jobs", "3"], "--one names the run"),
        (["plan", "small.toml", "--finished", "none"], "--finished none: no such folder"),
        (["report", "small.toml", "--finished", "none"], "--finished none: no such folder"),
        (
            ["plan", "small.toml", "--set", "novalue"],
            "error: --set novalue: KEY=VALUE is wanted",
        ),
        (
            ["plan", "small.toml", "--set", "data.tua=1"],
            "error: --set: data.tua is no key of the configuration; did you mean data.tau?",
        ),
        (
            ["plan", "small.toml", "--set", "gate.rounds=none"],
            "error: --set gate.rounds=none: the study small.toml: variant base (gate.top-k = 1): ",
        ),
        (["plan", "missing"], "there is no file 'missing' and no study of that name"),
        (["plan", "missing.toml"], "cannot read the study missing.toml"),
        (["plan", "cifar10"], "cifar10 is a recipe: nmoe run cifar10"),
        (["plan", "small.toml", "--set", "gate.top-k=3"], "the axis gate.top-k sets it"),
        (["plan", "small.toml", "--only", "none"], "--only none matches no run"),
    ],
)
def test_wrong_words_are_one_message(
    words: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nmoe(*words) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("nmoe: error: ")
    assert not (folder / "runs").exists()
