"""One word, one meaning: the glossary has every word of results, and points at what is there.

Public names are there once.
"""

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from nmoe_flower.catalogue import (
    ADAPTER_CONTROLS,
    BASELINES,
    CHUNKS,
    CONTROLS,
    GATES,
    METHODS,
    POLICIES,
    TESTS,
    TEXT_GATES,
)
from nmoe_flower.report import tables
from nmoe_flower.study.costs import COSTS
from nmoe_flower.study.labels import METRIC_NAMES

ROOT = Path(__file__).parents[1]
NAME = "nmoe_flower"
PAGE = ROOT / "docs" / "reference" / "glossary.md"
STUDY_FILE = ROOT / "docs" / "reference" / "study-file.md"
CONCEPTS = ROOT / "docs" / "concepts.md"
ROW = re.compile(r"^\| (?!word )(?!-)(.*?) \| (.*) \| (.*?) ?\|$", re.MULTILINE)

# One idea whose halves are called alike in every file that has it.
HALVES = {
    "add_arguments": "options of a command, in every file of cli/",
    "main": "what a program starts with",
    "initial": "handlers of clients/, as the action is called",
    "test": "handlers of clients/",
    "train": "handlers of clients/",
}
# Constants that stand in several files, each with its reason.
SHARED = {
    "ABOUT": "what a command is for, in every file of cli/",
    "SPREAD": "of normalised pixels: data and models do not see each other",
}
# Words that are not used any more for what they meant.
RETIRED = re.compile(r"aligned|spectral_client|placement|quiz|fleet", re.IGNORECASE)


def sources() -> list[Path]:
    paths = sorted((ROOT / NAME).rglob("*.py"))
    return [path for path in paths if not path.stem.endswith("_pb2")]


def public(paths: Iterable[Path]) -> dict[str, list[str]]:
    """Public classes and functions of modules, and where each is defined."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, kinds) and not node.name.startswith("_"):
                found[node.name].append(str(path))
    return found


def constants(paths: Iterable[Path]) -> dict[str, list[str]]:
    """Constants of modules that others may use, and where each is defined."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            for target in targets:
                if isinstance(target, ast.Name) and re.fullmatch("[A-Z][A-Z0-9_]+", target.id):
                    found[target.id].append(str(path))
    return found


def twice(names: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: places for name, places in names.items() if len(places) > 1}


def resolved(pointer: str) -> object:
    """What a dotted name below the package is: a module, or something of one."""
    parts = pointer.removeprefix(f"{NAME}.").split(".")
    for last in range(len(parts), -1, -1):
        try:
            found: object = importlib.import_module(".".join([NAME, *parts[:last]]))
        except ModuleNotFoundError:
            continue
        for part in parts[last:]:
            found = getattr(found, part)
        return found
    raise AttributeError(pointer)


ROWS = [match.groups() for match in ROW.finditer(PAGE.read_text(encoding="utf-8"))]
POINTERS = [
    pytest.param(word, pointer, id=f"{word}-{pointer}")
    for word, _, places in ROWS
    for pointer in re.findall(r"`([^`]+)`", places)
]


def words_of(cell: str) -> set[str]:
    """What a row is of: its words, and in brackets what tables call these."""
    labels = [label for part in re.findall(r"\(([^)]*)\)", cell) for label in part.split("; ")]
    words = re.sub(r" \([^)]*\)", "", cell).replace("`", "").split(", ")
    return {word.casefold() for word in (*words, *labels)}


def listed_numbers() -> list[str]:
    """The metrics on the page of a study's file, which is generated from the code."""
    section = (
        STUDY_FILE.read_text(encoding="utf-8").split("## Names of numbers")[1].split("\n## ")[0]
    )
    return re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)


# What results and tables can print, by where it comes from.
PRINTED: dict[str, tuple[str, ...]] = {
    "gate": (*GATES, "+prior", "mixture", "placed"),
    "gate of text": (CHUNKS, *(name.removesuffix(CHUNKS) for name in TEXT_GATES)),
    "control": tuple(part for name, one in CONTROLS.items() for part in (name, one.label)),
    "control of text": tuple(
        part for n, one in ADAPTER_CONTROLS.items() for part in (n, one.label)
    ),
    "test": tuple(part for name in TESTS for part in (name, tables.test_label(name))),
    "system": tuple(p for n, one in BASELINES.items() for p in (n, one.label, *one.answers)),
    "method": tuple(one.label for one in METHODS.values()),
    "policy": tuple(POLICIES),
    "metric": (
        *METRIC_NAMES,
        *METRIC_NAMES.values(),
        *tables.TEXT_METRICS,
        *tables.TEXT_METRICS.values(),
    ),
    "number": (*COSTS, *listed_numbers()),
}


@pytest.mark.parametrize(("kind", "names"), PRINTED.items(), ids=[*PRINTED])
def test_the_glossary_has_every_name_that_results_print(kind: str, names: tuple[str, ...]) -> None:
    known = set().union(*(words_of(word) for word, _, _ in ROWS))
    assert sorted({name for name in names if name.casefold() not in known}) == []


def test_the_concepts_name_every_gate_control_and_test() -> None:
    section = CONCEPTS.read_text(encoding="utf-8").split("## Words used in results")[1]
    named = re.findall(r"`([^`]+)`", section)
    wanted = {*GATES, *TEXT_GATES, *CONTROLS, *ADAPTER_CONTROLS, *TESTS}
    assert sorted(wanted - {*named}) == []


@pytest.mark.parametrize(("word", "pointer"), POINTERS)
def test_a_word_lives_where_the_glossary_says(word: str, pointer: str) -> None:
    assert resolved(pointer) is not None


def test_the_glossary_has_each_word_once() -> None:
    words = [word for cell, _, _ in ROWS for word in words_of(cell)]
    assert [word for word in words if words.count(word) > 1] == []
    assert len(words) > 50
    assert len(POINTERS) > 50


def test_a_public_name_is_defined_once() -> None:
    found = twice(public(sources()))
    assert {name: places for name, places in found.items() if name not in HALVES} == {}
    assert found.keys() == HALVES.keys(), "a half that stands alone"


def test_a_constant_is_defined_once() -> None:
    assert twice(constants(sources())).keys() == SHARED.keys()


def test_retired_words_are_gone_from_public_names() -> None:
    assert [name for name in public(sources()) if RETIRED.search(name)] == []


def test_the_checks_see_what_is_wrong(tmp_path: Path) -> None:
    for name in ("one", "two"):
        text = "class Traffic: ...\ndef _own(): ...\nGATE: str = 'gate'\n_MOST = T = 9\n"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    assert twice(public(sorted(tmp_path.glob("*.py")))).keys() == {"Traffic"}
    assert twice(constants(sorted(tmp_path.glob("*.py")))).keys() == {"GATE"}
    assert RETIRED.search("AlignedMixture")
    row = words_of("own, `a_b` (A, b; C)")
    assert row == {"own", "a_b", "a, b", "c"}
    with pytest.raises(AttributeError):
        resolved("models.Nothing")
