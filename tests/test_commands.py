"""What a text tells a reader to type does what it says, whatever the paths."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nmoe_flower.commands import command_line
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, NMoEError
from nmoe_flower.report.runs import load_runs
from nmoe_flower.results import RunFolder

PACKAGE = Path(__file__).parents[1] / "nmoe_flower"
TYPED = re.compile(r"(\bnmoe [a-z][a-z -]*|--(resume|out|store|runs)|\bchmod [0-7]+) +$")


def glued(path: Path) -> Iterator[str]:
    """F-strings in which a value follows a command as it is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.JoinedStr):
            continue
        for before, value in zip(node.values, node.values[1:], strict=False):
            text = before.value if isinstance(before, ast.Constant) else ""
            if isinstance(value, ast.FormattedValue) and TYPED.search(str(text)):
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def abbreviating(path: Path) -> Iterator[str]:
    """Parsers that would take ``--see`` for ``--seed``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser"):
            told = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if told.get("allow_abbrev") != "False":
                yield f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("folder", ["nmoe_flower", "benchmarks", "experiments", "scripts"])
def test_options_are_named_in_full(folder: str) -> None:
    paths = sorted((PACKAGE.parent / folder).rglob("*.py"))
    assert paths
    assert [line for path in paths for line in abbreviating(path)] == []


def test_every_command_in_a_text_is_put_together_by_one_function() -> None:
    found = [line for path in PACKAGE.rglob("*.py") for line in glued(path)]
    assert found == []


@pytest.mark.parametrize("name", ["plain", "two words", "it's", "$HOME", "a;b", "*"])
def test_what_is_typed_is_read_as_it_was_meant(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert shlex.split(command_line("nmoe", "run", "--resume", path)) == [
        "nmoe", "run", "--resume", str(path),
    ]  # fmt: skip
    folder = RunFolder.create(path, Config())
    typed = shlex.quote(str(path))
    with pytest.raises(NMoEError) as raised:
        load_runs([path])
    assert str(raised.value).endswith(f"finish it with nmoe run --resume {typed}")
    folder.write_results({"rows": []})
    with pytest.raises(ConfigError) as taken:
        RunFolder.check_free(path)
    assert f"continue it with nmoe run --resume {typed}, delete it" in str(taken.value)
