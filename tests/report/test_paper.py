import re

import pytest

from nmoe_flower.report import load_runs, paper_table, paper_to_markdown
from nmoe_flower.report.paper import PAPER_METHODS, paper_cell

CIFAR = {"data.dataset": "uoft-cs/cifar10"}
FIGURES = ("accuracy", "macro_f1", "auc")


def all_cells():
    return {
        (gate, extractor, scheme, tau, test): cell
        for gate in PAPER_METHODS
        for extractor in ("fedce", "fedsc")
        for scheme, tau in (("iid", None), ("dominant", 0.5), ("dominant", 0.3), ("dominant", 0.2))
        for test in ("local", "iid")
        if (cell := paper_cell(gate, extractor=extractor, scheme=scheme, tau=tau, test=test))
    }


def test_every_number_is_a_fraction():
    cells = all_cells()
    # Table I: two controls and 2 x 3 gates in 4 settings, centralized in one; Table II: 8 in 3.
    # A control does not depend on the extractor, so it is found under both.
    assert sum(cell["table"] == "I" for cell in cells.values()) == 6 * 4 + 2 * (2 * 4 + 1)
    assert sum(cell["table"] == "II" for cell in cells.values()) == 6 * 3 + 2 * 2 * 3
    for cell in cells.values():
        assert all(0 < cell[figure] < 1 for figure in FIGURES)


def test_in_the_paper_the_federated_gate_leads_everywhere():
    for (gate, *place), cell in all_cells().items():
        if gate == "federated":
            for rival in ("random", "rolling"):
                assert cell["accuracy"] > all_cells()[rival, *place]["accuracy"]


@pytest.mark.parametrize(
    ("gate", "extractor", "scheme", "tau", "test", "numbers"),
    [
        ("control:centralized", "fedce", "iid", None, "local", (0.9037, 0.9025, 0.977)),
        ("random", "fedce", "dominant", 0.5, "local", (0.6492, 0.5620, 0.8340)),
        ("federated", "fedsc", "iid", None, "local", (0.7726, 0.7688, 0.9462)),
        ("federated", "fedsc", "dominant", 0.2, "iid", (0.5058, 0.4954, 0.8056)),
        ("control:local-classifier", "fedsc", "dominant", 0.5, "iid", (0.0977, 0.0655, 0.5003)),
    ],
)
def test_numbers_as_printed(gate, extractor, scheme, tau, test, numbers):
    cell = paper_cell(gate, extractor=extractor, scheme=scheme, tau=tau, test=test)
    assert tuple(cell[figure] for figure in FIGURES) == numbers


@pytest.mark.parametrize(
    ("gate", "scheme", "tau", "test"),
    [
        ("federated+prior", "dominant", 0.2, "local"),
        ("oracle", "dominant", 0.2, "local"),
        ("federated", "dominant", 0.4, "local"),
        ("federated", "dirichlet", None, "local"),
        ("federated", "pathological", 0.2, "local"),
        ("federated", "iid", None, "iid"),
        ("control:centralized", "dominant", 0.2, "iid"),
    ],
)
def test_there_is_no_cell_for_what_the_paper_did_not_measure(gate, scheme, tau, test):
    assert paper_cell(gate, extractor="fedce", scheme=scheme, tau=tau, test=test) is None


def test_ours_beside_theirs(finished_run):
    rows = [("federated", "local", 0.4), ("federated+prior", "local", 0.5), ("oracle", "iid", 0.9)]
    twice = [
        finished_run("a", CIFAR | {"data.tau": 0.3}, rows=rows),
        finished_run(
            "b", CIFAR | {"data.tau": 0.3, "run.seed": 1}, rows=[("federated", "local", 0.6)]
        ),
    ]
    (row,) = paper_table(load_runs(twice))
    # Means and deviations of 0.4 and 0.6; sample_row takes 0.03 off for macro F1.
    assert row.pop("accuracy") == pytest.approx(0.5)
    assert row.pop("accuracy_std") == pytest.approx(0.02**0.5)
    assert row.pop("macro_f1") == pytest.approx(0.47)
    assert row.pop("macro_f1_std") == pytest.approx(0.02**0.5)
    assert row == {
        "table": "I", "setting": "τ = 0.3", "extractor": "fedce", "method": "FedGate",
        "config": "", "n": 2, "auc": 0.95, "auc_std": 0.0,
        "paper_accuracy": 0.3549, "paper_macro_f1": 0.2418, "paper_auc": 0.706,
    }  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        {"data.dataset": "digits"},
        {"data.dataset": "uoft-cs/cifar100"},
        CIFAR | {"data.num-clients": 5},
        CIFAR | {"gate.top-k": 2},
        CIFAR | {"data.scheme": "dirichlet"},
        CIFAR | {"data.tau": 0.4},
        CIFAR | {"run.system": "fedem"},
        CIFAR | {"data.kind": "features", "extractor.backbone": "mlp"},
    ],
)
def test_other_experiments_are_not_compared(finished_run, values):
    table = paper_table(load_runs([finished_run("a", values)]))
    assert table == []
    assert paper_to_markdown(table) == ""


def test_markdown_has_one_column_per_setting_beside_the_papers(finished_run):
    runs = [finished_run(f"t{tau}", CIFAR | {"data.tau": tau}) for tau in (0.2, 0.5)]
    runs.append(finished_run("iid", CIFAR | {"data.scheme": "iid"}))
    runs.append(finished_run("digits"))
    text = paper_to_markdown(paper_table(load_runs(runs)))
    assert re.findall(r"### (Table \w+, [\w ]+) \(", text) == [
        "Table I, accuracy", "Table I, macro F1", "Table I, AUC",
        "Table II, accuracy", "Table II, macro F1", "Table II, AUC",
    ]  # fmt: skip
    first, _, rest = text.partition("### Table II, accuracy")
    lines = first.splitlines()
    assert lines[2] == "| Extractor | Method | IID | paper | τ = 0.5 | paper | τ = 0.2 | paper |"
    # The controls' accuracies in the sample are 0.5, 0.7 and 0.9.
    assert lines[4] == "| FedCE | Centralized MoE | 0.900 | 0.904 | - | - | - | - |"
    assert lines[5] == (
        "| FedCE | Local Classifier | 0.700 | 0.111 | 0.700 | 0.667 | 0.700 | 0.833 |"
    )
    assert [line.split(" | ")[1] for line in lines[4:10]] == list(PAPER_METHODS.values())
    assert rest.splitlines()[2] == "| Extractor | Method | τ = 0.5 | paper | τ = 0.2 | paper |"
    assert "arXiv:2511.01743" in text


def test_configurations_that_share_a_cell_have_lines_of_their_own(finished_run):
    rows = [("random", "iid", 0.25)]
    runs = [
        finished_run("a", CIFAR | {"data.tau": 0.5, "gate.rounds": 7}, rows=rows),
        finished_run("b", CIFAR | {"data.tau": 0.5, "gate.rounds": 8}, rows=rows),
    ]
    text = paper_to_markdown(paper_table(load_runs(runs)))
    assert "| FedCE | RanGate | gate.rounds = 7 | 0.250 | 0.668 |" in text
    assert "| FedCE | RanGate | gate.rounds = 8 | 0.250 | 0.668 |" in text
