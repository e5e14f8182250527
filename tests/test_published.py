"""What is kept of a finished run, and that its tables and figures come from that alone."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.publish.published import RESULTS
from nmoe_flower.begun import read_origin, run_folders
from nmoe_flower.errors import NMoEError
from nmoe_flower.report import BY_SETTINGS, read_results, read_rounds, rounds_by_stage
from nmoe_flower.study import (
    Study,
    findings_of,
    findings_to_json,
    kept_rounds,
    make_plan,
    publish,
    publish_study,
    read_findings,
    small_picture,
)

pytestmark = pytest.mark.published

PUBLISHED = sorted(path.parent.name for path in RESULTS.glob("*/table.json"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tables_of_a_study_are_what_its_published_runs_say(name: str) -> None:
    study = Study.load(RESULTS.parent / "experiments" / f"{name}.toml")
    found = findings_of(study, RESULTS)
    stored = (RESULTS / name / "table.json").read_text(encoding="utf-8")
    assert findings_to_json(found) == stored
    again = read_findings(study, RESULTS / name / "table.json")
    assert again.tables == found.tables
    assert again.comparisons == found.comparisons


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "-choose" in f"-{name}"])
def test_no_published_run_tells_tests_of_what_a_sweep_has_not_chosen(name: str) -> None:
    found = findings_of(Study.load(RESULTS.parent / "experiments" / f"{name}.toml"), RESULTS)
    assert found.study.sweep is not None
    for one in found.outcomes:
        told = one.results or {}
        tests = {row["test"] for row in told.get("rows", ())}
        tests |= {test for gate in told.get("by_owner", {}).values() for test in gate}
        assert found.tells_tests_of(one.run) or tests <= {"validation"}, one.run.name


@pytest.mark.parametrize("name", ["systems", "systems-latents"])
def test_systems_run_at_the_rates_that_validation_chose_for_them(name: str) -> None:
    """Of the two rates, the one that a system trains at; what was not swept is as it was."""
    experiments = RESULTS.parent / "experiments"
    chosen = findings_of(Study.load(experiments / f"{name}-choose.toml"), RESULTS)
    rates = dict(chosen.study.axes["rate"].choices)
    runs = Study.load(experiments / f"{name}.toml").runs
    compared = 0
    for choice in chosen.choices:
        assert choice.winner is not None
        wanted = dict(rates[choice.winner.values["rate"]])
        for run in runs:
            if run.at("variant") != choice.rest["variant"]:
                continue
            if run.at("setting") != choice.rest["setting"]:
                continue
            key = "expert" if run.config.run.system == "networked" else "baseline"
            key += ".learning-rate"
            assert run.config.flat()[key] == wanted[key], (run.name, key)
            compared += 1
    assert compared == 3 * len(chosen.choices)


def test_what_a_study_takes_is_estimated_from_its_published_runs(tmp_path: Path) -> None:
    study = Study.load(RESULTS.parent / "experiments" / "paper-figure-4-k.toml")
    plan = make_plan(study, tmp_path)
    assert plan.source == "published runs of this study"


def test_a_published_study_tells_how_each_of_its_runs_began_and_of_no_other() -> None:
    told = run_folders(RESULTS)
    assert told == sorted({path.parent for path in RESULTS.glob("*/*/seed-*/*") if path.is_file()})
    assert len(told) > 400


def test_a_published_run_tells_the_day_it_began_on() -> None:
    for folder in run_folders(RESULTS):
        origin = read_origin(folder)
        told = [one["started"] for one in (origin, origin.get("stage-1", {})) if "started" in one]
        assert all(re.fullmatch(r"20\d\d-\d\d-\d\d", day) for day in told), folder


def test_a_published_row_has_what_its_settings_say(tmp_path: Path) -> None:
    folder = RESULTS / "paper-table-1/fedce-tau-0.2/seed-1"
    assert '"tau"' not in (folder / "results.json").read_text(encoding="utf-8")
    rows = read_results(folder / "results.json")["rows"]
    assert {tuple(row[name] for name in BY_SETTINGS) for row in rows} == {
        ("dominant", 0.2, 1, 10, 1)
    }
    copied = tmp_path / "results.json"  # a folder that nobody has published says nothing
    copied.write_bytes((folder / "results.json").read_bytes())
    with pytest.raises(NMoEError, match=r"rows\.0\.clients is missing"):
        read_results(copied)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/*/seed-*/rounds.jsonl"))[::12], ids=str)
def test_published_rounds_are_as_they_were_told(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    stages = [line["stage"] for line in lines]
    assert len(set(stages)) == len(stages)
    assert rounds_by_stage(read_rounds(file)) == lines


def rounds(path: Path, stages: dict[str, int], **metrics: object) -> Path:
    records = [
        {"stage": stage, "round": number, "metrics": metrics, "clients": 2, "seconds": 1 / 3,
         "bytes_up": 8, "bytes_down": 8}
        for stage, last in stages.items() for number in range(1, last + 1)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_without_a_figure_some_rounds_are_kept_the_last_among_them(tmp_path: Path) -> None:
    path = rounds(tmp_path / "rounds.jsonl", {"extractor": 120, "gate": 3}, loss=1 / 3)
    kept = list(kept_rounds(path))
    assert [r["round"] for r in kept if r["stage"] == "extractor"] == list(range(3, 121, 3))
    assert [r["round"] for r in kept if r["stage"] == "gate"] == [1, 2, 3]
    assert kept[0] == {"stage": "extractor", "round": 3, "metrics": {"loss": 0.33333}}


def test_with_a_figure_all_that_it_is_drawn_from_is_kept(tmp_path: Path) -> None:
    path = rounds(tmp_path / "rounds.jsonl", {"extractor": 120}, loss=1.0, **{"effective-rank": 2})
    for figure, metrics in (("rounds", {"loss": 1.0}), ("representation", {"effective-rank": 2})):
        kept = list(kept_rounds(path, figures=["accuracy", figure]))
        assert len(kept) == 120
        assert kept[0]["metrics"] == metrics


def test_the_second_systems_curves_keep_their_bytes(tmp_path: Path) -> None:
    path = rounds(tmp_path / "rounds.jsonl", {"alignment": 1, "alignment-test": 1},
                  **{"loss": 1.0, "bytes-to-part": 1.0, "accuracy-iid": 0.5})  # fmt: skip
    kept = list(kept_rounds(path))
    assert [r["metrics"] for r in kept] == [{"bytes-to-part": 1.0}, {"accuracy-iid": 0.5}]
    assert kept[0]["bytes_up"] == 8


def test_a_figure_keeps_its_size_and_looks(tmp_path: Path) -> None:
    drawn = Image.linear_gradient("L").convert("RGBA")
    drawn.save(tmp_path / "drawn.png")
    (tmp_path / "small.webp").write_bytes(small_picture(tmp_path / "drawn.png"))
    with Image.open(tmp_path / "small.webp") as kept:
        assert (kept.format, kept.size) == ("WEBP", drawn.size)
        looks = np.asarray(kept.convert("RGB"), int)
        assert len(np.unique(looks.reshape(-1, 3), axis=0)) <= 128
        far = looks - np.asarray(drawn.convert("RGB"), int)
        assert np.abs(far).max() <= 8  # of 255


def test_a_narrow_colour_bar_keeps_its_hues(tmp_path: Path) -> None:
    """The scale of a heat map covers two per cent of it, beside many pale cells."""

    def ramp(last: tuple[int, int, int], width: int) -> Image.Image:
        colours = np.linspace((247, 251, 255), last, 400)[:, None].repeat(width, axis=1)
        return Image.fromarray(colours.astype(np.uint8))

    drawn = Image.new("RGB", (500, 400), "white")
    drawn.paste(ramp((200, 220, 240), 400), (0, 0))
    drawn.paste(ramp((8, 48, 107), 10), (450, 0))
    drawn.save(tmp_path / "drawn.png")
    with Image.open(io.BytesIO(small_picture(tmp_path / "drawn.png"))) as kept:
        far = np.asarray(kept.convert("RGB"), int) - np.asarray(drawn, int)
    assert np.abs(far).max() <= 16  # of 255; a median cut is off by 101


def test_blank_paper_stays_white(tmp_path: Path) -> None:
    """Beside pale cells, too, whose colours are merged with it."""
    drawn = np.full((64, 64, 3), 255, np.uint8)
    drawn[:, :32] = (248, 252, 255)
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    with Image.open(io.BytesIO(small_picture(tmp_path / "drawn.png"))) as kept:
        looks = np.asarray(kept.convert("RGB"))
    assert (looks[:, 32:] == 255).all()


def test_policies_are_published_with_the_figures_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn as PNG, kept as WebP; where only one is on a page the other does not come back."""
    monkeypatch.setattr(publish, "PUBLISHED_DOTS", 40)  # a large WebP takes seconds
    name = "alignment-digits"
    study = Study.load(RESULTS.parent / "experiments" / f"{name}.toml")
    place = publish_study(findings_of(study, RESULTS), RESULTS, tmp_path)
    assert sorted(path.name for path in place.glob("*.*")) == [
        "alignment.webp", "assignments.webp", "runs.json", "table.json"
    ]  # fmt: skip
    for picture in place.glob("*.webp"):
        with Image.open(picture) as drawn:
            assert drawn.format == "WEBP"
    (place / "assignments.webp").unlink()
    publish_study(findings_of(study, RESULTS), RESULTS, tmp_path)
    assert [path.name for path in place.glob("*.webp")] == ["alignment.webp"]
