"""Recipes that come with the package: found by name, complete on their page, in the wheel."""

import re
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from nmoe_flower import cli, recipes
from nmoe_flower import running as run_module
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.recipes import find_recipe, packaged_recipes

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.toml"))


def test_every_recipe_has_a_name_and_a_title() -> None:
    found = packaged_recipes()
    assert [recipe.name for recipe in found] == NAMES
    for recipe in found:
        assert len(recipe.title) > 20
        assert recipe.path.read_text(encoding="utf-8").startswith(f"# {recipe.title}")


def test_the_page_of_the_recipes_has_their_titles() -> None:
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \| .* \|$", page, flags=re.MULTILINE))
    assert rows == {recipe.name: recipe.title for recipe in packaged_recipes()}


def test_the_wheel_takes_them_and_nothing_else_from_beside_the_package(tmp_path: Path) -> None:
    """scripts/build holds that what is installed has them."""
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as file:
        taken = {name for name in file.namelist() if ".dist-info/" not in name}
    assert {name for name in taken if name.startswith("nmoe_flower/experiments/")} == {
        f"nmoe_flower/experiments/{name}.toml" for name in NAMES
    }
    assert {name.partition("/")[0] for name in taken} == {"nmoe_flower"}
    assert not (ROOT / "nmoe_flower" / "experiments").exists()


def test_a_name_is_found_and_a_file_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("cifar10-quick").name == "cifar10-quick.toml"
    assert find_recipe("missing.toml") == Path("missing.toml")  # read, and refused, later
    (tmp_path / "cifar10-quick").write_text("", encoding="utf-8")
    assert find_recipe("cifar10-quick") == Path("cifar10-quick")


def test_an_unknown_name_is_told_which_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no recipe of that name; recipes: cifar10, "):
        find_recipe("cifar")
    monkeypatch.setattr(recipes, "_PLACES", ())
    with pytest.raises(ConfigError, match="none, in this installation"):
        find_recipe("cifar10")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_them_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", name]) == 0
    told = capsys.readouterr().out
    assert 'dataset = "uoft-cs/cifar10"' in told
    assert Config.load(find_recipe(name)).run.name == "nmoe"  # so that the folder has its name
    assert run_module._name_of(find_recipe(name)) == name


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert cli.main(["recipes", "--paths"]) == 0
    assert all(Path(line).is_file() for line in capsys.readouterr().out.splitlines())
