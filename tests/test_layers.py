"""Who may import whom. A new module must be given its place here."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nmoe_flower"
TESTS = sorted(Path(__file__).parent.rglob("*.py"))
BESIDE = [
    path
    for folder in ("benchmarks", "experiments")
    for path in sorted((PACKAGE.parent / folder).rglob("*.py"))
]

# Lower rows are seen by all rows above them; parts of one row do not see each other.
ROWS = [
    {"errors"},
    {
        "addresses",
        "backbone_files",
        "catalogue",
        "cohorts",
        "installation",
        "machine",
        "on_demand",
        "plurals",
        "own_code",
        "recipes",
        "seeds",
        "schedules",
        "sums",
        "codec",
        "commands",
        "files",
    },
    {"begun"},
    {"arguments", "certificates", "config", "nearest", "records", "rendezvous"},
    {"checkpoint", "lock", "provenance"},
    {
        "data",
        "models",
        "losses",
        "privacy",
        "metrics",
        "text_metrics",
        "representation",
        "shortlists",
        "alignment",
    },
    {"training"},
    {"engine", "backbone"},
    {"clients", "strategies", "inference"},
    {"baselines"},
    {"pipeline"},
    {"results", "progress", "rehearsal"},
    {"client_app", "report", "running_data", "tracking", "trained"},
    {"summary"},
    {"server_app"},
    {"deploy", "running"},
    {"membership"},
    {"study"},
    {"cli"},
]
ROW = {part: row for row, parts in enumerate(ROWS) for part in parts}
FLOWER = {
    "codec", "records", "engine", "strategies", "clients", "baselines", "pipeline",
    "server_app", "client_app",
}  # fmt: skip
# What a server must not load: it aggregates with NumPy.
NO_TORCH = ("errors", "config", "seeds", "schedules", "files", "checkpoint", "results",
            "strategies", "baselines", "pipeline", "server_app", "engine", "privacy", "alignment",
            "nearest", "representation")  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def part_of(path: Path) -> str:
    """``data`` for data/partition.py; ``""`` for the package's own __init__.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py").replace("__init__", "")


def imported(path: Path) -> set[str]:
    """Every module a file imports, inside functions too; relative imports are not used at all."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts_seen(names: set[str]) -> set[str]:
    seen = {name.split(".")[1] for name in names if name.startswith("nmoe_flower.")}
    return {
        part for part in seen if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
    }


def upward(own: str, seen: set[str]) -> list[str]:
    """Parts that stand beside or above the part that imports them."""
    return sorted(part for part in seen - {own} if ROW[part] >= ROW[own])


def test_every_part_has_its_place() -> None:
    parts = {part_of(path) for path in modules()} - {""}
    assert parts <= ROW.keys()
    assert sum(map(len, ROWS)) == len(ROW)


@pytest.fixture(scope="module")
def imports() -> dict[Path, set[str]]:
    """What each file imports; files are many, and each is parsed once."""
    return {path: imported(path) for path in [*modules(), *BESIDE, *TESTS]}


def test_imports_point_down(imports: dict[Path, set[str]]) -> None:
    wrong = {}
    for path in modules():
        own = part_of(path)  # of the package's own names tests/test_face.py tells
        if own and (found := upward(own, parts_seen(imports[path]))):
            wrong[relative(path)] = found
    assert wrong == {}


def test_flower_and_its_data_sets_are_imported_where_they_belong(
    imports: dict[Path, set[str]],
) -> None:
    homes = {"flwr": FLOWER, "flwr_datasets": {"data"}, "datasets": {"data"}, "pickle": {"engine"}}
    wrong = {}
    for path in modules():
        roots = {name.split(".")[0] for name in imports[path]}
        if found := [root for root in homes.keys() & roots if part_of(path) not in homes[root]]:
            wrong[relative(path)] = found
    assert wrong == {}


PRIVATE = re.compile(r"flwr\.(?!app\b|clientapp\b|serverapp\b)\w+")
FLAGS = re.compile(r"FLWR_[A-Z]|(flower-super\w+|\bflwr) [^\n]*--[a-z]|_(message_id|src_node_id)\b")


def literals(path: Path) -> list[str]:
    """Every text in a file but its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    spoken = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    texts = [node.value for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and id(node) not in spoken]  # fmt: skip
    return [text for text in texts if isinstance(text, str)]


def test_what_flower_keeps_to_itself_is_touched_in_one_file(
    imports: dict[Path, set[str]],
) -> None:
    """Its private modules, its programs' flags, its variables: all in engine/flower.py."""
    wrong = {}
    for path in imports.keys() - {PACKAGE / "engine" / "flower.py"}:
        found = sorted(name for name in imports[path] if PRIVATE.match(name))
        if path.is_relative_to(PACKAGE):
            found += [text for text in literals(path) if FLAGS.search(text)]
        if found:
            wrong[relative(path)] = found
    assert wrong == {}, "import these from nmoe_flower.engine.flower"


def test_the_walk_sees_imports() -> None:
    """The checks above would pass on an empty set."""
    known = PACKAGE / "engine" / "flower.py"
    assert {"flwr.common.log", "flwr.supercore.run.Run"} <= {
        name for name in imported(known) if PRIVATE.match(name)
    }
    assert len([text for text in literals(known) if FLAGS.search(text)]) > 10
    assert {"engine", "records", "errors"} <= parts_seen(
        imported(PACKAGE / "strategies" / "base.py")
    )
    assert "data" in parts_seen(imported(PACKAGE / "clients" / "device" / "device.py"))
    assert "flwr.serverapp.Grid" in imported(PACKAGE / "server_app.py")


def test_made_up_imports_would_be_found(tmp_path: Path) -> None:
    assert upward("data", {"data", "errors", "models", "pipeline"}) == ["models", "pipeline"]
    assert upward("pipeline", {"clients", "engine"}) == []
    made_up = tmp_path / "made_up.py"
    made_up.write_text(
        "def late():\n    from nmoe_flower.cli import main\n    import flwr.common.logger\n"
        "FLAG = 'flower-"
        "superlink --in"
        "secure'\n"
    )
    assert parts_seen(imported(made_up)) == {"cli"}
    assert [name for name in imported(made_up) if PRIVATE.match(name)] == ["flwr.common.logger"]
    assert [text for text in literals(made_up) if FLAGS.search(text)] != []
    made_up.write_text("from . import errors\n")
    with pytest.raises(AssertionError, match="relative import"):
        imported(made_up)


HEAVY = {"torch", "torchvision", "datasets", "flwr_datasets", "ray", "sklearn", "pandas",
         "matplotlib"}  # fmt: skip
LOADED = """
import importlib, json, sys
for part in sys.argv[1:]:
    before = {*sys.modules}
    importlib.import_module(f"nmoe_flower.{part}")
    print(json.dumps(sorted({*sys.modules} - before)))
"""


def loaded(*parts: str) -> dict[str, set[str]]:
    """What each part loads that those before it have not, in one new process."""
    command = [sys.executable, "-c", LOADED, *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(parts, map(set, map(json.loads, done.stdout.splitlines())), strict=True))


def test_servers_load_nothing_heavy() -> None:
    found = loaded(*NO_TORCH, "models")
    assert {part: found[part] & HEAVY for part in NO_TORCH} == {part: set() for part in NO_TORCH}
    assert "torch" in found["models"]  # what loads it is seen
