"""One word, one meaning: the glossary points at what is there, and public names are there once."""

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAME = "nmoe_flower"
PAGE = ROOT / "docs" / "reference" / "glossary.md"
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


@pytest.mark.parametrize(("word", "pointer"), POINTERS)
def test_a_word_lives_where_the_glossary_says(word: str, pointer: str) -> None:
    assert resolved(pointer) is not None


def test_the_glossary_has_each_word_once() -> None:
    words = [word for word, _, _ in ROWS]
    assert len(words) == len(set(words)) > 50
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
    with pytest.raises(AttributeError):
        resolved("models.Nothing")
