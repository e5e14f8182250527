import csv
import io
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.study.markup import latex_text, table_to_csv, table_to_latex, table_to_markdown
from nmoe_flower.study.tables import Cell, Column, Line, StudyTable, cell_of
from tests.study.conftest import row

SPREAD = cell_of(row({0: 0.5, 1: 0.6}, values={"data.tau": 0.2}, paper=0.25,
                     bytes_per_device=1234567890.0, exchanges=300))  # fmt: skip
GONE = cell_of(row({}, asked=(0, 1), failed={1: "RoundError: 50 % | gone"}))
TABLE = StudyTable(
    "t_1",
    "Tests of 100 % & more",
    ("variant", "gate"),
    (Column(("tau = 0.5", "accuracy")), Column(("tau = 0.2", "accuracy"), ("paper", "difference")),
     Column(("tau = 0.2", "AUC"))),
    (Line(("A|B", "x_1"), (GONE, SPREAD, Cell("none"))),
     Line(("C", "x_2"), (SPREAD, Cell("none"), SPREAD))),
    ("Mean ± standard error.",),
)  # fmt: skip


def test_markdown_has_the_same_cells_in_every_line() -> None:
    lines = table_to_markdown(TABLE).splitlines()
    assert lines[0] == (
        "| variant | gate | tau = 0.5, accuracy | tau = 0.2, accuracy | paper | difference "
        "| tau = 0.2, AUC |"
    )
    assert lines[1] == "| :--- | :--- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == r"| A\|B | x_1 | failed | 0.550 ± 0.050 | 0.250 | +0.300 ≈ | - |"
    assert lines[-1] == "Mean ± standard error."


def test_markdown_leaves_out_the_notes_that_stand_elsewhere() -> None:
    table = replace(TABLE, notes=("A note.", "Another."))
    assert table_to_markdown(table).endswith("\n\nA note.\n\nAnother.\n")
    told = table_to_markdown(table, without=["A note."])
    assert "A note." not in told
    assert told.endswith(" |\n\nAnother.\n")


def test_csv_is_tidy_one_value_a_line_and_whole() -> None:
    read = list(csv.DictReader(io.StringIO(table_to_csv(TABLE))))
    assert len(read) == 2  # a cell that stands in several places is one value
    assert read[1]["data.tau"] == "0.2"
    assert (read[1]["mean"], read[1]["seeds"], read[1]["paper"]) == ("0.55", "0 1", "0.25")
    assert float(read[1]["se"]) == pytest.approx(0.05, abs=1e-15)
    assert (read[1]["bytes_per_device"], read[1]["exchanges"]) == ("1234567890.0", "300")
    assert (read[0]["status"], read[0]["n"], read[0]["mean"]) == ("failed", "0", "")
    assert read[0]["note"] == "failed: a seed 1 (RoundError: 50 % | gone); missing: a seed 0"


def test_latex_is_a_table_of_booktabs_with_as_many_cells_in_every_line() -> None:
    text = table_to_latex(TABLE)
    assert "\\begin{tabular}{llrrrrr}" in text
    assert "\\caption{Tests of 100 \\% \\& more}" in text
    assert "\\label{tab:t-1}" in text
    assert text.count("\\begin{") == text.count("\\end{") == 2
    top, body = text.split("\\toprule\n")[1].split("\\bottomrule")[0].split("\\midrule\n")
    first, second = top.splitlines()
    assert first == (r" &  & tau = 0.5 & \multicolumn{4}{c}{tau = 0.2} \\ \cmidrule(lr){4-7}")
    assert second == r"variant & gate & accuracy & accuracy & paper & difference & AUC \\"
    for line in body.splitlines():
        assert line.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", line)) == 6
    assert r"A\textbar{}B & x\_1 & failed & 0.550 $\pm$ 0.050 & 0.250 & +0.300 $\approx$" in body


@given(st.text(max_size=30))
def test_latex_sees_no_command_in_any_text(text: str) -> None:
    written = latex_text(text)
    # What remains after the escapes that are ours are taken out has no letter of LaTeX's own.
    ours = re.compile(r"\\[&%$#_{}]|\\text[a-z]+\{\}|\\[a-z]+\{\}|\$\\?[a-z-]+\$")
    assert not set("\\&%$#_{}~^") & set(ours.sub("", written))
    assert "\n" not in written


@given(st.text(max_size=30))
def test_no_text_breaks_a_line_of_markdown(text: str) -> None:
    table = StudyTable("t", "", ("head",), (Column(("c",)),), (Line((text,), (SPREAD,)),))
    line = table_to_markdown(table).split("\n")[2]
    assert len(re.findall(r"(?<!\\)\|", line)) == 3
