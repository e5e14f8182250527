"""A study's runs in trackers: the study is the experiment; variant, axes and seed are tags."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower import cli
from nmoe_flower.progress import make_progress
from nmoe_flower.study import Study, StudyTask, StudyView, carry_out, make_plan, run_study, track_of
from nmoe_flower.study import run as run_module
from nmoe_flower.tracking import Track
from tests.study.test_run import FAKE, FILE, log
from tests.study.test_share import TINY
from tests.tracking.test_tracked import Notebook

TELLS = 'print(json.dumps({"message": "tracking: mlflow failed", "track": 1}), flush=True)\n'


@pytest.fixture
def study(tmp_path: Path, warm_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    (tmp_path / "small.toml").write_text(FILE)
    return Study.load(tmp_path / "small.toml")


def test_a_run_is_found_by_study_variant_axes_and_seed(study: Study) -> None:
    track = track_of("small", study.runs[-1], ["mlflow"])
    assert track == Track(
        ("mlflow",),
        "small",
        {"gate.top-k": "2", "study": "small", "variant": study.runs[-1].variant, "seed": "1"},
        f"{study.runs[-1].variant}/seed-1",
    )
    assert track == Track(**json.loads(StudyTask.of(
        Path("x"), study.runs[-1].config, stage_1=None, alone=False, workers=0, track=track,
    ).to_line())["track"] | {"trackers": ("mlflow",)})  # fmt: skip


def test_each_process_is_told_and_what_goes_wrong_is_passed_on(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = "assert task['track']['experiment'] == 'small', task\n"
    program = [run_module.sys.executable, "-c", FAKE + checks + TELLS]
    monkeypatch.setattr(run_module, "PROGRAM", program)
    lines = StringIO()
    view = StudyView(stream=lines, every=1e9)
    plan = make_plan(study, tmp_path / "runs", runs=study.runs[:2])
    done = run_study(plan, view=view, track=["mlflow"])
    assert (done.made, done.failed) == (2, {})
    said = [line for line in lines.getvalue().splitlines() if "tracking" in line]
    assert said == [f"{run.variant}/seed-{run.seed}: tracking: mlflow failed" for run in study.runs[:2]]  # fmt: skip  # noqa: E501
    assert len(log(tmp_path)) == 2


def test_a_run_after_a_shared_stage_1_has_all_its_rounds(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmoe_flower.config import Config

    class Album(Notebook):
        def finish(self, results: Any, figures: Any) -> None:
            super().finish(results, figures)
            drawn.extend(figures)

    drawn: list[Path] = []
    one = Album()
    made: list[Any] = []
    monkeypatch.setattr(
        Track, "makers", lambda self: made.append(self) or {"Notebook": lambda: one}
    )
    track = Track(("mlflow",), "small", {"seed": "0"}, "b/seed-0")
    carry_out(
        StudyTask.of(
            tmp_path / "run", Config.parse(TINY), stage_1=tmp_path / "stage", alone=False,
            workers=0, track=track,
        ),
        make_progress(None),
    )  # fmt: skip
    (given,) = made  # stage 1 alone is not tracked
    assert (given.experiment, given.name) == ("small", "b/seed-0")
    assert one.run.name == "b/seed-0"
    stages = dict.fromkeys(stage for stage, _ in one.kept)
    assert {"extractor", "experts", "gate/federated", "evaluation"} <= stages.keys()
    assert one.calls[-1] == ("close", "finished")
    assert [name for name, _ in one.calls].count("finish") == 1
    assert {"accuracy.png", "rounds.png"} <= {path.name for path in drawn}
    assert all(path.is_file() for path in drawn)


def test_commands_carry_the_trackers_and_unknown_ones_are_refused(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "commands", str(study.path), "--out", str(tmp_path / "runs")]
    assert cli.main([*words, "--track", "mlflow,wandb", "--part", "runs"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert all(line.endswith("--track mlflow,wandb") for line in printed)
    with pytest.raises(SystemExit):
        cli.main(["study", "run", str(study.path), "--track", "mlflo"])
    assert "names of tensorboard, mlflow, wandb" in capsys.readouterr().err
