"""Runs of the alignment system side by side: the numbers of the table, and the figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower.config import Config
from nmoe_flower.report.alignment import (
    alignment_table,
    curve_of,
    draw_alignment,
    policy_names,
    reached,
)
from nmoe_flower.report.document import draw_figures, write_report
from nmoe_flower.report.runs import FinishedRun, load_runs
from nmoe_flower.report.shape import read_rounds

pytestmark = pytest.mark.published

PUBLISHED = Path(__file__).parents[2] / "results"


@pytest.fixture
def folders(alignment_run: Any) -> list[Path]:
    return [alignment_run(policy, seed) for policy in ("joint", "greedy") for seed in (0, 1)]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_says_when_what_was_reached_and_at_what_cost(folders: list[Path]) -> None:
    """Plateaus: means of the last three less a point, 0.5233 (greedy, round 2 and 3 only: never)
    and 0.6367 (joint, round 4). MB: (18 + 2 + 4) / 2. Joint over seeds: 0.65 and 0.67."""
    lines = alignment_table(load_runs(folders)).splitlines()
    assert cells(lines[0])[:4] == [
        "Policy", "Whole mixture", "Mean of last 5", "Placed, local test",
    ]  # fmt: skip
    greedy, joint = cells(lines[2]), cells(lines[3])
    assert greedy[:7] == [
        "greedy",
        "0.610 ± 0.014",
        "0.560 ± 0.000",
        "0.900 ± 0.000",
        "-, -",
        "2, 2",
        "-, -",
    ]
    assert joint[:7] == [
        "joint",
        "0.660 ± 0.014",
        "0.608 ± 0.000",
        "0.900 ± 0.000",
        "4, 4",
        "2, 2",
        "3, 3",
    ]
    assert joint[7:] == [
        "0.250 ± 0.000", "0.500 ± 0.000", "12.0 ± 0.0", "1.0060", "12.0 ± 0.0", "2",
    ]  # fmt: skip


@pytest.mark.parametrize("study", ["paper-2-figure-3", "alignment-two-classes"])
def test_published_runs_moved_assigned_experts_only(study: str) -> None:
    """Per client and round at most extractor, gate and k experts, and one per cent."""
    folders = sorted((PUBLISHED / study).glob("*/*/rounds.jsonl"))
    assert len(folders) >= 14
    for path in folders:
        records = read_rounds(path)
        rounds = [record for record in records if record["stage"] == "alignment"]
        assert len(rounds) == 30
        assert 1 <= max(record["metrics"]["bytes-to-part"] for record in rounds) <= 1.01


def test_curves_count_the_bytes_of_training_alone(folders: list[Path]) -> None:
    curve = curve_of(load_runs(folders[:1])[0])
    assert curve["megabytes"].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    assert curve["seconds"].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    assert curve["accuracy"].tolist() == [0.3, 0.5, 0.6, 0.64, 0.65, 0.65]


def test_a_target_must_be_held() -> None:
    curve = {"round": np.arange(1, 6), "accuracy": np.array([0.9, 0.1, 0.5, 0.6, 0.5])}
    assert reached(curve, 0.5) == 3
    assert np.isnan(reached(curve, 0.6))


def test_configurations_of_one_policy_are_told_apart(alignment_run: Any) -> None:
    folders = [alignment_run("joint", 0), alignment_run("joint", 0, experts=1)]
    assert list(policy_names(load_runs(folders)).values()) == ["single model", "joint"]
    longer = [*folders, alignment_run("joint", 0, experts=1, rounds=44)]
    assert sorted(policy_names(load_runs(longer)).values()) == [
        "joint", "single model, 30 rounds", "single model, 44 rounds",
    ]  # fmt: skip
    again = [*folders, alignment_run("joint", 0, experts=2)]
    assert list(policy_names(load_runs(again)).values()) == [
        "single model", f"joint ({config(again[0])})", f"joint ({config(again[2], 3)})",
    ]  # fmt: skip


def config(folder: Path, number: int = 1) -> str:
    return f"{number}-{load_runs([folder])[0].config.run.name}"


@pytest.mark.usefixtures("sketched")
def test_a_report_shows_policies_side_by_side(folders: list[Path], tmp_path: Path) -> None:
    report = write_report(folders, tmp_path / "report").read_text(encoding="utf-8")
    section = report.split("## Alignment")[1].split("\n## ")[0]
    assert "| joint |" in section
    for name in ("assignments", "alignment"):
        assert f"![{name}](figures/{name}.png)" in section
        assert (tmp_path / "report" / "figures" / f"{name}.png").is_file()


@pytest.mark.usefixtures("sketched")
def test_one_run_has_its_figures_too(folders: list[Path]) -> None:
    names = {path.name for path in draw_figures(folders[0])}
    assert {"assignments.png", "alignment.png", "accuracy.png", "rounds.png"} <= names


def test_runs_of_other_systems_have_no_such_section() -> None:
    run: Any = FinishedRun(Path(), Config.parse({}), {"rows": []}, {})
    from nmoe_flower.report.alignment import is_alignment

    assert not is_alignment(run)


def test_drawing_takes_the_first_seed_of_each(folders: list[Path], tmp_path: Path) -> None:
    drawn = draw_alignment(load_runs(folders), tmp_path / "figures")
    assert [path.name for path in drawn] == ["assignments.png", "alignment.png"]
    assert all(path.stat().st_size > 5000 for path in drawn)


def test_figures_say_which_seeds_they_show(folders: list[Path], drawn: Any) -> None:
    draw_alignment(load_runs(folders), Path("unused"))
    draw_alignment(load_runs(folders[1:2]), Path("unused"))
    assert [figure.get_suptitle() for figure in drawn] == [
        "seed 0, the first of 2 seeds", "mean of 2 seeds: 0, 1; bands: least to most",
        "seed 1", "seed 1",
    ]  # fmt: skip
