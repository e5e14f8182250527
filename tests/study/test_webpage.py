"""The page of a study, read without a browser."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from nmoe_flower import cli
from nmoe_flower.recipes import find_study
from nmoe_flower.study import (
    Study,
    findings_of,
    findings_to_json,
    read_findings,
    write_findings,
    write_webpage,
)
from nmoe_flower.study.webpage import page_of_study
from tests.study.conftest import finish
from tests.study.test_findings import EXCEPTIONS, SWEPT, TEXT, finish_swept

PLAIN = """
title = "Plain"
seeds = [0, 1]
[set]
gate.methods = "federated,local"
run.controls = "fedavg"
[axes]
data.tau = [0.5, 0.2]
[labels]
federated = "FedGate"
"""
ATTACK = "</script><img src=x onerror=alert(1)>"


def words(text):
    body = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def page(study, runs, path):
    return write_webpage(findings_of(study, runs), path).read_text(encoding="utf-8")


def score(run, scores):
    """Give the rows of a run other accuracies, by gate."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    for row in results["rows"]:
        row["accuracy"] = scores.get(row["gate"], row["accuracy"])
    (run / "results.json").write_text(json.dumps(results))


@pytest.fixture
def study(written):
    return written(TEXT)


def test_a_page_has_tables_figures_and_the_way_back(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for at in range(len(study.runs)):
        finish(study, at, tmp_path / "runs", shift=at / 100)
    text = page(study, tmp_path / "runs", tmp_path / "page.html")
    found = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert [found[0], found[1], found[2], *found[-2:]] == [
        "What this is", "Tables", "Figures", "Provenance", "Run it again",
    ]  # fmt: skip
    told = words(text)
    assert "A study of 100 %" in told
    assert "4 of 4 runs" in told
    assert "Main table" in told
    assert "Skew" in told
    heads = re.findall(r"<th scope=\"col\"[^>]*><button type=\"button\">(.*?)</button>", text)
    assert len(heads) > 10
    assert all(heads)  # whoever sorts by keyboard or by ear needs a name
    # 0.53, 0.54 and so on, where the file has 0.25 beside it.
    assert re.search(r"ours.*paper.*0\.250 \+0\.2", told)
    assert "nmoe study run little.toml" in told
    assert str(tmp_path) not in text


def test_runs_that_failed_or_are_missing_are_named_at_the_head(study, tmp_path):
    finish(study, 0, tmp_path / "runs")
    place = tmp_path / "runs" / study.runs[2].place
    place.mkdir(parents=True)
    text = page(study, tmp_path / "runs", tmp_path / "page.html")
    told = words(text)
    assert told.index("Missing:") < told.index("What this is")
    assert 'class="failed"' in text
    named = "Missing: tau-0.5 seed 1; tau-0.2 seeds 0, 1."
    assert f"3 of 4 runs are not there yet. {named}" in told
    assert told.count("Missing:") == 1  # and beneath no table


def test_missing_runs_are_counted_and_unfold_to_all_of_their_names(written, tmp_path):
    study = written(PLAIN.replace("[0.5, 0.2]", str([at / 100 for at in range(1, 21)])))
    finish(study, 0, tmp_path / "runs")
    text = page(study, tmp_path / "runs", tmp_path / "page.html")
    lead = text[text.index('<div class="lead">') : text.index('<dl class="facts">')]
    unfolds = (
        r"<details><summary>39 of 40 runs are not there yet\.</summary><p>Missing: (.*?)\.</p>"
    )
    assert len(re.search(unfolds, lead)[1].split("; ")) == 20
    assert "warning" not in lead


def test_a_dash_in_a_table_is_explained(written, tmp_path):
    table = "[[tables]]\nname = 't'\nrows = ['gate']\ncolumns = ['variant']\ntests = ['iid']\n"
    study = written(
        PLAIN.replace("[0.5, 0.2]", "[0.5]")
        + "[variants.a]\n[variants.b]\nset = {gate.methods = 'local'}\n"
        f"{table}gates = ['local', 'federated']\n"
    )
    for at in range(len(study.runs)):
        finish(study, at, tmp_path / "runs")
    found = findings_of(study, tmp_path / "runs")
    told = words(write_webpage(found, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "\N{EN DASH}: the study has no such run, or it does not measure this." in told
    assert "-: the study has no such run, or it does not measure this." in found.tables[0].notes


def test_where_a_baseline_wins_is_said_first_and_paired_by_seed(written, tmp_path):
    study = written(PLAIN)
    for at, run in enumerate(study.runs):
        shift, other = 0.01 * run.seed, 0.012 * run.seed
        better = run.values["data.tau"] == 0.2
        score(
            finish(study, at, tmp_path / "runs"),
            {"federated": 0.6 + shift, "local": (0.7 if better else 0.5) + other,
             "federated+prior": 0.1, "local+prior": 0.1, "control:fedavg": 0.2,
             "control:fedavg+prior": 0.2},
        )  # fmt: skip
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    # Two values of tau, two tests each; local loses by 0.1 and 0.098, or wins by 0.1 and 0.102.
    assert "A plain baseline wins in 2 of 4." in told
    assert "the best gate is above every plain baseline in 2." in told
    assert told.index("A plain baseline wins in") < told.index("Does a gate beat")
    number = "0.605 local 0.706 \N{MINUS SIGN}0.101 ± 0.013 baseline"
    assert f"tau = 0.2 local test FedGate {number}" in told
    assert "tau = 0.5 local test FedGate 0.605 local 0.506 +0.099 ± 0.013 gate" in told


def test_a_corrected_gate_is_compared_with_corrected_baselines_alone(written, tmp_path):
    """Otherwise the correction, which knows the whole test batch, would count for the gate."""
    tables = """
[[tables]]
name = "main"
rows = ["gate", "data.tau"]
gates = ["federated", "federated+prior", "local"]
tests = ["local"]
"""
    study = written(PLAIN + tables)
    for at, run in enumerate(study.runs):
        scores = {"federated": 0.6, "federated+prior": 0.9, "local": 0.7, "local+prior": 0.95}
        scores["local+prior"] += run.seed / 1000
        scores["local"] += run.seed / 1000
        score(finish(study, at, tmp_path / "runs"), scores)
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    assert told.count("local test: a plain baseline wins.") == 2
    assert "The best gate, FedGate, reaches 0.600" in told


@pytest.mark.parametrize("text", [SWEPT, SWEPT.split("[[figures]]")[0]], ids=["figures", "runs"])
def test_a_page_tells_no_tests_of_what_a_sweep_has_not_chosen(written, tmp_path, text):
    """Neither its own figures nor what runs say of themselves."""
    study = written(text)
    finish_swept(study, tmp_path / "runs")
    text = page(study, tmp_path / "runs", tmp_path / "page.html")
    assert not re.findall(r"\b0\.[58]6(?:9|875)\b", text)
    assert "0.669" in text  # the choice's
    charts = [svg for svg in re.findall(r'<svg class="lines".*?</svg>', text, re.S) if "IID" in svg]
    assert [len(re.findall(r"<g class=\"k", svg)) for svg in charts] == [1] * len(charts)
    assert charts
    assert text.count('<svg class="map') == 1 + 2 * ("Who holds what" in text)
    assert "Of the tests, only that of the choice is told." in words(text)


def test_cells_beside_the_paper_count_once_and_those_missing_are_told(written, tmp_path):
    again = """
[[tables]]
name = "again"
rows = ["gate"]
columns = ["data.tau"]
tests = ["iid"]
show = ["paper"]
[[paper]]
gate = ["federated", "local"]
test = "iid"
data.tau = 0.5
accuracy = 0.125
"""
    study = written(TEXT + again)
    finish(study, 2, tmp_path / "runs")
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    one = "The one measured cell that has a published value beside it is at or above it."
    alone = "From one seed beside a published value no order follows."
    assert f"{one} 2 more are not measured yet. {alone}" in told
    for at in (0, 1, 3):
        finish(study, at, tmp_path / "runs")
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    assert (
        "All 3 cells that have a published value beside them are at or above it. "
        "Of 3 differences to a published value 0 lie within our own 95 % interval."
    ) in told


def test_a_cell_of_fewer_seeds_says_so_inside_its_cell(study, tmp_path):
    finish(study, 0, tmp_path / "runs")
    text = page(study, tmp_path / "runs", tmp_path / "page.html")
    assert "0.500 (n = 1)" in words(text)
    assert "<sup>n=" not in text
    failed = tmp_path / "runs" / study.runs[1].place
    failed.mkdir(parents=True)
    (failed / "failed.json").write_text('{"error": "RoundError: nobody came"}')
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    assert "0.500 (n = 1, 1 failed)" in told
    assert "RoundError: nobody came" in told


def test_pairs_that_say_nothing_are_counted_too(written, tmp_path):
    study = written(TEXT.replace("seeds = [0, 1]", "seeds = [0]"))
    finish(study, 0, tmp_path / "runs")
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    assert "1 paired comparison: 1 without a pair of finished runs." in told
    finish(study, 1, tmp_path / "runs")
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    assert "1 paired comparison: 1 with no estimate of the noise." in told


def test_no_gate_wins_by_nothing(written, tmp_path):
    study = written(PLAIN.replace("seeds = [0, 1]", "seeds = [0]").replace("[0.5, 0.2]", "[0.5]"))
    score(finish(study, 0, tmp_path / "runs"), {"federated": 0.7002, "local": 0.7})
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    same = "the best gate and the best plain baseline are within 0.001 of each other, as far as one"
    assert f"{same} seed can tell." in told
    numbers = r"reaches 0\.7002, the best plain baseline, .*?, 0\.7000 \(\+0\.0002\)"
    assert re.search(numbers, told)
    assert "beats every plain baseline" not in told


def test_no_side_wins_by_seeds_that_all_say_the_same(written, tmp_path):
    study = written(PLAIN.replace("[0.5, 0.2]", "[0.5]"))
    for at in (0, 1):
        score(finish(study, at, tmp_path / "runs"), {"federated": 0.6, "federated+prior": 0.6,
              "control:fedavg": 0.1, "control:fedavg+prior": 0.1})  # fmt: skip
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    told_of = "the best gate beats every plain baseline, as far as seeds that all say the same can"
    assert f"{told_of} tell." not in told  # the own expert's two seeds differ
    for at in (0, 1):
        score(tmp_path / "runs" / study.runs[at].place, {"local": 0.5, "local+prior": 0.5})
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    assert f"{told_of} tell." in told
    assert "95 % interval" not in told[: told.index("Tables")]


def test_who_wins_and_by_how_much_come_from_the_seeds_that_both_have(written, tmp_path):
    """A seed of one side alone is far below all others, and would turn the means around."""
    study = written(
        PLAIN.replace("[0, 1]", "[0, 1, 2]").replace("[axes]\ndata.tau = [0.5, 0.2]\n", "")
        + '[variants.a]\nset = { gate.methods = ["federated"], run.controls = [] }\n'
        + '[variants.b]\nset = { gate.methods = ["local"], run.controls = [] }\n'
    )
    for at, accuracy in enumerate((0.8, 0.81, 0.3, 0.7, 0.705)):  # b failed with seed 2
        scores = dict.fromkeys(("federated", "federated+prior", "local", "local+prior"), accuracy)
        score(finish(study, at, tmp_path / "runs"), scores)
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    assert "IID test: the best gate beats every plain baseline." in told
    assert (
        "The best gate, FedGate of a, reaches 0.805, the best plain baseline, local of b, 0.702 "
        "(+0.103, 95 % interval +0.071 to +0.134)."
    ) in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (PLAIN, ("settings", "2")),
        (PLAIN.replace("[0.5, 0.2]", "[0.5]"), ("setting", "1")),
        (PLAIN + "[variants.a]\n[variants.b.set]\nextractor.rounds = 7\n",
         ("settings of 2 variants", "4")),
        (PLAIN.replace("[axes]\ndata.tau = [0.5, 0.2]", "") + "[variants.a]\n", ("variant", "1")),
    ],
)  # fmt: skip
def test_settings_and_variants_are_counted_apart(written, tmp_path, text, told):
    study = written(text)
    finish(study, 0, tmp_path / "runs")
    fact = page_of_study(findings_of(study, tmp_path / "runs")).facts[1]
    assert (fact.name, fact.value) == told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("", "All 2 cells that have a published value beside them are at or above it."),
        ("0.875", "have a published value beside them, 1 is at or above it and 1 below."),
    ],
)
def test_what_reaches_the_paper_is_counted_in_good_english(written, tmp_path, more, told):
    paper = """
[[tables]]
name = "t"
rows = ["gate"]
columns = ["data.tau"]
gates = ["local"]
tests = ["iid"]
show = ["paper"]
[[paper]]
gate = "local"
test = "iid"
data.tau = 0.5
accuracy = 0.125
[[paper]]
gate = "local"
test = "iid"
data.tau = 0.2
accuracy = """
    study = written(PLAIN + paper + (more or "0.25") + "\n")
    for at in range(len(study.runs)):
        finish(study, at, tmp_path / "runs")
    assert told in words(page(study, tmp_path / "runs", tmp_path / "page.html"))


def test_variants_with_other_data_are_not_compared(written, tmp_path):
    study = written(
        PLAIN.replace("[axes]\ndata.tau = [0.5, 0.2]", "")
        + "[variants.iid.set]\ndata.scheme = 'iid'\n[variants.skewed.set]\ndata.tau = 0.2\n"
    )
    for at, run in enumerate(study.runs):
        own = 0.7 if run.named == "iid" else 0.5
        score(finish(study, at, tmp_path / "runs"), {"federated": 0.6, "local": own,
              "federated+prior": 0.1, "local+prior": 0.1, "control:fedavg": 0.1,
              "control:fedavg+prior": 0.1})  # fmt: skip
    told = words(page(study, tmp_path / "runs", tmp_path / "page.html"))
    assert "10 clients, IID local test FedGate of iid 0.600 local of iid 0.700" in told
    assert "10 clients, dominant classes, τ = 0.2 IID test FedGate of skewed 0.600" in told


def test_a_page_of_what_is_published_needs_no_run_folder(study, tmp_path):
    for at in range(len(study.runs)):
        finish(study, at, tmp_path / "runs")
    kept = tmp_path / "table.json"
    kept.write_text(findings_to_json(findings_of(study, tmp_path / "runs")), encoding="utf-8")
    path = write_webpage(read_findings(study, kept), tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert "Who holds what" not in text
    assert "Main table" in text
    assert path.read_bytes() == write_webpage(read_findings(study, kept), path).read_bytes()


def test_what_a_file_says_is_text(tmp_path):
    path = tmp_path / "little.toml"
    path.write_text(
        f"title = '{ATTACK}'\nabout = '''{ATTACK} *here* [x](javascript:alert(1))'''\nseeds = [0]\n"
        f"[labels]\nfederated = '{ATTACK}'\n[set]\ngate.methods = 'federated,local'\n"
        "run.controls = ''\n",
        encoding="utf-8",
    )
    study = Study.load(path)
    finish(study, 0, tmp_path / "runs")
    text = page(study, tmp_path / "runs", tmp_path / "page.html")
    assert "<img" not in text
    assert "<em>here</em>" in text
    assert 'href="javascript' not in text
    assert text.count("</script>") == 1


def test_a_study_of_24_runs_with_10_clients_stays_below_two_megabytes(tmp_path):
    path = tmp_path / "large.toml"
    path.write_text(
        "title = 'large'\nseeds = [0, 1, 2]\n[axes]\ndata.tau = [0.5, 0.3, 0.2, 0.1]\n"
        "extractor.rounds = [500, 600]\n",
        encoding="utf-8",
    )
    study = Study.load(path)
    assert len(study.runs) == 24
    rng = np.random.default_rng(0)
    gates = ("rolling", "federated", "prototype", "global", "control:centralized")
    for at in range(24):
        routing = {
            f"{gate}/{test}": rng.dirichlet(np.ones(10), 10).round(4).tolist()
            for gate in gates
            for test in ("local", "iid")
        }
        counts = rng.poisson(200, (10, 10)).tolist()
        classes = [str(name) for name in range(10)]
        partition = {"train": counts, "test": counts, "classes": classes}
        finish(study, at, tmp_path / "runs", routing=routing, partition=partition)
    text = page(study, tmp_path / "runs", tmp_path / "page.html")
    assert len(text.encode()) < 2_000_000
    assert text.count('<svg class="map') == 8 * 10 + 8 * 2


def test_a_page_names_settings_of_their_own_and_where_its_runs_lay(written, tmp_path, monkeypatch):
    study = written(EXCEPTIONS)
    finish(study, 0, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    found = findings_of(study, Path("mine"), [Path("theirs")])
    told = words(write_webpage(found, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Runs with settings of their own: seed 1: gate.methods = [federated]," in told
    assert "nmoe study run little.toml --out mine --finished theirs " in told
    typed = "nmoe study report little.toml --runs mine --finished theirs --html little.html"
    assert typed in told


def test_folders_are_told_from_the_working_folder_and_others_as_they_were_given(
    written, tmp_path, monkeypatch
):
    study = written(PLAIN)
    here = tmp_path / "here"
    finish(study, 0, here / "runs")
    finish(study, 1, tmp_path / "results")
    monkeypatch.chdir(here)
    found = findings_of(study, here / "runs", [tmp_path / "results"])
    told = words(write_webpage(found, tmp_path / "page.html").read_text(encoding="utf-8"))
    text = write_findings(found, here / "out", pictures=["svg"]).read_text(encoding="utf-8")
    run = f"nmoe study run {study.path} --finished {tmp_path}/results"
    report = f"nmoe study report {study.path} --finished {tmp_path}/results"
    assert f"{run} " in told
    assert f"{report} --html little.html " in told
    assert f"\n{run}\n{report} --out out\n" in text


def test_a_published_page_tells_no_folder_of_the_machine_that_made_it(tmp_path, monkeypatch):
    """As the site has it, which is made in the project's folder."""
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    study = Study.load(find_study("paper-table-1"))
    text = page(study, root / "results", tmp_path / "page.html")
    assert "nmoe study report paper-table-1 --runs results --html paper-table-1.html" in words(text)
    assert not re.search(rf"{re.escape(str(root))}|/(home|root|tmp|work)/", text)


def test_what_published_systems_answer_is_no_gate_that_beats_a_baseline(tmp_path):
    root = Path(__file__).parents[2]
    study = Study.load(root / "experiments" / "systems-latents.toml")
    told = words(page(study, root / "results", tmp_path / "page.html"))
    best = re.findall(r"The best gate, (.+?), reaches", told)
    assert best != []
    assert all(" of Networked MoE, " in gate for gate in best)


def test_the_command_writes_the_page_alone(study, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finish(study, 0, tmp_path / "runs")
    typed = ["study", "report", "little.toml", "--html", "page.html"]
    assert cli.main(typed) == 0
    assert capsys.readouterr().out == "report  page.html\n"
    assert not (tmp_path / "runs" / "little" / "report").exists()
    assert page_of_study(findings_of(study, tmp_path / "runs")).title == "A study of 100 %"
