"""A SuperLink and SuperNodes over TLS, as processes; one is killed. Minutes, not seconds."""

import json
import os
import signal
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

NODES = 3
KILLED = 1


def simulate(config: Config, out: Path) -> RunFolder:
    """The same run in this process."""
    config = Config.parse({**config.flat(), "run.out": str(out)})
    folder = RunFolder.create(out / config.run.name, config)
    with InProcessGrid(app, NODES, run_config=config.flat()) as grid:
        execute(grid, folder)
    return folder


def below(parent: int) -> list[int]:
    """Every living process that descends from ``parent``."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    found = [parent]
    for pid in found:
        found += [child for child, own in parents.items() if own == pid]
    return found[1:]


class Killer:
    """Kills the SuperNode and its client process once the experts are trained."""

    def __init__(self, federation: LocalFederation) -> None:
        self.federation = federation
        self.expert = b""

    def __call__(self) -> None:
        path = self.federation.run_folder / "rounds.jsonl"
        if self.expert or not path.is_file() or '"stage": "experts"' not in path.read_text():
            return
        self.expert = expert(self.federation, KILLED).read_bytes()
        for pid in below(self.federation.nodes[KILLED].pid):
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
    with Sandbox(tmp_path / "lab") as sandbox:
        federation = LocalFederation(sandbox, plan)
        federation.write()
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
        lines = (federation.run_folder / "rounds.jsonl").read_text().splitlines()
        failures = [failure for line in lines for failure in json.loads(line)["failures"]]
        assert {failure["partition"] for failure in failures} == {KILLED}
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
