"""``import nmoe_flower as nmoe``: the names are there, typed; nothing is loaded before its use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nmoe_flower

SOURCE = Path(nmoe_flower.__file__).read_text(encoding="utf-8")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_import_loads_nothing_of_ours_and_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import nmoe_flower\n"
        "new = set(sys.modules) - before\n"
        "print(sorted(n for n in new if n.startswith('nmoe_flower.')), {'torch', 'numpy', 'flwr',"
        " 'pydantic', 'rich'} & new)"
    )
    assert python(code) == "[] set()"


@pytest.mark.parametrize("name", nmoe_flower.__all__)
def test_every_name_is_what_its_home_calls_it(name: str) -> None:
    value = getattr(nmoe_flower, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(nmoe_flower)


def test_type_checkers_and_programs_are_told_the_same_homes() -> None:
    block = next(node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    typed = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {(home, name) for home, names in nmoe_flower._HOMES.items() for name in names}
    assert typed == homes
    assert sorted(name for _, name in homes) == sorted(nmoe_flower.__all__)


def test_modules_are_found_beside_the_names() -> None:
    code = (
        "import nmoe_flower as nmoe; from nmoe_flower import records; import nmoe_flower.alignment;"
        "print(nmoe.align is nmoe.alignment.align, records.__name__)"
    )
    assert python(code) == "True nmoe_flower.records"


def test_a_name_that_is_not_there_is_refused_as_python_does_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        nmoe_flower.fly  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'fly'"):
        exec("from nmoe_flower import fly")


def test_a_server_uses_strategies_without_torch() -> None:
    code = (
        "import sys, nmoe_flower as nmoe; nmoe.FedCE, nmoe.StreamingGrid, nmoe.Config, "
        "nmoe.epsilon_spent; print('torch' in sys.modules)"
    )
    assert python(code) == "False"
