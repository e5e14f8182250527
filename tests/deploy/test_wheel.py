"""What machines install: the wheel that runs here, by its hash, never by its name."""

import hashlib
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower import __version__
from nmoe_flower.deploy import check_folder, wheel
from nmoe_flower.deploy.wheel import write_wheel
from nmoe_flower.errors import ConfigError

NAME = f"nmoe_flower-{__version__}-py3-none-any.whl"


def fake(path: Path, package: str = "nmoe_flower") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "")
    return path


def test_the_folder_brings_the_wheel_its_hash_and_the_versions(federation: Path) -> None:
    for party in (federation, federation / "server", federation / "nodes" / "node-1"):
        own = party / "wheel"
        assert {path.name for path in own.iterdir()} == {NAME, "SHA256SUMS", "constraints.txt"}
        subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=own, check=True, capture_output=True)
    with zipfile.ZipFile(own / NAME) as archive:
        packed = set(archive.namelist())
    assert {"nmoe_flower/client_app.py", "nmoe_flower/py.typed"} <= packed
    lines = (own / "constraints.txt").read_text().splitlines()[1:]
    pinned = dict(line.split("==") for line in lines)
    assert pinned["flwr"] == metadata.version("flwr")
    assert pinned["torch"] == metadata.version("torch").partition("+")[0]
    assert {"grpcio", "cryptography", "numpy", "pydantic-core"} <= pinned.keys()  # and theirs
    assert not {"nmoe-flower", "ray", "pytest"} & pinned.keys()
    assert not [name for name in pinned if name.startswith("nvidia")]


def stub_python(folder: Path) -> dict[str, str]:
    """A ``python3`` whose environments hold a ``pip`` that writes down its arguments."""
    folder.mkdir()
    program = folder / "python3"
    program.write_text(
        "#!/bin/sh\nmkdir -p $3/bin\n"
        "printf '#!/bin/sh\\necho \"$(pwd) $*\" >> %s/said\\n' " + str(folder) + " > $3/bin/pip\n"
        "chmod +x $3/bin/pip\n"
    )
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def install(party: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(party / "install.sh")], env=environment, cwd="/", capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_the_script_installs_the_wheel_once(federation: Path, tmp_path: Path) -> None:
    party, environment = federation / "nodes" / "node-0", stub_python(tmp_path / "stub")
    for _ in range(2):
        assert install(party, environment).returncode == 0
    said = (tmp_path / "stub" / "said").read_text().splitlines()
    assert said == [f"{party / 'wheel'} install -c constraints.txt ./{NAME}[serve]"]
    more = {**environment, "EXTRAS": "data,serve", "TORCH_INDEX": "https://torch.example"}
    assert install(party, more).returncode == 0  # something else is wanted: installed again
    last = (tmp_path / "stub" / "said").read_text().splitlines()[-1]
    assert last.endswith(
        f"install --extra-index-url https://torch.example -c constraints.txt ./{NAME}[data,serve]"
    )


def test_a_wheel_that_was_changed_is_not_installed(federation: Path, tmp_path: Path) -> None:
    party = federation / "nodes" / "node-0"
    other = fake(tmp_path / NAME)
    (party / "wheel" / NAME).unlink()
    (party / "wheel" / NAME).write_bytes(other.read_bytes())
    done = install(party, stub_python(tmp_path / "stub"))
    assert done.returncode != 0
    assert not (tmp_path / "stub" / "said").exists()
    problems = [found for found in check_folder(party) if found.what == "wheel"]
    assert "is not the file that SHA256SUMS names" in problems[0].problem


def test_a_given_wheel_must_be_of_this_version(tmp_path: Path) -> None:
    given = fake(tmp_path / NAME)
    found = write_wheel(tmp_path / "out", given=given)
    assert found.read_bytes() == given.read_bytes()
    digest = hashlib.sha256(given.read_bytes()).hexdigest()
    assert (tmp_path / "out" / "SHA256SUMS").read_text() == f"{digest}  {NAME}\n"
    for name, package, message in (
        ("nmoe_flower-9.9-py3-none-any.whl", "nmoe_flower", "holds nmoe-flower 9.9; allowed"),
        ("other-0.1.0-py3-none-any.whl", "other", "holds other 0.1.0; allowed"),
        (NAME, "other", f"holds nmoe-flower {__version__}; allowed"),
        ("nmoe.whl", "nmoe_flower", "is not the name of a wheel"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_wheel(tmp_path / "out", given=fake(tmp_path / name, package))
    (tmp_path / NAME).write_text("no archive")
    with pytest.raises(ConfigError, match="is not a wheel: it is no zip archive"):
        write_wheel(tmp_path / "out", given=tmp_path / NAME)
    with pytest.raises(ConfigError, match=r"cannot read .*gone-1-py3-none-any\.whl"):
        write_wheel(tmp_path / "out", given=tmp_path / "gone-1-py3-none-any.whl")


def test_an_installed_wheel_is_packed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Install the wheel of this checkout, pack what was installed, compare every file."""
    built = write_wheel(tmp_path / "built")
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--target", str(target), str(built)], check=True, capture_output=True)
    (own,) = metadata.distributions(path=[str(target)])
    monkeypatch.setattr(metadata, "distribution", lambda name: own)
    monkeypatch.setattr(wheel, "checkout", lambda: None)
    monkeypatch.setattr(wheel, "installed_from", lambda: None)
    packed = write_wheel(tmp_path / "packed")
    assert packed.name == built.name
    with zipfile.ZipFile(built) as first, zipfile.ZipFile(packed) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
        for name in first.namelist():
            if not name.endswith("RECORD"):
                assert first.read(name) == second.read(name), name
    again = tmp_path / "again"
    subprocess.run([*command, "--target", str(again), str(packed)], check=True, capture_output=True)
    assert (again / "nmoe_flower" / "client_app.py").is_file()


def test_where_no_wheel_can_be_had_one_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "checkout", lambda: None)
    monkeypatch.setattr(wheel, "installed_from", lambda: None)

    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ConfigError, match="give the wheel with --wheel FILE"):
        write_wheel(tmp_path / "out")
