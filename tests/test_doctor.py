"""``nmoe doctor``: what it finds in order, what it calls a failure, and its exit code."""

import json
import os
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import pytest

from nmoe_flower.addresses import free_ports
from nmoe_flower.cli import doctor, main
from nmoe_flower.engine import flower, processes
from nmoe_flower.errors import EngineError

pytestmark = pytest.mark.flower


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of our own, and a port on which no SuperLink listens."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NMOE_CACHE", str(home / "cache"))
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    monkeypatch.setenv(flower.HOME, str(home / "flwr"))
    monkeypatch.setenv(flower.LOCAL_PORT, str(free_ports(1)[0]))
    monkeypatch.chdir(tmp_path)
    return home


def look(name: str, out: Path = Path("runs")) -> doctor.Look:
    (found,) = [found for found in doctor.doctor(out) if found.name == name]
    return found


def test_a_healthy_machine_is_one_line_each_and_exit_code_0(
    capsys: pytest.CaptureFixture[str], machine: Path
) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "nothing would fail"
    assert all(line.startswith(("ok  ", "note")) for line in lines[:-1])
    text = "\n".join(lines)
    for fact in (
        f"{metadata.version('flwr')}, supported", metadata.version("torch"),
        f"ray {metadata.version('ray')}", f"matplotlib {metadata.version('matplotlib')}",
        f"{machine / 'cache'}: not there yet", f"{Path('runs').absolute()}: not there yet",
        f"none on 127.0.0.1:{os.environ[flower.LOCAL_PORT]}",
    ):  # fmt: skip
        assert fact in text
    assert list(machine.iterdir()) == []  # looking makes nothing


def test_json_is_one_object_of_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (code, found["ok"]) == (0, True)
    names = [check["name"] for check in found["checks"]]
    assert len(set(names)) == len(names)
    assert {check["state"] for check in found["checks"]} <= {"ok", "note"}
    assert {"flower", "python", "gpu", "memory", "cores", "local superlink"} <= set(names)


def test_a_folder_that_cannot_be_written_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here")
    assert main(["doctor", "--out", str(tmp_path / "file" / "runs")]) == 1
    out = capsys.readouterr().out
    assert f"FAIL  run folders         {tmp_path}/file/runs cannot be written" in out
    assert "1 of " in out


def test_the_size_of_a_cache_is_told(machine: Path) -> None:
    (machine / "cache" / "digits").mkdir(parents=True)
    (machine / "cache" / "digits" / "train.npy").write_bytes(bytes(3_000_000))
    found = look("data cache")
    assert found.state == "ok"
    assert found.text.startswith(f"{machine / 'cache'}: 3 MB held, ")


def test_an_unknown_flower_fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        raise EngineError("Flower 1.97.0 is installed")

    monkeypatch.setattr(flower, "installed_version", refused)
    found = {found.name: found for found in doctor.doctor(Path("runs"))}
    assert [name for name, look in found.items() if look.state == "fail"] == ["flower"]
    assert found["flower"].text == "Flower 1.97.0 is installed"
    assert {found[name].text for name in doctor.NEED_FLOWER} == {"not looked at: see flower, above"}


def test_a_missing_extra_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = metadata.version

    def without(name: str) -> str:
        if name == "ray":
            raise metadata.PackageNotFoundError(name)
        return whole(name)

    monkeypatch.setattr(metadata, "version", without)
    found = look("extra simulation")
    assert found.state == "note"
    assert found.text.startswith("absent (ray): pip install")


def test_every_extra_but_those_of_development_is_looked_at() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    extras = set(project["project"]["optional-dependencies"])
    assert set(doctor.EXTRAS) == extras - {"dev", "docs", "bench-pfl"}


def test_an_extra_that_the_installation_does_not_know_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy"])
    assert look("extra index").text.startswith("of a newer version than was installed: pip install")


def test_a_taken_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: "a peer"})
        found = look(f"port {port}")
    assert (found.state, found.text.partition(":")[0]) == ("note", "taken")


class Other(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def another_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv(flower.LOCAL_PORT, str(server.server_port))
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_program_where_the_superlink_should_be_fails(another_program: int) -> None:
    found = look("local superlink")
    assert found.state == "fail"
    assert f"another program listens on 127.0.0.1:{another_program}" in found.text
    assert flower.LOCAL_PORT in found.text


@pytest.mark.parametrize("port", ["", "0", "65536", "8o", "-1", "9" * 20, "9" * 5000])
def test_a_port_that_is_none_is_named(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flower.LOCAL_PORT, port)
    with pytest.raises(EngineError, match=f"{flower.LOCAL_PORT} is '{port[:20]}"):
        flower.local_port()


def test_a_running_superlink_is_told_with_its_environment(tmp_path: Path) -> None:
    """A real one; it would install packages for every run until it is told not to."""
    port = int(os.environ[flower.LOCAL_PORT])
    home = tmp_path / "superlink"
    home.mkdir()
    command = flower.simulation_superlink(port)
    command.remove("--disable-runtime-dependency-installation")
    programs = Path(sys.executable).parent
    environment = os.environ | flower.ENVIRONMENT | {flower.HOME: str(home)}
    environment["PATH"] = os.pathsep.join([str(programs), os.environ["PATH"]])
    del environment[flower.NO_INSTALLATION]
    log = tmp_path / "superlink.txt"
    with log.open("w") as out:
        child = subprocess.Popen(
            [programs / command[0], *command[1:]], env=environment, cwd=home,
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        while flower.health(port) != "superlink":
            assert child.poll() is None, log.read_text()
        found = look("local superlink")
        assert found.state == "note"
        assert found.text.startswith(f"pid {child.pid} on 127.0.0.1:{port}, of {programs}")
        assert f"{flower.NO_INSTALLATION}=1" in found.text
        assert f"kill {child.pid}" in found.text
    finally:
        processes.end(flower.mark(home), children=[child])
        child.wait()
