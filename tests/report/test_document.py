import csv
import json
import re
import sys

import pytest

from nmoe_flower.errors import NMoEError
from nmoe_flower.report import draw_figures, write_report

GATE_FIGURES = [
    "routing-federated-local", "routing-federated-iid",
    "routing-control-centralized-local", "routing-control-centralized-iid",
]  # fmt: skip
FIGURES = ["accuracy", *GATE_FIGURES, "partition", "rounds"]


def images(text):
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)


def test_every_figure_of_a_run(finished_run):
    run = finished_run("one")
    drawn = draw_figures(run)
    # Random routing is a lottery, and the prior correction does not change who is asked.
    assert [path.stem for path in drawn] == FIGURES
    assert {path.parent for path in drawn} == {run / "figures"}
    assert all(path.stat().st_size > 5_000 for path in drawn)


@pytest.mark.usefixtures("sketched")
def test_figures_go_where_asked(finished_run, tmp_path):
    run = finished_run("one")
    assert {path.parent for path in draw_figures(run, tmp_path / "else")} == {tmp_path / "else"}
    assert not (run / "figures").exists()


@pytest.mark.usefixtures("sketched")
def test_routing_known_only_with_the_correction_is_drawn(finished_run):
    run = finished_run("one")
    results = json.loads((run / "results.json").read_text())
    results["routing"] = {"a/b+prior/iid": [[1.0]]}
    del results["partition"]
    (run / "results.json").write_text(json.dumps(results))
    (run / "rounds.jsonl").unlink()
    assert [path.stem for path in draw_figures(run)] == ["accuracy", "routing-a-b-prior-iid"]


@pytest.mark.usefixtures("sketched")
def test_report_of_one_run(finished_run, tmp_path):
    report = write_report([finished_run("one")], tmp_path / "out")
    text = report.read_text(encoding="utf-8")
    assert report == tmp_path / "out" / "report.md"
    assert re.findall(r"^## (.*)$", text, re.M) == [
        "Runs", "Per gate", "Cost of the stages", "Figures",
    ]  # fmt: skip
    assert images(text) == [f"figures/{name}.png" for name in FIGURES]
    assert all((tmp_path / "out" / link).is_file() for link in images(text))
    assert "| one | extractor | 0 | 31.5 | 2.50 | - |" in text
    assert "Where the configurations differ" not in text
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 34


@pytest.mark.usefixtures("sketched")
def test_report_of_several_configurations_and_seeds(finished_run, tmp_path):
    cifar = {"data.dataset": "uoft-cs/cifar10", "data.tau": 0.2}
    runs = [
        finished_run("second", cifar | {"run.seed": 1}),
        finished_run("tau-0.5", cifar | {"data.tau": 0.5}),
        finished_run("first", cifar),
    ]
    text = write_report(runs, tmp_path / "out").read_text(encoding="utf-8")
    assert "| data.tau | 0.2 | 0.5 |" in text
    assert "### Table II, accuracy" in text
    assert "Fractions. Ours: 1 or 2 seeds, mean ± standard deviation" in text
    assert re.findall(r"^### (.* \(seed .*)$", text, re.M) == [
        "1-second (seed 0, 1)", "2-tau-0.5 (seed 0)",
    ]  # fmt: skip
    assert images(text) == [
        f"figures/{folder}/{name}.png" for folder in ("1-second", "2-tau-0.5") for name in FIGURES
    ]
    assert all((tmp_path / "out" / link).is_file() for link in images(text))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if re.search(r'[:+<>"|?*\\]', path.name)]


@pytest.mark.usefixtures("sketched")
def test_every_table_is_whole(finished_run, tmp_path):
    runs = [finished_run("one", {"data.dataset": "a|b/cifar10"}), finished_run("two")]
    text = write_report(runs, tmp_path / "out").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.M)
    assert len(tables) == 2 + 2 * 2 + 6 + 1
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_figures_of_several_seeds_say_so(finished_run, tmp_path, drawn):
    runs = [finished_run("a", {"run.seed": 3}), finished_run("b", {"run.seed": 1})]
    write_report(runs, tmp_path / "out")
    notes = [figure.get_suptitle() for figure in drawn]
    assert notes[0] == "mean of 2 seeds: 1, 3"
    assert notes[1:] == ["seed 1, the first of 2 seeds"] * (len(FIGURES) - 1)
    draw_figures(runs[0])
    assert {figure.get_suptitle() for figure in drawn[len(notes) :]} == {"seed 3"}


def test_an_unfinished_run_leaves_no_report(finished_run, tmp_path):
    good, bad = finished_run("good"), finished_run("bad", {"run.seed": 1})
    (bad / "results.json").unlink()
    with pytest.raises(NMoEError, match=r"bad is not finished: it has no results\.json"):
        write_report([good, bad], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_extra_is_named(finished_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NMoEError, match=r"needs? matplotlib: pip install -e .*\[report\]"):
        write_report([finished_run("one")], tmp_path / "out")


@pytest.mark.usefixtures("sketched")
def test_a_report_of_text_draws_bits_per_byte(text_runs, tmp_path):
    report = write_report(text_runs, tmp_path / "out")
    text = report.read_text(encoding="utf-8")
    assert "figures/bits-per-byte.png" in images(text)
    assert "| IID test, by domain | code | law |" in text
