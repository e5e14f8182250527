import csv
import io
import itertools
import json

import pytest

from nmoe_flower.report import load_runs, paper_table, results_table, to_csv, to_markdown
from nmoe_flower.report.tables import TABLE_METRICS, parts_of_text


def cell(table, gate, test="local"):
    (row,) = [row for row in table if row["gate"] == gate and row["test"] == test]
    return row


@pytest.fixture
def three_seeds(finished_run):
    return [
        finished_run(f"seed{seed}", {"run.seed": seed}, rows=[("federated", "local", accuracy)])
        for seed, accuracy in ((0, 0.6), (1, 0.7), (2, 0.8))
    ]


def test_mean_and_standard_deviation_over_seeds(three_seeds):
    (row,) = results_table(load_runs(three_seeds))
    assert row["n"] == 3
    assert row["seeds"] == "0 1 2"
    # (0.6 + 0.7 + 0.8) / 3; sqrt((0.01 + 0 + 0.01) / (3 - 1))
    assert row["accuracy"] == pytest.approx(0.7, abs=1e-12)
    assert row["accuracy_std"] == pytest.approx(0.1, abs=1e-12)
    assert row["macro_f1"] == pytest.approx(0.67, abs=1e-12)
    assert row["auc_std"] == 0.0
    assert "| **0.700 ± 0.100** |" in to_markdown([row])


def test_the_order_of_runs_does_not_matter(three_seeds):
    tables = [results_table(load_runs(runs)) for runs in itertools.permutations(three_seeds)]
    assert all(table == tables[0] for table in tables)


def test_one_seed_has_no_spread(finished_run):
    (row,) = results_table(load_runs([finished_run("one", rows=[("local", "iid", 0.5)])]))
    assert row["accuracy_std"] is None
    assert "±" not in to_markdown([row]).split("Fractions")[0]


def test_a_metric_one_seed_lacks_has_no_mean(three_seeds):
    results = json.loads((three_seeds[1] / "results.json").read_text())
    results["rows"][0]["auc"] = None
    del results["rows"][0]["local_ratio"]
    (three_seeds[1] / "results.json").write_text(json.dumps(results))
    (row,) = results_table(load_runs(three_seeds))
    for metric in ("auc", "local_ratio"):
        assert row[metric] is None
        assert row[f"{metric}_std"] is None
    assert row["accuracy"] == pytest.approx(0.7)
    assert row["best"] == ("accuracy", "balanced_accuracy", "macro_f1")


def test_the_best_gate_of_each_test_is_bold_and_no_bound_or_control_is(finished_run):
    rows = [
        ("random", "local", 0.5),
        ("federated+prior", "local", 0.7),
        ("federated", "local", 0.6),
        ("global", "local", 0.8),
        ("oracle+prior", "local", 0.9),
        ("control:centralized", "local", 0.95),
        ("random", "iid", 0.62),
        ("federated", "iid", 0.61),
        ("control:fedavg+prior", "iid", 0.97),
    ]
    table = results_table(load_runs([finished_run("one", rows=rows)]))
    best = {(row["gate"], row["test"]) for row in table if "accuracy" in row["best"]}
    assert best == {("federated+prior", "local"), ("random", "iid")}
    markdown = to_markdown(table)
    assert "**0.700**" in markdown
    assert "**0.620**" in markdown
    for number in ("0.500", "0.600", "0.800", "0.900", "0.950", "0.610", "0.970"):
        assert f"| {number} |" in markdown
    assert "| oracle+prior † |" in markdown
    assert "| control:centralized ‡ |" in markdown


def test_equal_gates_are_both_best(finished_run):
    rows = [("random", "iid", 0.6), ("random+prior", "iid", 0.6), ("rolling", "iid", 0.5)]
    table = results_table(load_runs([finished_run("one", rows=rows)]))
    assert [row["gate"] for row in table if row["best"]] == ["random", "random+prior", "rolling"]
    assert [row["gate"] for row in table if "accuracy" in row["best"]] == ["random", "random+prior"]


def test_without_a_deployable_gate_nothing_is_bold(finished_run):
    rows = [("oracle", "iid", 0.9), ("control:fedavg", "iid", 0.8)]
    table = results_table(load_runs([finished_run("one", rows=rows)]))
    assert [row["best"] for row in table] == [(), ()]
    assert "**" not in to_markdown(table)


def test_runs_of_different_configurations_are_never_mixed(finished_run):
    rows = [("federated", "local", 0.6)]
    slow = finished_run("slow", {"gate.learning-rate": 0.01}, rows=rows)
    other = finished_run("other", {"gate.learning-rate": 0.01, "run.seed": 1}, rows=rows)
    fast = finished_run(
        "fast", {"gate.learning-rate": 0.02, "run.seed": 1}, rows=[("federated", "local", 0.8)]
    )
    table = results_table(load_runs([slow, fast, other]))
    found = {row["config"]: (row["n"], row["accuracy"]) for row in table}
    assert found == {
        "gate.learning-rate = 0.01": (2, 0.6),
        "gate.learning-rate = 0.02": (1, 0.8),
    }
    # One is not better than the other: each is the best of its own configuration.
    assert all("accuracy" in row["best"] for row in table)
    assert "top-1 (gate.learning-rate = 0.02)" in to_markdown(table)


def test_rows_come_milder_skew_first_local_test_first_gates_before_controls(finished_run):
    runs = [finished_run(f"t{tau}", {"data.tau": tau}) for tau in (0.2, 0.5)]
    runs.append(finished_run("iid", {"data.scheme": "iid"}))
    table = results_table(load_runs(runs))
    places = list(dict.fromkeys((row["scheme"], row["tau"], row["test"]) for row in table))
    assert places == [
        ("dominant", 0.5, "local"), ("dominant", 0.5, "iid"),
        ("dominant", 0.2, "local"), ("dominant", 0.2, "iid"),
        ("iid", None, "local"), ("iid", None, "iid"),
    ]  # fmt: skip
    assert [row["gate"] for row in table[:17]] == [
        "random", "random+prior", "rolling", "rolling+prior", "federated", "federated+prior",
        "local", "local+prior", "prototype", "prototype+prior", "global", "global+prior",
        "oracle", "oracle+prior", "control:fedavg", "control:local-classifier",
        "control:centralized",
    ]  # fmt: skip


def test_csv_comes_back_exactly(finished_run):
    runs = [finished_run(f"s{seed}", {"run.seed": seed}) for seed in (3, 4)]
    table = results_table(load_runs(runs))
    back = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(back) == len(table) == 34
    for text, row in zip(back, table, strict=True):
        for name in (*TABLE_METRICS, *(f"{metric}_std" for metric in TABLE_METRICS)):
            assert (float(text[name]) if text[name] else None) == row[name]
        assert text["best"].split() == list(row["best"])
        assert (text["gate"], text["test"], text["n"], text["seeds"]) == (
            row["gate"], row["test"], "2", "3 4",
        )  # fmt: skip
    assert cell(table, "control:fedavg")["local_ratio"] is None
    assert to_csv([]) == ""


def test_markdown_comes_back_rounded(finished_run):
    table = results_table(load_runs([finished_run("one")]))
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    cells = [[text.strip() for text in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {9}
    back = [line for line in cells if not line[0].endswith("test") and ":---" not in line]
    assert len(back) == len(table)
    for line, row in zip(back, table, strict=True):
        assert line[0].split()[0] == row["gate"]
        assert float(line[1].strip("*")) == pytest.approx(row["accuracy"], abs=5.01e-4)
        worst = row["worst_client"]
        assert line[2] == ("-" if worst is None else f"{worst:.3f}")
        assert line[7] == ("-" if row["kind"] == "control" else "1566")


def test_the_validation_test_stands_last_and_beside_no_paper(finished_run):
    rows = [("federated", test, 0.5) for test in ("validation", "iid", "local")]
    settings = {"data.dataset": "cifar10", "data.num-clients": 10, "data.validation-per-client": 9}
    runs = load_runs([finished_run("chosen", settings, rows=rows)])
    table = results_table(runs)
    assert [row["test"] for row in table] == ["local", "iid", "validation"]
    text = to_markdown(table)
    headings = [text.index(f"| {name} |") for name in ("Local test", "IID test", "Validation")]
    assert headings == sorted(headings)
    assert {row["table"] for row in paper_table(runs)} == {"I", "II"}
    assert len(paper_table(runs)) == 2


def test_text_has_bits_per_byte_of_all_domains_and_clients(text_runs):
    table = results_table(load_runs(text_runs))
    row = cell(table, "unigram", "iid")
    assert (row["bits_per_byte"], row["worst_bits_per_byte"], row["perplexity"]) == (
        2.5,
        2.5,
        2**1.5,
    )
    assert row["bits_per_byte_std"] == pytest.approx(0.5**0.5)
    assert (row["domain/code"], row["domain/law"], row["client/1"]) == (1.5, 3.0, 2.5)
    assert parts_of_text(table, "domain") == {"domain/code": "code", "domain/law": "law"}
    # less is better, and what no device can be is never bold
    best = {row["gate"] for row in table if "bits_per_byte" in row["best"]}
    assert best == {"unigram"}
    markdown = to_markdown(table)
    assert "| unigram | **2.500 ± 0.707** | **2.500 ± 0.000** |" in markdown
    assert "| IID test, by domain | code | law |" in markdown
    assert "| IID test, by client | client 0 | client 1 |" in markdown
    assert "Accuracy" not in markdown
    assert "lower is better" in markdown
    read = next(csv.DictReader(io.StringIO(to_csv(table))))
    assert float(read["domain/law"]) == cell(table, read["gate"], "iid")["domain/law"]


def test_images_beside_text_have_their_own_tables(text_runs, finished_run):
    images = finished_run("images", {"gate.top-k": 2}, rows=[("local", "iid", 0.5)])
    table = results_table(load_runs([*text_runs, images]))
    of_images = next(row for row in table if row["accuracy"] is not None)
    assert (of_images["bits_per_byte"], of_images["domain/code"]) == (None, None)
    assert of_images["best"] == ("accuracy", "balanced_accuracy", "macro_f1", "auc")
    markdown = to_markdown(table)
    assert "Accuracy" in markdown
    assert "by domain" in markdown
