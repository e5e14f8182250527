"""A SuperLink and SuperNodes over TLS, as processes; one is killed. Minutes, not seconds."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower.client_app import app
from nmoe_flower.config import Config
from nmoe_flower.data import configured_images
from nmoe_flower.deploy import FederationPlan, LocalFederation, Sandbox, for_deployment
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.files import load_arrays
from nmoe_flower.results import RunFolder
from nmoe_flower.server_app import execute

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from warm import Warm

NODES = 3
KILLED = 1
PROGRAMS = ("flower-supernode", "flower-superexec", "flwr-clientapp", "nmoe")


def simulate(config: Config, out: Path) -> RunFolder:
    """The same run in this process."""
    config = Config.parse({**config.flat(), "run.out": str(out)})
    folder = RunFolder.create(out / config.run.name, config)
    with InProcessGrid(app, NODES, run_config=config.flat()) as grid:
        execute(grid, folder)
    return folder


def inside(folder: Path) -> list[int]:
    """Every process that works in a folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found += [int(link.parent.name)] if link.readlink() == folder else []
    return found


def is_client(pid: int) -> bool:
    """Whether a process asks the client app for an answer."""
    with contextlib.suppress(OSError):
        return b"flwr-clientapp" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def warm_up(federation: LocalFederation, warm: Path) -> None:
    """Give every node these programs: its venv/ goes before all others on its PATH.

    The first of each kind is a process of its own, as on a device; the others are forks of one that
    has imported what they need, which saves 5 s for each message.
    """
    for folder in federation.node_folders:
        programs = folder / "venv" / "bin"
        programs.mkdir(parents=True)
        for name in PROGRAMS:
            own, first = Path(sys.executable).parent / name, warm / f"first-{name}"
            text = f'#!/bin/sh\nmkdir {first} 2> /dev/null && exec {own} "$@"\n'
            (programs / name).write_text(f'{text}exec {warm / name} "$@"\n', encoding="utf-8")
            (programs / name).chmod(0o755)


def failures(federation: LocalFederation) -> list[dict[str, Any]]:
    lines = (federation.run_folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [failure for line in lines for failure in json.loads(line)["failures"]]


class Killer:
    """Kills the SuperNode and its client process at work, once the experts are trained.

    Between two messages, or when the answer is on its way, nobody notices: then it does so again in
    a later exchange.
    """

    def __init__(self, federation: LocalFederation) -> None:
        self.federation = federation
        self.expert = b""
        self.seen = ""

    def __call__(self) -> None:
        path = self.federation.run_folder / "rounds.jsonl"
        told = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not told.endswith("\n") or '"stage": "experts"' not in told or told == self.seen:
            return
        pids = inside(self.federation.node_folders[KILLED])
        if failures(self.federation) or not any(map(is_client, pids)):
            return
        self.seen, self.expert = told, expert(self.federation, KILLED).read_bytes()
        start = self.federation.nodes[KILLED].pid  # which starts the SuperNode again
        for pid in set(pids) - {start}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def expert(federation: LocalFederation, node: int) -> Path:
    run = federation.plan.config.run.name
    return federation.node_folders[node] / "store" / run / "expert.safetensors"


def furthest(one: Path, other: Path) -> float:
    """The largest difference between two files of arrays."""
    left, right = load_arrays(one), load_arrays(other)
    assert left.keys() == right.keys()
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


@pytest.mark.ray
def test_a_federation_trains_as_its_simulation_though_a_node_is_killed(
    new_plan: Callable[..., FederationPlan], tmp_path: Path
) -> None:
    changes = {
        "extractor.backbone": "digits", "run.connect-timeout": 300.0, "run.round-timeout": 600.0,
        "run.evaluate-every": 2,
    }  # fmt: skip
    plan = new_plan(NODES, changes=changes)
    config = for_deployment(plan.config, NODES)
    simulated = simulate(config, tmp_path / "simulation")
    warm = tmp_path / "warm"
    warm.mkdir()
    with Warm(warm, PROGRAMS), Sandbox(tmp_path / "lab") as sandbox:
        federation = LocalFederation(sandbox, plan)
        federation.write()
        warm_up(federation, warm)
        federation.start_superlink()
        federation.start_nodes()
        killer = Killer(federation)
        federation.train(on_tick=killer)
        sandbox.clear()
        for name in ("extractor", "head", "gate-federated"):
            weights = Path("weights", f"{name}.safetensors")
            assert furthest(simulated.path / weights, federation.run_folder / weights) <= 1e-6
        for node in range(NODES):
            own = simulated.path / "clients" / str(node) / "expert.safetensors"
            assert furthest(own, expert(federation, node)) <= 1e-6
        assert expert(federation, KILLED).read_bytes() == killer.expert != b""
        assert {failure["partition"] for failure in failures(federation)} == {KILLED}
        answers_each_other(federation, tmp_path)


def answers_each_other(federation: LocalFederation, tmp_path: Path) -> None:
    """The SuperLink is gone: every device serves its bundle, one asks."""
    federation.start_peers()
    images = tmp_path / "images.npy"
    np.save(images, np.asarray(configured_images(federation.plan.config).test.images[:8]))
    answers: list[dict[str, Any]] = [json.loads(line) for line in federation.ask(images)]
    assert len(answers) == 8
    assert all(answer["answered_by"] == answer["experts"] for answer in answers)
    assert all(answer["fallback"] is None for answer in answers)
