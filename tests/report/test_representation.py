import json
import math

import numpy as np
import pytest

from nmoe_flower.report import draw_figures, draw_representation, draw_rounds, write_report
from nmoe_flower.report.representation import has_representation
from nmoe_flower.results import RunFolder

SPECTRA = {2: [0.5, 0.25, 1e-9, 0.0, -1e-17], 4: [0.25, 0.125, 0.0625, 0.03125, 1e-3]}
STATEMENT = "Correlation matrices: epsilon 8. Not covered: the weights."


def fedsc_rounds():
    """Four rounds of FedSC, tested twice."""
    for number in range(1, 5):
        metrics = {"loss": 1 / number, "effective-rank": 2.0 * number}
        yield {"stage": "extractor", "round": number, "metrics": metrics}
        if number in SPECTRA:
            watched = {
                "knn-accuracy": 0.1 * number,
                "probe-accuracy": 0.2 * number,
                "effective-rank": 99.0,
                "spectrum": SPECTRA[number],
            }
            yield {"stage": "extractor-test", "round": number, "metrics": watched}
    yield {"stage": "gate/federated", "round": 1, "metrics": {"loss": 1.0}}


def curves(axis):
    return [
        list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        for line in axis.lines
    ]


def test_every_measured_quantity_has_a_panel(drawn, tmp_path):
    draw_representation(list(fedsc_rounds()), tmp_path / "r.png")
    spectrum, rank, probes = drawn[0].axes
    # What is more than six decades below the largest, or not positive, is rounding or hidden.
    assert curves(spectrum) == [
        [(1.0, 0.5), (2.0, 0.25)],
        [(1.0, 0.25), (2.0, 0.125), (3.0, 0.0625), (4.0, 0.03125), (5.0, 1e-3)],
    ]
    assert spectrum.get_yscale() == "log"
    assert spectrum.get_ylim() == (1e-3, 1.0)
    labels = [text.get_text() for text in spectrum.get_legend().get_texts()]
    assert labels == ["round 2", "4"]
    # Every round's own rank, not the tests' copy of it.
    assert curves(rank) == [[(1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)]]
    assert {line.get_label(): list(map(float, line.get_ydata())) for line in probes.lines} == {
        "linear probe": [0.4, 0.8],
        "k-NN": [0.2, 0.4],
    }


def test_what_was_not_measured_has_none(drawn, tmp_path):
    some = [r for r in fedsc_rounds() if r["stage"] == "extractor"]
    draw_representation(some, tmp_path / "r.png")
    assert [axis.get_ylabel() for axis in drawn[0].axes] == ["Effective rank of the mean R"]


def test_bad_values_are_left_out(drawn, tmp_path):
    """NaN is null in rounds.jsonl."""
    broken = [
        {"stage": "extractor", "round": 1, "metrics": {"effective-rank": None}},
        {"stage": "extractor", "round": 2, "metrics": {"effective-rank": 3.0}},
        {"stage": "extractor-test", "round": 2, "metrics": {"spectrum": [0.5, None]}},
        {"stage": "extractor-test", "round": 3, "metrics": {"spectrum": []}},
        {"stage": "extractor-test", "round": 4, "metrics": {"probe-accuracy": math.nan}},
        {"stage": "extractor-test", "round": 5},
    ]
    draw_representation(broken, tmp_path / "r.png")
    (axis,) = drawn[0].axes
    assert curves(axis) == [[(2, 3.0)]]


def test_features_that_are_zero_can_be_drawn(tmp_path):
    dead = [{"stage": "extractor-test", "round": 1, "metrics": {"spectrum": [0.0] * 8}}]
    draw_representation(dead, tmp_path / "dead.png")
    assert (tmp_path / "dead.png").stat().st_size > 1000


def test_probes_are_not_drawn_twice(drawn, tmp_path):
    """They are no accuracy of what is trained, and have a figure of their own."""
    draw_rounds(list(fedsc_rounds()), tmp_path / "rounds.png")
    assert [axis.get_ylabel() for axis in drawn[0].axes] == [
        "Training loss", "Training loss\n(axis starts at 1)",
    ]  # fmt: skip


def fedsc_run(finished_run, name="one", **results):
    run = finished_run(name)
    folder = RunFolder.resume(run)
    for record in fedsc_rounds():
        folder.append_round(record)
    folder.write_results(json.loads((run / "results.json").read_bytes()) | results)
    return run


@pytest.mark.usefixtures("sketched")
def test_a_run_with_features_has_the_figure(finished_run):
    assert "representation" not in [path.stem for path in draw_figures(finished_run("fedce"))]
    drawn = draw_figures(fedsc_run(finished_run))
    assert drawn[-1].stem == "representation"


def test_the_figure_is_a_file(tmp_path):
    draw_representation(list(fedsc_rounds()), tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 5_000


@pytest.mark.usefixtures("sketched")
def test_the_report_says_what_was_found_and_what_is_private(finished_run, tmp_path):
    found = {
        "effective_rank": 12.34, "dimensions": 128, "collapse": None, "probe_accuracy": 0.75,
    }  # fmt: skip
    text = write_report(
        [fedsc_run(finished_run, representation=found, privacy={"statement": STATEMENT})],
        tmp_path / "out",
    ).read_text(encoding="utf-8")
    assert "| one | none | 0 | 12.3 | 128 | 0.750 | - |" in text
    assert f"- **one** (seed 0): {STATEMENT}" in text
    assert "figures/representation.png" in text


@pytest.mark.usefixtures("sketched")
def test_the_report_names_a_collapse(finished_run, tmp_path):
    found = {"effective_rank": 1.0, "dimensions": 8, "collapse": "collapsed to the mean"}
    text = write_report(
        [fedsc_run(finished_run, representation=found)], tmp_path / "out"
    ).read_text(encoding="utf-8")
    assert "| one | collapsed to the mean | 0 | 1.0 | 8 | - | - |" in text
    assert "## Privacy" not in text


def test_spectra_of_a_figure_are_not_changed():
    """Drawing masks values; the records stay as they were read."""
    records = list(fedsc_rounds())
    before = json.dumps(records)
    assert has_representation(records)
    assert not has_representation([{"stage": "extractor", "metrics": {"loss": 1.0}}])
    assert json.dumps(records) == before
    assert np.all(np.diff(SPECTRA[4]) < 0)
