"""The table of docs/how-to/privacy-budget.md is what the command beside it prints."""

import json
import re
from pathlib import Path

import pytest

from nmoe_flower import cli
from nmoe_flower.study.rows import records_of

pytestmark = pytest.mark.published

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "privacy-budget.md"
MARKS = {"": "clear", "*": "tight", "**": "hidden"}


def test_the_table_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (command,) = re.findall(r"^nmoe (privacy --epsilon 0\.5 .*)$", text, re.MULTILINE)
    assert cli.main([*command.split(), "--format", "json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    expected = {(p["releases"], p["epsilon"], p["dim"]): p for p in plans}
    (header,) = re.findall(r"^\| releases \| epsilon .*$", text, re.MULTILINE)
    dims = [int(number) for number in re.findall(r"d = (\d+)", header)]
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| (.*) \|$", text, re.MULTILINE)
    found = 0
    for releases, epsilon, multiplier, cells in rows:
        for dim, cell in zip(dims, cells.split(" | "), strict=True):
            plan = expected[int(releases), float(epsilon), dim]
            mark, number = re.fullmatch(r"(\**)([\d.]+)\**", cell).groups()  # type: ignore[union-attr]
            assert (float(number), MARKS[mark]) == (
                round(plan["mean_noise_edge"], 4), plan["verdict"],
            ), (releases, epsilon, dim)  # fmt: skip
            assert float(multiplier) == round(plan["noise_multiplier"], 2)
            found += 1
    assert found == len(plans) == 60


def test_the_measured_figures_are_those_of_the_results() -> None:
    """``experiments.publish pages`` fills the place from results/fedsc-privacy/table.json."""
    text = PAGE.read_text(encoding="utf-8")
    section = text.split("## Measured on CIFAR-10\n")[1].split("\n## ")[0]
    (inside,) = re.findall(
        r"^<!-- study fedsc-privacy privacy -->\n(.*)<!-- end -->$",
        section,
        re.DOTALL | re.MULTILINE,
    )
    table = PAGE.parents[2] / "results" / "fedsc-privacy" / "table.json"
    rows = records_of(json.loads(table.read_text(encoding="utf-8")))
    noise = [row["mean"] for row in rows if row["metric"] == "noise_multiplier"]
    assert len(noise) == 2
    assert all(f"| {value:.2f} |" in inside for value in noise)
