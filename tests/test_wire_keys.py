"""A key that one side of the wire writes and another reads is spelled in records.py alone."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nmoe_flower"
SIDES = {
    "server": ("strategies", "pipeline"),
    "client": ("clients",),
    "engine": ("engine",),
}

# Words that stand on both sides for two different things, neither of which travels.
OTHER = {
    "classes": "of a node's config; of results.json",
    "extractor": "a part of a network; a column of results.json, a stage",
    "gate": "a part of a network; a column of results.json",
    "head": "a part of a network; a stage",
    "kept": "rows that are not held out; rounds with a checkpoint",
    "latents": "a client's own group of arrays; a value of expert.sharing",
    "local": "a test, a gate; a Ray of one's own",
    "partition": "of a device's note; of a line of rounds.jsonl",
    "round": "of a ledger; of a line of rounds.jsonl",
    "rounds": "of a ledger; of a line of rounds.jsonl",
    "steps": "of a ledger; of an optimizer's state",
    "train": "a split of images; a table of results.json",
}


def texts(node: ast.expr, names: dict[str, ast.expr]) -> Iterator[str]:
    """The literal texts of an expression; a name stands for the constant it is given."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from texts(part, names)
    elif isinstance(node, ast.BinOp):
        yield from texts(node.left, names)
        yield from texts(node.right, names)
    elif isinstance(node, ast.Name) and node.id in names:
        yield from texts(names[node.id], {})
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for item in node.elts:
            yield from texts(item, names)


def constants(tree: ast.Module) -> dict[str, ast.expr]:
    """What the names of a module's own constants stand for."""
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id != "__all__":
                    found[target.id] = node.value
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    for name, value in zip(target.elts, node.value.elts, strict=True):
                        if isinstance(name, ast.Name):
                            found[name.id] = value
    return found


READING = {"get", "pop", "startswith", "endswith", "removeprefix", "part_of", "part"}


def written(tree: ast.Module) -> Iterator[ast.expr]:
    """Expressions that name what is put into a mapping."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from (key for key in node.keys if key is not None)
        elif isinstance(node, ast.DictComp):
            yield node.key
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            yield node.slice


def read(tree: ast.Module) -> Iterator[ast.expr]:
    """Expressions that name what is taken from a mapping, or looked for in its names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            yield node.slice
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            yield node.left
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name in READING:
                yield from node.args
    yield from constants(tree).values()


def keys(expressions: Iterator[ast.expr], names: dict[str, ast.expr]) -> set[str]:
    """The words of all keys: ``gate/federated`` has two, ``accuracy-`` one."""
    found = {word.strip("-.") for one in expressions for text in texts(one, names)
             for word in text.split("/")}  # fmt: skip
    return found - {""}


def leaks(package: Path) -> dict[str, list[str]]:
    """Keys that one side writes and another reads, with the files that spell them."""
    writers: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    readers: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for side, rooms in SIDES.items():
        for path in sorted(file for room in rooms for file in (package / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names, file = constants(tree), str(path.relative_to(package))
            for key in keys(written(tree), names):
                writers[key][side].add(file)
            for key in keys(read(tree), names):
                readers[key][side].add(file)
    found = {}
    for key in writers.keys() & readers.keys():
        if any(one != other for one in writers[key] for other in readers[key]):
            spelled = [*writers[key].values(), *readers[key].values()]
            found[key] = sorted(set[str]().union(*spelled))
    return found


def test_no_key_is_spelled_on_both_sides_of_the_wire() -> None:
    found = leaks(PACKAGE)
    spelled = {key: files for key, files in found.items() if key not in OTHER}
    assert spelled == {}, "spell these in records.py, once"
    assert OTHER.keys() <= found.keys(), "these need no exception any more"


WRITES = [
    'metrics = {"some-key": 1}',
    'metrics = {f"some-key-{name}": 1 for name in names}',
    'metrics["some-key"] = 1',
    'KEY = "some-key"\nmetrics[KEY] = 1',
    'KEY, OTHER = "some-key", "other"\nmetrics = {KEY: 1}',
    'arrays = {"some-key/" + name: 1}',
]
READS = [
    'value = metrics["some-key"]',
    'value = metrics.get("some-key", 0)',
    'KEY = "some-key"\nvalue = metrics[KEY]',
    'KEYS = ("some-key", "other")',
    'found = "some-key" in metrics',
    'part = part_of(arrays, "some-key/")',
    'found = name.startswith("some-key/")',
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("read", READS)
def test_the_walk_finds_a_key_however_it_is_spelled(write: str, read: str, tmp_path: Path) -> None:
    """The check above would pass on an empty set."""
    for room, text in (("clients", write), ("pipeline", read), ("strategies", "")):
        (tmp_path / room).mkdir()
        (tmp_path / room / "module.py").write_text(text)
    assert leaks(tmp_path) == {"some-key": ["clients/module.py", "pipeline/module.py"]}
    (tmp_path / "pipeline/module.py").write_text(read.replace("some-key", "own"))
    assert leaks(tmp_path) == {}
