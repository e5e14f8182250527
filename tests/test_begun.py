"""What runs began with: from their own folders, or once for all that a study publishes."""

import json
from pathlib import Path

import pytest

from nmoe_flower import cli
from nmoe_flower.begun import (
    RUNS,
    begun_together,
    is_run,
    keep_begun,
    read_origin,
    read_settings,
    run_folders,
)
from nmoe_flower.config import Config
from nmoe_flower.errors import CheckpointError, NMoEError
from nmoe_flower.results import RunFolder

MACHINE = {"cores": 2, "cpu": "x"}


def settings(seed: int, **data: object) -> dict[str, object]:
    return {"data": data, "run": {"seed": seed, "name": f"n-{seed}"}}


def origin(seed: int, **more: object) -> dict[str, object]:
    return {"format-version": 1, "seed": seed, "machine": MACHINE, **more}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    place = tmp_path / "study"
    keep_begun(place / "a" / "seed-0", settings(0, tau=0.5), origin(0, git=None))
    keep_begun(place / "a" / "seed-1", settings(1, tau=0.5), origin(1, git={"dirty": False}))
    keep_begun(place / "b" / "seed-0", settings(0, tau=0.2), origin(0, git={"dirty": True}))
    for name in begun_together(place):
        (place / name).mkdir(parents=True)
    return place


def test_every_value_stands_once_and_what_is_usual_once_for_all(study: Path) -> None:
    """tau and the seed are those of two runs in three; the third says what it has."""
    told = json.loads((study / RUNS).read_text(encoding="utf-8"))
    usual = {"config": {"data": {"tau": 0.5}, "run": {"seed": 0, "name": "n-0"}},
             "provenance": {"format-version": 1, "machine": MACHINE, "seed": 0}}  # fmt: skip
    assert told["every-run"] == usual
    assert told["every-seed"] == {"a": {}}  # "b" has one seed
    assert told["runs"]["a/seed-1"] == {
        "config": {"run": {"seed": 1, "name": "n-1"}},
        "provenance": {"seed": 1, "git": {"dirty": False}},
    }
    assert told["runs"]["b/seed-0"] == {
        "config": {"data": {"tau": 0.2}},
        "provenance": {"git": {"dirty": True}},
    }


def test_and_is_read_back_whole(study: Path) -> None:
    assert read_settings(study / "a" / "seed-1") == settings(1, tau=0.5)
    assert read_origin(study / "a" / "seed-0") == origin(0, git=None)
    assert read_origin(study / "b" / "seed-0") == origin(0, git={"dirty": True})
    assert RunFolder.resume(study / "b" / "seed-0").config.data.tau == 0.2
    assert run_folders(study.parent) == [study / name for name in begun_together(study)]
    assert not is_run(study / "b" / "seed-1")
    with pytest.raises(CheckpointError, match="nothing to resume"):
        RunFolder.resume(study / "b" / "seed-1")


def test_a_run_that_is_published_again_is_told_anew(study: Path) -> None:
    keep_begun(study / "a" / "seed-1", settings(1, tau=0.9), origin(1))
    assert read_settings(study / "a" / "seed-1") == settings(1, tau=0.9)
    assert read_settings(study / "a" / "seed-0") == settings(0, tau=0.5)
    assert "git" not in read_origin(study / "a" / "seed-1")


def test_the_file_is_read_once(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for_many = begun_together(study)
    monkeypatch.setattr("nmoe_flower.begun.read_json", lambda *_, **__: pytest.fail("read again"))
    assert begun_together(study) == for_many
    read_settings(study / "a" / "seed-0")["data"]["tau"] = 1.0  # the reader's own copy
    assert read_settings(study / "a" / "seed-0") == settings(0, tau=0.5)


def test_a_folder_of_its_own_goes_before(study: Path) -> None:
    run = RunFolder.create(study / "a" / "seed-0", Config.load(None, ["data.tau=0.7"]))
    assert RunFolder.resume(run.path).config.data.tau == 0.7
    assert "versions" in run.provenance()


def test_the_folder_of_a_run_is_a_recipe(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", str(study / "b" / "seed-0")]) == 0
    assert "tau = 0.2\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "does not hold a JSON object"),
        ('{"runs": {"a/seed-0": {"config": {}}}}', "of each run its config and its provenance"),
        ('{"runs": {"a/seed-0": {"config": 1, "provenance": {}}}}', "of each run its config"),
        ('{"runs": [1]}', "of each run its config"),
    ],
)
def test_a_damaged_file_is_named(study: Path, text: str, said: str) -> None:
    (study / RUNS).write_text(text)
    with pytest.raises(NMoEError, match=said) as raised:
        RunFolder.resume(study / "a" / "seed-0")
    assert str(study / RUNS) in str(raised.value)
