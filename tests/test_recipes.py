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
from nmoe_flower.recipes import find_recipe, find_study, packaged_recipes, packaged_studies
from nmoe_flower.study import Study

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "experiments").glob("*.toml"), key=lambda path: path.stem)
STUDIES = [
    path.stem for path in FILES if re.search(r"^title *=", path.read_text().split("\n[")[0], re.M)
]
NAMES = [path.stem for path in FILES if path.stem not in STUDIES]
STUDY = 'title = "Two seeds of the digits"\nseeds = [0, 1]\n'


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
        f"nmoe_flower/experiments/{path.name}" for path in FILES
    }
    assert {name.partition("/")[0] for name in taken} == {"nmoe_flower"}
    assert not (ROOT / "nmoe_flower" / "experiments").exists()
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"^\| `wheel/` in each folder \| ([\d.]+) MB \|", page, re.MULTILINE)
    assert abs(Path(wheel).stat().st_size / 1e6 / float(told) - 1) < 0.2


def test_a_name_is_found_and_a_file_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("cifar10-quick").name == "cifar10-quick.toml"
    assert find_recipe("missing.toml") == Path("missing.toml")  # read, and refused, later
    (tmp_path / "cifar10-quick").write_text("", encoding="utf-8")
    assert find_recipe("cifar10-quick") == Path("cifar10-quick")
    (tmp_path / "text-domains").mkdir()  # the texts of the study, which stand where it is run
    assert find_study("text-domains").name == "text-domains.toml"


def test_an_unknown_name_is_told_which_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no recipe of that name; did you mean cifar10\?"):
        find_recipe("cifar")
    with pytest.raises(ConfigError, match="no recipe of that name; recipes: cifar10, "):
        find_recipe("mnist")
    monkeypatch.setattr(recipes, "_PLACES", ())
    with pytest.raises(ConfigError, match="none, in this installation"):
        find_recipe("cifar10")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_them_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", name]) == 0
    told = capsys.readouterr().out
    config = Config.load(find_recipe(name))
    assert f'dataset = "{config.data.dataset}"' in told
    assert config.data.dataset == ("./texts" if config.data.kind == "text" else "uoft-cs/cifar10")
    assert config.run.name == "nmoe"  # so that the folder has its name
    assert run_module._name_of(find_recipe(name)) == name


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    told = capsys.readouterr().out
    recipes, _, studies = told.partition("\nstudies")
    assert [line.split()[0] for line in recipes.splitlines()] == NAMES
    assert [line.split()[0] for line in studies.splitlines()[1:]] == STUDIES
    assert cli.main(["recipes", "--paths"]) == 0
    assert all(Path(line).is_file() for line in capsys.readouterr().out.splitlines())


# --- studies ---


def test_every_study_is_one() -> None:
    assert [study.name for study in packaged_studies()] == STUDIES
    for study in packaged_studies():
        assert Study.load(find_study(study.name)).title == study.title


def test_the_page_of_the_recipes_has_the_studies_titles() -> None:
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]*) \|$", page, flags=re.MULTILINE))
    assert rows == {study.name: study.title for study in packaged_studies()}


def test_a_study_is_no_recipe_and_a_recipe_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says what it is, and what to type instead, by its name and by its path."""
    (tmp_path / "digits-study.toml").write_text(STUDY)
    (tmp_path / "plain.toml").write_text("# A recipe\n[data]\ntau = 0.5\n")
    monkeypatch.setattr(recipes, "_PLACES", (tmp_path,))
    assert [one.name for one in packaged_recipes()] == ["plain"]
    assert [(one.name, one.title) for one in packaged_studies()] == [
        ("digits-study", "Two seeds of the digits")
    ]
    with pytest.raises(ConfigError, match="is a study: nmoe study run digits-study"):
        find_recipe("digits-study")
    with pytest.raises(ConfigError, match="is a recipe: nmoe run plain"):
        find_study("plain")
    with pytest.raises(ConfigError, match="no study of that name; studies: digits-study"):
        find_study("else")
    with pytest.raises(ConfigError, match="is a study, not a recipe: nmoe study run"):
        Config.load(tmp_path / "digits-study.toml")
    with pytest.raises(ConfigError, match="it is a recipe: nmoe run"):
        Study.load(tmp_path / "plain.toml")


@pytest.mark.parametrize("command", ["run", "config", "partition"])
def test_commands_that_take_recipes_say_that_it_is_a_study(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digits-study.toml"
    path.write_text(STUDY)
    assert cli.main([command, str(path)]) == 1
    assert "is a study, not a recipe: nmoe study run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["cifar10 quick", "experiments/cifar10-quik.toml", "Cifar10 Quick", "./cifar10-quick"]
)
def test_a_file_that_is_not_there_and_almost_a_recipe_is_told_which(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*; did you mean cifar10-quick\?"):
        find_recipe(name)
