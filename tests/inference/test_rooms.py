"""The rooms of inference: who sees whom, and what a query's steps do without."""

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


def imported(path: Path) -> list[tuple[str, str]]:
    """Modules and the names taken from each."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.name for path in FOLDER.glob("*/*.py")}
    assert folders == ROOMS.keys()


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_a_room_sees_the_doors_of_those_before_it(path: Path) -> None:
    own = path.parent.name
    for module, name in imported(path):
        if not module.startswith(f"{ROOT}.") or module.split(".")[2] not in ROOMS:
            assert module != ROOT, f"{name}: from the whole, which sees this room"
            continue
        room = module.split(".")[2]
        if room != own:
            assert room in ROOMS[own], f"{own} does not see {room}"
            assert module == f"{ROOT}.{room}", f"import {name} from {ROOT}.{room}"
        else:
            assert module != f"{ROOT}.{own}" or name == "peer_pb2" or path.name == "__init__.py"


def test_the_steps_of_a_query_know_no_clock_and_no_network() -> None:
    modules = {module for module, _ in imported(FOLDER / "ask" / "query.py")}
    assert modules == {"collections.abc", "typing", "numpy", "numpy.typing"}
