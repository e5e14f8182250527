from dataclasses import replace

from nmoe_flower.study import Study
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.rows import Quantity, Row, RunOutcome, rows_of
from nmoe_flower.study.tables import Cell, StudyTable, absent_in_words, fill_table
from tests.study.conftest import Write, labels_of, outcome, row

TWO = """
title = "Two"
seeds = [0, 1]
[set]
gate.methods = "federated,local"
run.controls = "fedavg"
[axes]
data.tau = [0.5, 0.2]
[variants.b]
label = "Second"
set = {extractor.rounds = 7}
[variants.a]
label = "First"
[[tables]]
name = "t"
rows = ["variant", "gate"]
columns = ["data.tau", "metric"]
gates = ["local", "federated"]
tests = ["iid"]
metrics = ["accuracy"]
"""


def fill(study: Study, rows: list[Row]) -> StudyTable:
    return fill_table(study.tables[0], rows, labels_of(study))


def rows_with(study: Study, **cells: float) -> list[Row]:
    """All runs finished: accuracy by gate, a hundredth more for seed 1."""
    tests = {(gate, test): v for gate, v in cells.items() for test in ("iid", "local")}
    runs = [
        outcome(study, at, {cell: v + run.seed / 100 for cell, v in tests.items()})
        for at, run in enumerate(study.runs)
    ]
    wanted = [Quantity(g, t, "accuracy") for g in ("federated", "local") for t in ("iid", "local")]
    return rows_of(runs, wanted)


def test_lines_and_columns_stand_as_the_file_has_them(written: Write) -> None:
    study = written(TWO)
    table = fill(study, rows_with(study, federated=0.5, local=0.6))
    assert table.heads == ("variant", "gate")
    assert [column.labels for column in table.columns] == [("tau = 0.5",), ("tau = 0.2",)]
    assert [line.labels for line in table.lines] == [
        ("Second", "local"), ("Second", "federated"), ("First", "local"), ("First", "federated"),
    ]  # fmt: skip
    # Seeds 0.60 and 0.61: mean 0.605, spread 0.00707, by the root of two 0.005.
    assert table.lines[0].cells[0].text == "0.605 ± 0.005"
    assert table.notes == ("Accuracy, IID test.", "Mean ± standard error over seeds 0, 1.")


def test_seeds_can_be_columns_and_lines_can_be_chosen(written: Write) -> None:
    text = TWO.replace('["data.tau", "metric"]', '["seed"]').replace(
        '["variant", "gate"]', '["gate"]'
    )
    study = written(text + 'where = {variant = "a", data.tau = 0.2}\ndigits = 2\n')
    table = fill(study, rows_with(study, federated=0.5, local=0.6))
    assert [column.labels for column in table.columns] == [("seed = 0",), ("seed = 1",)]
    assert [[cell.text for cell in line.cells] for line in table.lines] == [
        ["0.60", "0.61"], ["0.50", "0.51"],
    ]  # fmt: skip


def test_a_number_that_no_run_has_measured_keeps_its_column(written: Write) -> None:
    study = written(f"""{TWO.partition("[[tables]]")[0]}
[[tables]]
name = "t"
rows = ["variant", "data.tau"]
columns = ["number", "test"]
numbers = [
  {{ label = "who", gate = "control:fedavg", test = "iid", metric = "local_ratio" }},
  {{ label = "own", gate = "local", test = "local" }},
]
""")
    table = fill(study, rows_with(study, federated=0.5, local=0.6))
    assert [column.labels for column in table.columns] == [
        ("who", "IID test"), ("own", "local test"),
    ]  # fmt: skip
    assert [cell.text for cell in table.lines[0].cells] == ["-", "0.605 ± 0.005"]


def test_a_failed_run_and_a_missing_one_are_in_their_cells_and_below(written: Write) -> None:
    study = written(TWO)
    runs = [RunOutcome(run) for run in study.runs]
    runs[0] = RunOutcome(study.runs[0], failed="RoundError: too few replies")
    runs[2] = outcome(study, 2, {("local", "iid"): 0.5, ("federated", "iid"): 0.5})
    wanted = [Quantity(gate, "iid", "accuracy") for gate in ("federated", "local")]
    table = fill(study, rows_of(runs, wanted))
    texts = [[cell.text for cell in line.cells] for line in table.lines]
    assert texts[0] == ["failed", "0.500 (n = 1)"]
    assert texts[2] == ["missing", "missing"]
    assert table.notes[-2:] == (
        "Failed: b-tau-0.5 seed 0 (RoundError: too few replies).",
        "Missing: b-tau-0.5 seed 1; b-tau-0.2 seed 1; a-tau-0.5 seeds 0, 1; a-tau-0.2 seeds 0, 1.",
    )
    runs[3] = RunOutcome(study.runs[3], failed="MemoryError")
    table = fill(study, rows_of(runs, wanted))
    assert table.lines[0].cells[1].text == "0.500 (n = 1, 1 failed)"


def test_of_many_missing_runs_a_dozen_are_named() -> None:
    rows = [
        row({}, folder=f"tau-{at}", test=test, asked=(0,))
        for at in range(15) for test in ("iid", "local")
    ]  # fmt: skip
    (told,) = absent_in_words(rows)
    assert told.startswith("Missing: tau-0 seed 0; tau-1 seed 0;")
    assert told.endswith("tau-11 seed 0; and 3 more.")
    (few,) = absent_in_words(rows[:24])
    assert few.endswith("tau-11 seed 0.")


def test_the_paper_stands_beside_the_cells_that_it_has(written: Write) -> None:
    at = "variant = ['a', 'b']\ndata.tau = 0.2\ngate = 'local'\ntest = 'iid'"
    published = f"[[paper]]\n{at}\naccuracy = 0.25\n"
    study = written(f'{TWO}show = ["paper", "difference"]\n{published}')
    rows = [
        row({0: 0.5}, variant=v, folder=v, values={"data.tau": tau}, gate=gate,
            paper=0.25 if (tau, gate) == (0.2, "local") else None)
        for v in "ab" for tau in (0.5, 0.2) for gate in ("federated", "local")
    ]  # fmt: skip
    table = fill(study, rows)
    assert [column.shows for column in table.columns] == [(), ("paper", "difference")]
    first, second = table.lines[0].cells[1], table.lines[1].cells[1]
    assert (first.paper_text, first.difference_text) == ("0.250", "+0.250")
    assert (second.paper_text, second.difference_text) == ("-", "-")
    assert table.notes[-2:] == (
        "Seed 0 alone: there is no estimate of the noise.",
        "From one seed beside a published value no order follows.",
    )
    noisy = [replace(one, each={0: 0.2, 1: 0.35}, asked=(0, 1)) for one in rows]
    assert fill(study, noisy).notes[-1] == (
        "Of 2 differences to a published value 2 lie within our own 95 % interval (≈)."
    )
    sure = [replace(one, each={0: 0.5, 1: 0.501}, asked=(0, 1)) for one in rows]
    assert fill(study, sure).notes[-1].startswith("Of 2 differences to a published value 0 ")


def test_a_number_of_the_whole_run_stands_beside_those_of_its_gates(written: Write) -> None:
    study = written(TWO.replace('["accuracy"]', '["extractor.rounds", "accuracy"]'))
    rows = rows_with(study, federated=0.5, local=0.6)
    finished = [outcome(study, at, {}) for at in range(len(study.runs))]
    rows += rows_of(finished, [Quantity("", "", "extractor.rounds")])
    table = fill(study, rows)
    assert [column.labels[1] for column in table.columns[:2]] == ["rounds", "accuracy"]
    assert [line.cells[0].text for line in table.lines] == ["7", "7", "120", "120"]


def test_large_numbers_have_few_decimals_and_text_stays() -> None:
    texts = [Cell("measured", value, None, 1, 1).text for value in (0.98765, 12.3456, 1234.56)]
    assert texts == ["0.988", "12.3", "1,235"]
    assert Cell("measured", words="fedce").text == "fedce"


def test_one_and_true_are_two_values_of_an_axis() -> None:
    labels = Labels(axes={"axis": [True, 1]})
    assert labels.order("axis", 1) > labels.order("axis", True)
