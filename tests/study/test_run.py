"""A study's runs in their processes: what fails, what is stopped, what is left, what is told."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest

from nmoe_flower.config import Config
from nmoe_flower.errors import LockedError, NMoEError
from nmoe_flower.lock import LOCK, locked
from nmoe_flower.machine import usable_cores
from nmoe_flower.progress import make_progress
from nmoe_flower.results import RunFolder
from nmoe_flower.running import run_in
from nmoe_flower.study import Study, StudyTask, StudyView, carry_out, make_plan, run_study
from nmoe_flower.study import one as one_module
from nmoe_flower.study import run as run_module
from nmoe_flower.study.hosts import INTERRUPTED, STOPPED
from nmoe_flower.study.plan import FAILED
from nmoe_flower.study.run import AtWork
from nmoe_flower.study.share import STAGE_1
from tests.forks import Nmoe
from tests.study.test_share import TINY, assert_equal_runs

SILENT = make_progress(None)
FILE = """
title = "T"
seeds = [0, 1]
[axes]
gate.top-k = [1, 2]
"""
# A run's process without torch: it reads its task, and does what its folder's name says.
FAKE = """
import json, os, pathlib, signal, sys, time
task = json.loads(sys.stdin.readline())
path = pathlib.Path(task["path"])
path.mkdir(parents=True, exist_ok=True)
log = path.parents[1] / "log"
with log.open("a") as file:
    threads = os.environ["OMP_NUM_THREADS"]
    file.write(f"{path.parent.name}/{path.name} {task['workers']} {threads}\\n")
print(json.dumps({"stage": "extractor", "round": 1, "rounds": 2}), flush=True)
"""


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, warm_cache: Path) -> None:
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "small.toml").write_text(FILE)
    return Study.load(tmp_path / "small.toml")


@pytest.fixture
def lines() -> StringIO:
    return StringIO()


def fake(monkeypatch: pytest.MonkeyPatch, program: str = "") -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(run_module, "PROGRAM", [sys.executable, "-c", FAKE + program])


def view(lines: StringIO) -> StudyView:
    return StudyView(json_lines=True, stream=lines, every=1e9)


def told(lines: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def log(tmp_path: Path) -> list[str]:
    return (tmp_path / "runs" / "small" / "log").read_text().splitlines()


# --- the scheduler, with processes that only pretend ---


def test_runs_are_made_in_order_and_told(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: StringIO
) -> None:
    fake(monkeypatch)
    done = run_study(make_plan(study, tmp_path / "runs"), workers=3, view=view(lines))
    assert (done.finished, done.made, done.failed, done.left) == (4, 4, {}, 0)
    names = ["top-k-1/seed-0", "top-k-1/seed-1", "top-k-2/seed-0", "top-k-2/seed-1"]
    assert log(tmp_path) == [f"{name} 3 {usable_cores()}" for name in names]
    starts = [one for one in told(lines) if one["now"] == "starts"]
    assert [(one["run"], one["number"], one["of"]) for one in starts] == [
        (name, number, 4) for number, name in enumerate(names, start=1)
    ]
    assert [one["seconds_left"] for one in told(lines)][-1] == 0


def test_what_is_left_follows_those_that_take_longer() -> None:
    """Of 60 s to come and 30 s at work: twice that where others took twice theirs."""
    ended = [(5.0, 2.0), (15.0, 8.0)]
    assert run_module.seconds_left(60.0, [AtWork(30.0, 0.0)], ended, room=2) == 90.0
    outlasted = [AtWork(30.0, 60.0), AtWork(30.0, 0.0)]  # the first has taken twice its own
    assert run_module.seconds_left(60.0, outlasted) == 120.0 + 60.0
    assert run_module.seconds_left(0.0, [AtWork(0.0, 5.0)]) == 0.0
    three = [AtWork(30.0, 15.0, 3.0)]  # whose rounds show that it takes three times as long
    assert run_module.seconds_left(60.0, three) == 180.0 + 75.0
    assert run_module.seconds_left(60.0, three, [(5.0, 5.0)]) == 120.0 + 75.0


def test_rounds_of_a_stage_1_tell_its_pace(study: Study, tmp_path: Path) -> None:
    """Resumed after round 100 of 500: 41 rounds of 400 took 41 s, where all were to take 200."""
    planned = make_plan(study, tmp_path).runs[0]
    begun = time.monotonic() - 41.0
    child = run_module._Child(1, planned, cast(Any, None), begun, shared=200.0)
    child.follow(STAGE_1, 101, 500)
    assert child.pace == 0.0  # one round says little
    child.follow(STAGE_1, 141, 500)
    assert child.pace == pytest.approx(2.0, abs=0.01)
    running = AtWork(230.0, 41.0, child.pace)
    assert run_module.seconds_left(0.0, [running]) == pytest.approx(419, abs=3)


def test_rounds_of_a_later_stage_tell_its_pace(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 50 s of other stages: 4 rounds of 40 took 10 s each, whatever was expected of all."""
    planned = replace(make_plan(study, tmp_path).runs[0], seconds=800.0)
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for stage, hoped, left, pace in (("baseline", 800.0, 360.0, 0.5), ("gates", 60.0, 360.0, 0.0),
                                     ("gates", 800.0, 710.0, 0.0)):  # fmt: skip
        now = 0.0
        child = run_module._Child(1, replace(planned, seconds=hoped), cast(Any, None), now, 0.0)
        for number in range(1, 5):
            now = 50.0 + 10.0 * number
            child.follow(stage, number, 40, seconds=10.0)
        assert child.pace == pytest.approx(pace)
        assert (child.at_work.spent, child.at_work.rest) == (90.0, 360.0)
        assert run_module.seconds_left(0.0, [child.at_work]) == left


def test_runs_at_a_time_share_the_cores_and_wait_for_a_stage_in_the_making(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: StringIO
) -> None:
    """With two at a time the second is that of the other seed: it has another stage 1.

    Client processes and threads of torch are shared alike; threads that the user sets stay.
    """
    monkeypatch.setattr(run_module, "usable_cores", lambda: 8)
    fake(monkeypatch)
    run_study(make_plan(study, tmp_path / "runs"), jobs=2, view=view(lines))
    starts = [one["run"] for one in told(lines) if one["now"] == "starts"]
    assert starts[:2] == ["top-k-1/seed-0", "top-k-1/seed-1"]
    assert {tuple(line.split()[1:]) for line in log(tmp_path)} == {("4", "4")}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_study(make_plan(study, tmp_path / "runs"), jobs=2, view=view(lines))
    assert log(tmp_path)[-1].split()[2] == "3"


def test_a_process_makes_one_run_after_another(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: StringIO
) -> None:
    """So torch is loaded once; it ends when nothing more comes."""
    fake(
        monkeypatch,
        "pids = path.parents[1] / 'pids'\n"
        "with pids.open('a') as file: print(os.getpid(), file=file)\n"
        "print(json.dumps({'done': True}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    with pids.open('a') as file: print(os.getpid(), file=file)\n"
        "    print(json.dumps({'done': True}), flush=True)\n",
    )
    done = run_study(make_plan(study, tmp_path / "runs"), view=view(lines))
    assert (done.made, done.failed, done.left) == (4, {}, 0)
    pids = (tmp_path / "runs" / "small" / "pids").read_text().split()
    assert len(pids) == 4
    assert len(set(pids)) == 1


@pytest.mark.parametrize(
    ("ends", "made"),
    [
        ('print(json.dumps({"done": True}), flush=True); sys.stdin.read()', 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 0),
    ],
)
def test_what_a_run_leaves_behind_does_not_keep_a_study(
    ends: str, made: int, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    lines: StringIO,
) -> None:  # fmt: skip
    """It holds the run's output open for 20 s, and is ended with the run, however that ends."""
    fake(
        monkeypatch,
        f"""
import subprocess
outlived = "import sys, time, pathlib; time.sleep(20); pathlib.Path(sys.argv[1]).touch()"
subprocess.Popen([sys.executable, "-c", outlived, str(path.parents[1] / "outlived")])
{ends}
""",
    )
    (one, *_) = study.runs
    done = run_study(make_plan(study, tmp_path / "runs", runs=[one]), view=view(lines))
    assert (done.made, len(done.failed)) == (made, 1 - made)
    assert not (tmp_path / "runs" / "small" / "outlived").exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "print(json.dumps({'failed': 'no room'})); sys.exit(1)",
            "no room",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL: the system may be out of mem"),
        ("sys.exit('something odd')", "ended with exit code 1: something odd"),
        ("os._exit(3)", "ended with exit code 3: without a word"),
    ],
)
def test_a_run_that_fails_is_named_and_the_others_go_on(
    program: str, reason: str, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    lines: StringIO,
) -> None:  # fmt: skip
    fake(monkeypatch, f"if path.parent.name == 'top-k-1' and path.name == 'seed-0': {program}")
    done = run_study(make_plan(study, tmp_path / "runs"), view=view(lines))
    assert list(done.failed) == ["top-k-1/seed-0"]
    assert reason in done.failed["top-k-1/seed-0"]
    assert (done.made, done.left) == (3, 0)
    if not program.startswith("print"):  # then nobody but us can have written it down
        kept = json.loads((tmp_path / "runs/small/top-k-1/seed-0" / FAILED).read_text())
        assert reason in kept["error"]
        (planned, *_) = make_plan(study, tmp_path / "runs").runs
        assert (planned.state, planned.runs) == ("failed", True)
        assert reason in planned.reason


def test_a_run_whose_data_cannot_be_dealt_out_fails_first_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: StringIO
) -> None:
    fake(monkeypatch)
    exception = "[[exceptions]]\ngate.top-k = 2\nset = { data.train-per-client = 9000 }\n"
    (tmp_path / "small.toml").write_text(f"{FILE}{exception}")
    study = Study.load(tmp_path / "small.toml")
    done = run_study(make_plan(study, tmp_path / "runs"), view=view(lines))
    assert list(done.failed) == ["top-k-2/seed-0", "top-k-2/seed-1"]
    assert [line["run"] for line in told(lines)[:2]] == list(done.failed)
    assert (done.made, done.left) == (2, 0)
    kept = json.loads((tmp_path / "runs/small/top-k-2/seed-0" / FAILED).read_text())
    assert kept["error"] == done.failed["top-k-2/seed-0"]


def test_a_run_that_was_interrupted_has_not_failed(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: StringIO
) -> None:
    """It is named now, and goes on the next time."""
    fake(monkeypatch, "if path.parent.name == 'top-k-1' and path.name == 'seed-0': os._exit(130)")
    done = run_study(make_plan(study, tmp_path / "runs"), view=view(lines))
    assert done.failed == {"top-k-1/seed-0": STOPPED}
    assert not (tmp_path / "runs/small/top-k-1/seed-0" / FAILED).exists()
    assert make_plan(study, tmp_path / "runs").runs[0].state != "failed"


def test_a_stage_that_fails_fails_all_that_need_it(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: StringIO
) -> None:
    fake(
        monkeypatch,
        "if path.name == 'seed-0':\n"
        "    stage = pathlib.Path(task['stage_1']); stage.mkdir(parents=True)\n"
        f"    (stage / {FAILED!r}).write_text('{{}}')\n"
        "    print(json.dumps({'failed': 'it diverged'})); sys.exit(1)",
    )
    done = run_study(make_plan(study, tmp_path / "runs"), view=view(lines))
    assert done.failed == {
        "top-k-1/seed-0": "it diverged",
        "top-k-2/seed-0": "stage 1 failed: it diverged",
    }
    assert [line.split()[0] for line in log(tmp_path)] == [
        "top-k-1/seed-0", "top-k-1/seed-1", "top-k-2/seed-1"
    ]  # fmt: skip


def test_a_full_disk_ends_a_study_at_once(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: StringIO
) -> None:
    failed = {"failed": "No space left", "hopeless": True}
    fake(
        monkeypatch,
        "stage = pathlib.Path(task['stage_1']); stage.mkdir(parents=True)\n"
        f"(stage / {FAILED!r}).write_text('{{}}')\n"
        f"print(json.dumps({failed})); sys.exit(1)",
    )
    done = run_study(make_plan(study, tmp_path / "runs"), view=view(lines))
    assert (done.failed, done.left) == ({"top-k-1/seed-0": "No space left"}, 3)
    assert len(log(tmp_path)) == 1


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_lets_runs_save_and_ends_them(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: StringIO
) -> None:
    fake(
        monkeypatch,
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "while os.read(0, 100): pass\n"  # as the program does: the end of it means stop
        "(path / 'saved').write_text('')",
    )
    done = run_study(make_plan(study, tmp_path / "runs"), view=view(lines))
    assert (done.interrupted, done.made, done.left) == (True, 0, 4)
    assert (tmp_path / "runs/small/top-k-1/seed-0/saved").exists()


def test_two_at_once_are_refused(study: Study, tmp_path: Path) -> None:
    plan = make_plan(study, tmp_path / "runs")
    with (
        locked(plan.folder),
        pytest.raises(LockedError, match=r"small is being run already: .*is in use by") as refusal,
    ):
        run_study(plan)
    assert str(refusal.value).endswith(": wait for it, end it, or choose another --out")


def test_a_folder_that_cannot_be_written_is_one_message(study: Study, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(NMoEError, match=r"cannot write .*/run\.lock"):
        run_study(make_plan(study, tmp_path / "runs"))


# --- one run, for real ---


def task(path: Path, stage: Path, **settings: Any) -> StudyTask:
    config = Config.parse(TINY | settings)
    return StudyTask.of(path, config, stage_1=stage, alone=False, workers=0)


def process(task: StudyTask) -> "subprocess.Popen[str]":
    child = subprocess.Popen(
        run_module.PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    child.stdin.write(task.to_line() + "\n")
    child.stdin.flush()
    return child


def test_the_program_says_nothing_where_there_is_nothing_to_do() -> None:
    """Nor does Python of it: a warning would stand among the reasons of a run that failed."""
    ended = subprocess.run(
        run_module.PROGRAM, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("gone", ["input", "output", "both"])
def test_a_run_whose_study_is_killed_saves_its_last_round(gone: str, tmp_path: Path) -> None:
    """Its input ends then, and nobody reads what it tells: it is stopped, and has not failed.

    The round under way is lost, however seldom rounds are saved.
    """
    settings = TINY | {
        "extractor.rounds": 400, "run.evaluate-every": 400, "run.checkpoint-every": 1000
    }  # fmt: skip
    (tmp_path / "small.toml").write_text(
        'title = "T"\n[set]\n'
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    )
    study = Study.load(tmp_path / "small.toml")
    before = make_plan(study, tmp_path / "runs")
    stage = before.stages[0].path
    child = process(task(before.runs[0].path, stage, **settings))
    assert child.stdout is not None
    assert child.stdin is not None
    seen = 0
    for line in child.stdout:
        record = json.loads(line)
        if record.get("stage") == "extractor":
            seen = record["round"]
        if seen == 3:
            if gone != "input":
                child.stdout.close()
            if gone != "output":
                child.stdin.close()
            if gone != "input":
                break
    child.stdout.close()
    # Of both it may be the signal that ends it, once it has saved its round.
    ends = {INTERRUPTED, *([-signal.SIGTERM] if gone == "both" else [])}
    assert child.wait() in ends
    child.stdin.close()
    state = RunFolder(stage, Config()).checkpoints.newest_state()
    assert state is not None
    assert 3 <= seen < 400
    assert state["round"] >= seen - 1
    assert not (stage / FAILED).exists()
    (after,) = make_plan(study, tmp_path / "runs").stages
    assert (after.state, after.reason) == ("stopped", f"after round {state['round']} of extractor")


def test_a_run_that_is_killed_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """By kill -9, in the shared stage 1 and in a later one."""
    settings = TINY | {"extractor.rounds": 20, "gate.rounds": 20, "run.checkpoint-every": 1}
    (tmp_path / "small.toml").write_text(
        'title = "T"\n[set]\n'
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    )
    words = ("study", "run", "small.toml", "--one", "base/seed-0", "--workers", "0")
    run = Study.load(tmp_path / "small.toml").runs[0]
    (stage,) = make_plan(Study.load(tmp_path / "small.toml"), tmp_path / "runs").stages
    made = tmp_path / "runs" / run.place
    for path, sign in (
        (stage.path / "rounds.jsonl", b'"extractor", "round": 3,'),
        (made / "rounds.jsonl", b'"gate/federated", "round": 3,'),
    ):
        with Nmoe(tmp_path, *words) as nmoe:
            nmoe.kill_once(path, sign)
        state = RunFolder(path.parent, Config()).checkpoints.newest_state()
        assert state is not None
        assert state["round"] >= 2  # one round is lost at most
    with Nmoe(tmp_path, *words) as nmoe:
        nmoe.finish()
    run_in(tmp_path / "alone", run.config, workers=0, view=SILENT)
    assert_equal_runs(made, tmp_path / "alone")


def test_a_failure_is_kept_in_its_folder_until_it_is_none(tmp_path: Path) -> None:
    asked = task(tmp_path / "run", tmp_path / "stage", **{"data.dataset": str(tmp_path / "none")})
    with pytest.raises(NMoEError):
        carry_out(asked, SILENT)
    kept = json.loads((tmp_path / "stage" / FAILED).read_text())
    assert "data.dataset" in kept["error"]
    assert kept["date"]
    assert not (tmp_path / "run").exists()
    carry_out(task(tmp_path / "run", tmp_path / "stage"), SILENT)
    assert not (tmp_path / "stage" / FAILED).exists()
    assert (tmp_path / "run" / "results.json").exists()


def test_a_disk_that_is_full_is_known_by_its_number() -> None:
    full = NMoEError("cannot write x: No space left on device")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert one_module.is_hopeless(full)
    assert not one_module.is_hopeless(NMoEError("else"))
    assert not one_module.is_hopeless(OSError(2, "No such file"))


def test_a_task_is_one_line_and_the_configuration_whole(tmp_path: Path) -> None:
    asked = task(tmp_path / "run", tmp_path / "stage", **{"data.dataset": "a\nb"})
    assert "\n" not in asked.to_line()
    back = StudyTask(**json.loads(asked.to_line()))
    assert Config.parse(back.config) == Config.parse(TINY | {"data.dataset": "a\nb"})


def test_a_folder_in_use_is_waited_for_and_then_named(tmp_path: Path) -> None:
    """As by a run that was stopped a moment ago, and saves its last round."""
    asked = task(tmp_path / "run", tmp_path / "stage", **{"gate.methods": "local"})
    waits: list[float] = []
    (tmp_path / "run").mkdir()
    holder = os.open(tmp_path / "run" / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(LockedError, match="is in use by"):
        carry_out(asked, SILENT, sleep=waits.append)
    assert 10 < sum(waits) < 60
    assert not (tmp_path / "run" / FAILED).exists()  # it is no failure of the run

    def leaves(_: float) -> None:
        os.close(holder)

    carry_out(asked, SILENT, sleep=leaves)
    assert (tmp_path / "run" / "results.json").exists()


def test_a_run_without_a_stage_1_of_its_own_has_none_to_share(tmp_path: Path) -> None:
    alone = {"run.system": "aligned", "alignment.extractor": "frozen", "alignment.rounds": 1}
    (tmp_path / "small.toml").write_text(
        'title = "T"\n[set]\n'
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in (TINY | alone).items())
    )
    plan = make_plan(Study.load(tmp_path / "small.toml"), tmp_path / "runs")
    assert (plan.stages, plan.runs[0].stage_1) == ([], "")
    config = plan.runs[0].run.config
    carry_out(StudyTask.of(plan.runs[0].path, config, stage_1=None, alone=False, workers=0), SILENT)
    (planned,) = make_plan(Study.load(tmp_path / "small.toml"), tmp_path / "runs").runs
    assert planned.state == "finished"
