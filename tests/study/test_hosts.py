"""Where the processes of a study are: on this machine, or on the nodes of a Ray cluster."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nmoe_flower.addresses import free_ports
from nmoe_flower.cli import main
from nmoe_flower.errors import EngineError
from nmoe_flower.study import Study, StudyView, make_plan, run_study
from nmoe_flower.study import run as run_module
from nmoe_flower.study.hosts import _ClusterHost, _look_of

FILE = """
title = "T"
seeds = [0, 1]
"""
# A run's process without torch. It is at work until it may end, or its machine is gone.
FAKE = """
import json, os, pathlib, sys, time
parent = os.getppid()
for line in sys.stdin:
    path = pathlib.Path(json.loads(line)["path"])
    path.mkdir(parents=True, exist_ok=True)
    with (path / "at-work").open("a") as file:
        print(os.getpid(), file=file)
    while not (path.parents[1] / "may-end").exists() and os.getppid() == parent:
        time.sleep(0.02)
    if os.getppid() != parent:
        break
    print(json.dumps({"stage": "extractor", "round": 1, "rounds": 1}), flush=True)
    print(json.dumps({"done": True}), flush=True)
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "small.toml").write_text(FILE)
    return Study.load(tmp_path / "small.toml")


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_node_that_dies_loses_its_run_which_is_made_again(
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm_cache: Path,
    two_raylets: Any,
) -> None:
    """A run on each of two nodes; the second node is killed, and its run goes to the first."""
    monkeypatch.setattr(run_module, "PROGRAM", [sys.executable, "-c", FAKE])
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    plan, lines = make_plan(study, tmp_path / "runs"), StringIO()
    works = [one.path / "at-work" for one in plan.runs]

    def kill() -> None:
        until(lambda: all(work.exists() for work in works))
        two_raylets.remove_node(two_raylets.worker_nodes.copy().pop(), allow_graceful=False)
        until(lambda: any(has_ended(int(work.read_text().split()[0])) for work in works))
        (plan.folder / "may-end").touch()

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    done = run_study(
        plan,
        jobs=2,
        view=StudyView(json_lines=True, stream=lines, every=1e9),
        ray_address=two_raylets.address,
    )
    killing.join()
    assert (done.finished, done.made, done.failed, done.left) == (2, 2, {}, 0)
    assert sorted(len(work.read_text().split()) for work in works) == [1, 2]
    said = [json.loads(line) for line in lines.getvalue().splitlines()]
    told = [one["now"] for one in said if "now" in one]
    assert sum(one.startswith("again, as node") for one in told) == 1
    assert all("is left out" in one["note"] for one in said if "note" in one)
    assert sum(one.startswith("finished in") for one in told) == 2


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_host_that_is_asked_in_vain_is_lost_with_its_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray may never tell of an actor that was to start on a node as that died."""
    ray = pytest.importorskip("ray")
    nodes = [SimpleNamespace(id="a")]
    asked = []

    def wait(references: list[Any], *, timeout: float) -> tuple[list[Any], list[Any]]:
        asked.append(timeout)
        if len(asked) == 3:  # it was there until now
            nodes.clear()
        return [], references

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr("nmoe_flower.engine.living", lambda: nodes)
    lines = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: iter(())))
    told: list[str] = []
    host = _ClusterHost(
        SimpleNamespace(lines=lines), "a", "here", lambda _, line: told.append(line)
    )
    assert host.lost()
    assert (
        host.reason()
        == "node here is gone, or its process (EngineError: it has left the Ray cluster)"
    )
    assert (told, len(asked)) == ([""], 3)


def test_a_cluster_that_is_not_there_is_said_before_anything_is_begun(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    plan = make_plan(study, tmp_path / "runs")
    with pytest.raises(EngineError, match=f"no Ray cluster at {address}"):
        run_study(plan, ray_address=address)
    assert not any(one.path.exists() for one in plan.runs)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--ray-address", "nowhere"], "is 'nowhere'; allowed: auto, HOST:PORT"),
        (["--ray-address", "auto", "--one", "base/seed-0"], "for all runs of a study, got --one"),
    ],
)
def test_wrong_words(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], why: str
) -> None:
    words = ["study", "run", str(tmp_path / "small.toml"), "--out", str(tmp_path / "runs")]
    assert main([*words, *more]) == 1
    assert why in capsys.readouterr().err


def test_a_node_is_tried_as_runs_will_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working folder, the folder of the runs, the package in this version, the data."""
    from nmoe_flower import __version__

    monkeypatch.chdir(tmp_path)
    here, seen = str(tmp_path), str(tmp_path / "seen")
    look = _look_of(__version__)
    with pytest.raises(FileNotFoundError, match="there is no folder /nowhere"):
        look("/nowhere", seen, [])
    with pytest.raises(FileNotFoundError, match=f"does not see what we write to {tmp_path}"):
        look(here, seen, [])
    (tmp_path / "seen").touch()
    with pytest.raises(ImportError, match=rf"has nmoe-flower {__version__}, here is 9\.9"):
        _look_of("9.9")(here, seen, [])
    with pytest.raises(Exception, match=r"/none. does not exist"):
        look(here, seen, [{"data.dataset": str(tmp_path / "none")}])
    look(here, seen, [])
