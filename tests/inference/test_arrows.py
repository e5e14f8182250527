"""Which room of inference sees which, and what a query's steps do without."""

import ast
from pathlib import Path

import pytest

import nmoe_flower.inference

FOLDER = Path(nmoe_flower.inference.__file__).parent
ROOT = "nmoe_flower.inference"
# A room sees those that are named for it. Asking and answering do not see each other.
ROOMS: dict[str, set[str]] = {
    "protocol": set(),
    "bundle": {"protocol"},
    "ask": {"protocol", "bundle"},
    "serve": {"protocol", "bundle"},
}


def imported(path: Path) -> set[str]:
    """The modules that a file takes something from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return found


def test_every_folder_is_a_room() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/*.py")} == ROOMS.keys()


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_a_room_sees_those_before_it(path: Path) -> None:
    own, modules = path.parent.name, imported(path)
    assert ROOT not in modules, "the whole sees this room"
    seen = {name.split(".")[2] for name in modules if name.startswith(f"{ROOT}.")} & ROOMS.keys()
    assert seen <= ROOMS[own] | {own}


def test_files_beside_the_rooms_see_none_of_them() -> None:
    for path in FOLDER.glob("*.py"):
        if path.name != "__init__.py":
            assert not [name for name in imported(path) if name.startswith(ROOT)], path


def test_the_steps_of_a_query_know_no_clock_and_no_network() -> None:
    modules = imported(FOLDER / "ask" / "query.py")
    assert modules == {"collections.abc", "typing", "numpy", "numpy.typing"}
