"""Docstrings can be read alone: whoever hovers over an argument sees its line and nothing else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATHS = [
    path
    for part in ("nmoe_flower", "benchmarks", "experiments")
    for path in sorted((ROOT / part).rglob("*.py"))
    if not path.stem.endswith("_pb2")
]
DEFINED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# They go on with a sentence that is not there.
LEANING = re.compile(r"(?:Of|Its|Their|See|Likewise|Those of|That of|As in|As for|Whose)\b")
ENTRY = re.compile(r"^ {4}(\*{0,2}[\w, *`]+)(?: \(.*?\))?: (.*(?:\n {5,}.*)*)", re.MULTILINE)
SECTION = re.compile(r"^(Args|Attributes|Raises):\n((?: {4}.*\n?|\n)*)", re.MULTILINE)
# Types, shapes and code say what form it has, not what it is.
FORM = re.compile(r"``.*?``|\[.*?\]|\(.*?\)|\b(?:int|float|bool|str)(?:8|16|32|64)?\b")


def entries(text: str) -> Iterator[tuple[str, str]]:
    """Arguments, attributes and errors of a docstring, each with what is said of it."""
    for section in SECTION.finditer(text):
        for entry in ENTRY.finditer(section[2]):
            yield entry[1], entry[2]


def unclear(text: str) -> list[str]:
    """What cannot be read alone in a docstring."""
    found = [f"first line: {text.splitlines()[0]}"] if LEANING.match(text) else []
    for name, said in entries(text):
        if LEANING.match(said) or not re.search(r"[a-z]{3}", FORM.sub("", said)):
            found.append(f"{name}: {said}")
    return found


def test_every_line_can_be_read_alone() -> None:
    found = []
    for path in PATHS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, DEFINED) and (text := ast.get_docstring(node)):
                place = f"{path.relative_to(ROOT)}, {node.name}"
                found += [f"{place}, {line}" for line in unclear(text)]
    assert found == []


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("seed: Of the cohorts.", True),
        ("seed: Seed of the cohorts.", False),
        ("labels: int64 [N].", True),
        ("labels: Class of each sample, int64 [N].", False),
        ("app: ``package.module:name``.", True),
        ("norm: See ``make_norm``.", True),
        ("lo: Offset.", False),
    ],
)
def test_what_leans_on_the_line_above_is_seen(said: str, wrong: bool) -> None:
    text = f"Draw clients.\n\nArgs:\n    first: First number.\n    {said}\n\nReturns:\n    All.\n"
    assert bool(unclear(text)) is wrong
    assert unclear(f"Of the run.\n\nArgs:\n    {said}\n")[0] == "first line: Of the run."
