"""The bundle that ``flwr run .`` sends and ``flwr app publish`` uploads; no network is needed."""

import re
import sys
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower.engine import export_app, flower
from nmoe_flower.errors import EngineError

sys.path.insert(0, str(Path(__file__).parent))
from flower_app import ROOT, clean_copy

pytestmark = pytest.mark.flower

MEGABYTE = 1_000_000
COMMANDS = (
    "nmoe_flower/cli/", "nmoe_flower/deploy/", "nmoe_flower/inference/",
    "nmoe_flower/report/html/", "nmoe_flower/study/",
)  # fmt: skip
SUFFIXES = {".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean_copy(tmp_path_factory.mktemp("clone") / "nmoe-flower")


@pytest.fixture(scope="module")
def bundle(checkout: Path) -> bytes:
    return flower.build_fab(checkout)


@pytest.fixture(scope="module")
def content(bundle: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(bundle)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_bundle_is_small_and_within_the_limits_of_the_hub(
    bundle: bytes, content: dict[str, bytes]
) -> None:
    assert len(bundle) < 3 * MEGABYTE  # the hub takes ten; every device fetches it
    assert len(content) <= 1000
    assert max(map(len, content.values())) <= MEGABYTE
    assert max(name.count("/") + 1 for name in content) <= 10
    strange = {name for name in content if Path(name).suffix not in SUFFIXES}
    assert strange == {"LICENSE", ".info/CONTENT"}
    for name, data in content.items():
        assert data.decode("utf-8") is not None, name


def test_the_name_is_one_that_flower_takes() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    name, description = project["name"], project["description"]
    assert len(name) <= 32
    assert name.replace("-", "").isalnum()
    assert name[0].isalpha()
    assert 0 < len(description) <= 200


def test_the_bundle_holds_the_package_and_nothing_else(content: dict[str, bytes]) -> None:
    """Every module an app can reach, or a client would miss one; no results, tests or pages.

    Commands, and what they alone use, are typed where the whole package is installed; peers are
    served there, too. The package's own names say where all of them are.
    """
    others = {name for name in content if not name.startswith("nmoe_flower/")}
    assert others == {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "nmoe_flower").rglob("*.py")}
    left_out = modules - content.keys()
    assert left_out == {name for name in modules if name.startswith(COMMANDS)}
    for name in modules - left_out - {"nmoe_flower/__init__.py"}:
        text = (ROOT / name).read_text("utf-8")
        for room in COMMANDS:
            module = re.escape(room.strip("/").replace("/", "."))
            assert not re.search(rf"{module}\b", text), (name, room)


def test_what_the_package_reads_of_itself_is_in_the_bundle(content: dict[str, bytes]) -> None:
    """Package data with a suffix that Flower leaves out would be missing under ``flwr run``."""
    source = {"py.typed"}  # for those who build, not who run
    for path in (ROOT / "nmoe_flower").rglob("*"):
        if (
            path.is_file()
            and not str(path.relative_to(ROOT)).startswith(COMMANDS)
            and "__pycache__" not in path.parts
            and path.name not in source
        ):
            assert str(path.relative_to(ROOT)) in content


def test_the_exported_app_can_be_published_and_bundles_to_the_same(
    checkout: Path, bundle: bytes, tmp_path: Path
) -> None:
    folder = export_app(checkout, tmp_path / "nmoe-flower")
    assert flower.build_fab(folder) == bundle
    assert folder / "nmoe_flower" / "server_app.py" in flower.hub_files(folder)


def test_a_folder_that_holds_something_is_not_written_to(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(EngineError, match=r"holds something already"):
        export_app(checkout, tmp_path)


def test_a_name_the_hub_would_refuse_is_named(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Flower Hub would refuse .*my_app"):
        export_app(checkout, tmp_path / "my_app")


def test_what_flower_cannot_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Flower cannot bundle .*pyproject\.toml not found"):
        flower.build_fab(tmp_path)
