"""``flwr run . --stream`` from a clean copy, as a user types it; the same bundle on our engine."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nmoe_flower.addresses import free_ports
from nmoe_flower.config import Config
from nmoe_flower.engine import export_app, flower, processes

sys.path.insert(0, str(Path(__file__).parent))
from flower_app import clean_copy

pytestmark = [pytest.mark.ray, pytest.mark.flower]

# Every stage and every gate, as little of each as there can be.
TINY = {
    "data.train-per-client": 40,
    "data.test-per-client": 20,
    "extractor.backbone": "linear",
    "extractor.rounds": 2,
    "expert.hidden": "8",
    "expert.epochs": 1,
    "gate.rounds": 1,
    "gate.cycles": 1,
    "run.controls": "",
    "run.connect-timeout": 300.0,  # Ray gives its workers little of a busy machine
    "run.round-timeout": 300.0,
}
GATES = set(Config().gate.methods)


def bin_of(name: str) -> str:
    return str(Path(sys.executable).parent / name)


@dataclass
class Machine:
    """Somebody's machine: Flower's folder, the local SuperLink's port, a clean copy of the app."""

    home: Path
    app: Path
    environment: dict[str, str]

    def run(self, command: list[str], cwd: Path, **environment: str) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=self.environment | environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """``flwr run`` starts Flower's local SuperLink here at first, and finds it again afterwards."""
    root = tmp_path_factory.mktemp("m")
    home = root / "flwr"
    home.mkdir()
    environment = os.environ | flower.ENVIRONMENT
    environment |= {flower.HOME: str(home), flower.LOCAL_PORT: str(free_ports(1)[0])}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    try:
        yield Machine(home, clean_copy(root / "nmoe-flower"), environment)
    finally:
        assert processes.end(flower.mark(home)) == set()


def run_config(folder: Path) -> str:
    values = TINY | {"run.out": str(folder.parent), "run.name": folder.name}
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def assert_every_gate(folder: Path, clients: int) -> None:
    results = json.loads((folder / "results.json").read_text())
    found = {(row["gate"], row["test"]) for row in results["rows"]}
    assert {(gate, test) for gate in GATES for test in ("local", "iid")} <= found
    assert {row["clients"] for row in results["rows"]} == {clients}


@pytest.mark.parametrize(("nodes", "federation"), [
    (2, []),
    (10, ["--federation-config", "num-supernodes=10 client-resources-num-cpus=1"]),
])  # fmt: skip
def test_flwr_run_in_the_checkout_ends_with_every_gate(
    machine: Machine, tmp_path: Path, nodes: int, federation: list[str]
) -> None:
    folder = tmp_path / "run"
    out = machine.run(
        [bin_of("flwr"), "run", ".", "--stream", *federation, "--run-config", run_config(folder)],
        cwd=machine.app,
    )
    assert (folder / "results.json").is_file(), out
    assert_every_gate(folder, nodes)
    stream = re.sub(r"\x1b\[[0-9;]*m", "", out)
    told = {line.split()[2] for line in stream.splitlines() if re.search(r"INFO.*0\.\d{3}", line)}
    assert told >= GATES, stream
    assert f"results  {folder / 'results.json'}" in stream
    assert f"figures  {folder / 'figures'}" in stream
    assert list((folder / "figures").glob("*.png"))
    assert "minutes" not in stream
    assert "Traceback" not in stream


def test_the_same_bundle_on_our_own_engine(machine: Machine, tmp_path: Path) -> None:
    """`nmoe_flower.run` on Ray with the package as the bundle holds it, not as it is installed."""
    unpacked = export_app(machine.app, tmp_path / "nmoe-flower")
    code = (
        "import json, sys, nmoe_flower\n"
        f"assert nmoe_flower.__file__.startswith({str(unpacked)!r}), nmoe_flower.__file__\n"
        "settings = json.loads(sys.argv[1])\n"
        "run = nmoe_flower.run(set=settings, engine='ray', out='.', name='run', figures=False)\n"
        "print(run.folder.path)"
    )
    command = [sys.executable, "-c", code, json.dumps({"data.num-clients": 3, **TINY})]
    out = machine.run(command, cwd=tmp_path, PYTHONPATH=str(unpacked))
    assert_every_gate(tmp_path / "run", 3)
    assert Path(out.splitlines()[-1]).resolve() == tmp_path / "run"
    assert not (tmp_path / "run" / "figures").exists()
