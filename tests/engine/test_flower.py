"""Which Flower is known, what an unknown one is told, and what its programs understand."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nmoe_flower.engine import flower
from nmoe_flower.errors import EngineError

pytestmark = pytest.mark.flower


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(flower.ANY_VERSION, raising=False)


@pytest.mark.parametrize("version", ["1.41.0", "1.42.0", "1.42.7", "1.42.0rc1"])
def test_known_versions_are_taken(version: str) -> None:
    flower.check_version(version)


@pytest.mark.parametrize(
    "version", ["1.43.0", "1.40.2", "2.0.0", "1.4.1", "1.430.0", "unknown", ""]
)
def test_an_unknown_version_is_refused_with_both_and_what_to_install(version: str) -> None:
    with pytest.raises(EngineError) as caught:
        flower.check_version(version)
    text = str(caught.value)
    assert f"Flower {version} is installed" in text
    assert "Flower 1.41 and 1.42" in text
    assert "pip install 'flwr>=1.41.0,<1.43'" in text
    assert "\n" not in text


def test_an_unknown_version_can_be_tried_but_not_one_that_misses_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(flower.ANY_VERSION, "1")
    flower.check_version("1.43.0")
    with pytest.raises(EngineError, match=r"1\.43\.0 .*misses something \(no run\.py\)"):
        flower.check_version("1.43.0", missing=ImportError("no run.py"))


def test_pip_is_told_the_same_versions() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    needs = project["project"]["dependencies"]
    needs += project["project"]["optional-dependencies"]["simulation"]
    flwr = [need.replace("[simulation]", "") for need in needs if need.startswith("flwr")]
    assert flwr == [flower.requirement()] * 2
    oldest = f"{flower.KNOWN_VERSIONS[0]}.0"
    assert project["tool"]["flwr"]["app"]["flwr-version-target"] == oldest


def test_the_page_says_the_same() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/flower-versions.md").read_text("utf-8")
    with pytest.raises(EngineError) as caught:
        flower.check_version("1.43.0")
    assert str(caught.value) in page
    assert f"| {', '.join(flower.KNOWN_VERSIONS)} | known" in page


def test_the_installed_version_is_known() -> None:
    flower.check_version(flower.installed_version())


@pytest.mark.parametrize("broken", [False, True], ids=["all there", "a module gone"])
def test_a_command_with_an_unknown_flower_ends_with_one_line(tmp_path: Path, broken: bool) -> None:
    """A Flower of the future: its metadata say 1.97.0, and it may have moved a private module."""
    known = tmp_path / "flwr-1.97.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: flwr\nVersion: 1.97.0\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import flwr.serverapp, flwr.supercore.task_identity as moved\ndel moved.TaskIdentity\n"
        if broken
        else ""
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from nmoe_flower.cli import main; sys.exit(main())",
         "run", "--out", str(tmp_path / "runs")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("nmoe: error: Flower 1.97.0 is installed"), done.stderr
    assert "Flower 1.41 and 1.42" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_programs_take_the_flags_they_are_given() -> None:
    program, *arguments = flower.simulation_superlink(4711)
    read = flower.argument_parsers()[program].parse_args(arguments)
    assert (read.host, read.port, read.insecure, read.simulation) == ("127.0.0.1", 4711, True, True)
    for script in (flower.SCRIPT_SUPERLINK, flower.SCRIPT_SUPERNODE):
        words = script.replace("\\\n", " ").split()
        ports = {"{port}": "1", "{runtime_port}": "2"}
        flower.argument_parsers()[words[0]].parse_args([ports.get(w, w) for w in words[1:]])
