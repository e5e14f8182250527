"""Rooms see each other only through their __init__, nothing goes in circles, a name is one idea.

A room is a folder with an __init__. Each check is tried on a made-up package, too: one that could
not fail would hold nothing.
"""

import ast
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAME = "nmoe_flower"

# Modules that a room shows as they are, because each is a namespace: flower.HOME.
SHOWN = {
    "engine": {"flower", "processes"},  # all that Flower keeps to itself; processes by their marks
    "inference.protocol": {"peer_pb2"},  # the generated messages
    "report": {"canvas"},  # the look of all figures
}  # fmt: skip

# Stems that stand twice, because they are sides of one idea; beside those of cli/, whose files are
# named as the commands are typed, and of config/, whose files are named as the sections.
IDEAS = {
    "ask": "one question to many: to clients in training, to peers in inference",
    "alignment": "the second system: strategy, client, model, figures",
    "control": "yardsticks without a mixture: stage, client",
    "dp_sgd": "private steps: what a client takes, what they cost",
    "evaluate": "the last stage: what the server asks, what a client measures",
    "expert": "the network of a client: model, stage, client",
    "extractor": "the shared network: model, stage",
    "fedce": "FedCE: strategy, client",
    "fedsc": "FedSC: strategy, client",
    "figures": "what is drawn: of runs, of a study",
    "gate": "who is asked: model, stage, client",
    "head": "the classifier of all: stage, client",
    "language": "the system of adapters: model, device, client, stages",
    "policies": "who trains which experts: decided, tabulated",
    "rows": "what was measured: of a run, of a study",
    "sums": "sums over latents: arithmetic, stage, client",
    "tables": "what is tabulated: of runs, of a study",
    "run": "a run in progress, and the runs of a study",
    "representation": "how good features are: measured, drawn",
}
TYPED = {"cli", "config"}


# --- reading ---


class Running(ast.NodeTransformer):
    """Takes out what is there for type checkers alone."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


class Package:
    """The modules of a package, and who imports what."""

    def __init__(self, root: Path, name: str = NAME) -> None:
        self.name = name
        self.root = root
        self.paths = {
            ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
            for path in sorted((root / name).rglob("*.py"))
        }
        self.rooms = {module for module, path in self.paths.items() if path.stem == "__init__"}

    @cache  # noqa: B019 - a package is read once per test run
    def imports(self, module: str, *, for_types: bool = True) -> list[str]:
        """Full names of what a module imports of this package, inside functions too.

        Without ``for_types`` only what runs: nothing under ``if TYPE_CHECKING``.
        """
        found = []
        tree = ast.parse(self.paths[module].read_text(encoding="utf-8"))
        if not for_types:
            tree = Running().visit(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [f"{node.module}.{alias.name}" for alias in node.names]
        return [name for name in found if name.partition(".")[0] == self.name]

    def owner(self, full: str) -> str:
        """The module that an imported name is, or is of: a room may have a name of its own for it,
        as ``alignment.desirability``, which is a module and its function."""
        room, _, name = full.rpartition(".")
        taken = self.imports(room) if room in self.rooms else []
        if full in self.paths and f"{full}.{name}" not in taken:
            return full
        return room


def past_the_door(package: Package, shown: Mapping[str, set[str]]) -> list[str]:
    """Imports of a room's module from outside the room."""
    found = []
    for module in package.paths:
        for full in package.imports(module):
            owner = package.owner(full)
            room, _, name = owner.rpartition(".")
            inside = module == room or module.startswith(f"{room}.")
            if owner in package.rooms or room == package.name or inside:
                continue
            if full != owner or name not in shown.get(room.removeprefix(f"{package.name}."), ()):
                found.append(f"{module} imports {full}")
    return sorted(set(found))


def circle(package: Package) -> list[str]:
    """Modules that import each other in a circle, or nothing."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for full in package.imports(module, for_types=False):
            owner = package.owner(full)
            if owner != module and (found := walk(owner, [*way, module])):
                return found
        done.add(module)
        return []

    return next((found for module in package.paths if (found := walk(module, []))), [])


def names_twice(package: Package, ideas: Mapping[str, str], typed: set[str]) -> list[str]:
    """Stems of more than one file that are no idea of the list; and ideas that stand once.

    A file called like its own room is the middle of that room.
    """
    stems: dict[str, list[str]] = defaultdict(list)
    for module, path in package.paths.items():
        own = module.split(".")[-2:-1]
        if path.stem not in ("__init__", *own) and module.split(".")[1] not in typed:
            stems[path.stem].append(module)
    for room in package.rooms - {package.name}:
        if room.rpartition(".")[2] in stems:
            stems[room.rpartition(".")[2]].append(room)
    twice = {stem: sorted(modules) for stem, modules in stems.items() if len(modules) > 1}
    return [
        f"{stem}: {', '.join(sorted(twice[stem]))}" for stem in sorted(twice.keys() - ideas)
    ] + [f"{stem} stands once" for stem in sorted(ideas.keys() - twice)]


# --- the package ---


@pytest.fixture(scope="module")
def package() -> Package:
    return Package(ROOT)


def test_rooms_are_entered_by_the_door(package: Package) -> None:
    assert past_the_door(package, SHOWN) == []


def test_what_a_room_shows_as_a_module_is_there_and_taken(package: Package) -> None:
    taken = {name for module in package.paths for name in package.imports(module)}
    for room, names in SHOWN.items():
        for name in names:
            assert f"{NAME}.{room}.{name}" in taken & package.paths.keys(), f"{room}.{name}"


def test_nothing_imports_in_a_circle(package: Package) -> None:
    assert circle(package) == []


def test_a_stem_is_one_idea(package: Package) -> None:
    assert names_twice(package, IDEAS, TYPED) == []


def test_parts_beside_the_package_are_no_part_of_it(package: Package) -> None:
    """The package knows neither benchmarks nor what publishes results; these know it."""
    for module, path in package.paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            beside = {name.partition(".")[0] for name in names} & {"benchmarks", "experiments"}
            assert not beside, f"{module} imports {beside}"


# --- made-up packages: every check finds its violation, and only that ---

GOOD = {
    "pkg/__init__.py": "",
    "pkg/errors.py": "",
    "pkg/config/__init__.py": "from pkg.config.whole import Config\n",
    "pkg/config/whole.py": "from pkg.errors import X\nfrom pkg.config.gate import Gate\n",
    "pkg/config/gate.py": "",
    "pkg/models/__init__.py": "from pkg.models.gate import Gate\nimport pkg.models.models\n",
    "pkg/models/gate.py": "from pkg.config import Config\n",
    "pkg/clients/__init__.py": "",
    "pkg/clients/gate.py": "from pkg.models import Gate\n",
    "pkg/clients/device/__init__.py": "from pkg.clients.device.store import Store\n",
    "pkg/clients/device/store.py": "from pkg.clients.gate import train\n",
    "pkg/models/models.py": "if TYPE_CHECKING:\n    from pkg.models import Gate\n",
    "pkg/app.py": "from pkg.clients import gate\nfrom pkg.clients.device import Store\n",
}
DOORS = {"clients": {"gate"}}
SIDES = {"gate": "of the test"}
Check = Callable[[Package], Sequence[str]]
CHECKS: dict[str, Check] = {
    "door": lambda package: past_the_door(package, DOORS),
    "circle": circle,
    "twice": lambda package: names_twice(package, SIDES, {"config"}),
}


def made_up(folder: Path, changes: Mapping[str, str]) -> Package:
    for name, text in {**GOOD, **changes}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Package(folder, "pkg")


@pytest.mark.parametrize(
    ("check", "changes", "told"),
    [
        ("door", {"pkg/app.py": "from pkg.models.gate import Gate\n"},
         "pkg.app imports pkg.models.gate.Gate"),
        ("door", {"pkg/app.py": "from pkg.models import gate\n"},
         "pkg.app imports pkg.models.gate"),
        ("door", {"pkg/app.py": "def f():\n    import pkg.config.whole\n"},
         "pkg.app imports pkg.config.whole"),
        ("door", {"pkg/clients/gate.py": "from pkg.clients.device.store import Store\n",
                  "pkg/clients/device/store.py": ""}, "pkg.clients.gate imports"),
        ("door", {"pkg/app.py": "from pkg.clients.gate import train\n"}, "pkg.clients.gate.train"),
        ("circle", {"pkg/errors.py": "from pkg.config import Config\n"}, "pkg.errors"),
        ("circle", {"pkg/config/gate.py": "def f():\n    from pkg.config.whole import Config\n"},
         "pkg.config.gate"),
        ("circle", {"pkg/errors.py": "if TYPE_CHECKING:\n    import pkg.app\nimport pkg.config\n"},
         "pkg.config"),
        ("twice", {"pkg/data/__init__.py": "", "pkg/data/errors.py": ""},
         "errors: pkg.data.errors, pkg.errors"),
        ("twice", {"pkg/models/device.py": ""}, "device: pkg.clients.device, pkg.models.device"),
        ("twice", {"pkg/x/__init__.py": "", "pkg/x/store.py": ""},
         "store: pkg.clients.device.store, pkg.x.store"),
    ],
)  # fmt: skip
def test_a_violation_is_found_by_its_check_alone(
    check: str, changes: dict[str, str], told: str, tmp_path: Path
) -> None:
    package = made_up(tmp_path, changes)
    found = {name: one(package) for name, one in CHECKS.items()}
    assert told in " ".join(found.pop(check))
    assert not any(found.values()), found


def test_a_good_package_passes_every_check(tmp_path: Path) -> None:
    package = made_up(tmp_path, {})
    assert {name: one(package) for name, one in CHECKS.items()} == {name: [] for name in CHECKS}


def test_an_idea_that_stands_once_is_told(tmp_path: Path) -> None:
    package = made_up(tmp_path, {"pkg/clients/gate.py": ""})
    assert names_twice(package, {**SIDES, "store": ""}, {"config"}) == ["store stands once"]
