"""The page on FedSC in other people's apps: what it calls a small change is one, and is what runs.

tests/test_docs.py runs the code of the page.
"""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "fedsc-plug-in.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def changes(sign: str) -> list[str]:
    lines = [line for block in blocks("diff") for line in block.splitlines()]
    return [line[1:] for line in lines if line.startswith(sign)]


def test_at_most_ten_lines_change() -> None:
    assert 0 < len(changes("+")) <= 10
    assert len(changes("+")) == 6
    assert len(changes("-")) <= 10
    assert "\nSix lines change." in PAGE


def test_the_changed_lines_are_those_of_the_code_that_runs() -> None:
    code = "\n".join(blocks("python")[:2]).splitlines()
    for line in changes("+"):
        assert line in code, line
    for line in changes("-"):
        assert line not in code, line
