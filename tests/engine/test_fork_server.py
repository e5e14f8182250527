import importlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from nmoe_flower.engine import InProcessGrid, fork_server
from nmoe_flower.engine.fork_server import ForkedProcess, ForkServer
from nmoe_flower.errors import EngineError

pytestmark = pytest.mark.skipif(not ForkServer.works_here(), reason="forks on Linux alone")

APP = """
import os, random, threading
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
import numpy as np
IMPORTED_BY = os.getpid()
{more}
app = ClientApp()

@app.query()
def query(message, context):
    told = {{
        "pid": os.getpid(), "parent": os.getppid(), "imported-by": IMPORTED_BY,
        "drawn": int(np.random.randint(1 << 30)), "drawn-too": random.random(),
        {told}
    }}
    if context.node_id == message.content["config"].get("dies"):
        os._exit(7)
    return Message(RecordDict({{"config": ConfigRecord(told)}}), reply_to=message)
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write an app of this name whose module does ``more`` at its import, and tells ``told``."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, more: str = "", told: str = "") -> str:
        (tmp_path / f"{name}.py").write_text(APP.format(more=more, told=told))
        importlib.invalidate_caches()
        return f"{name}:app"

    return write


def ask(grid: InProcessGrid, nodes: int = 4, **config: int) -> list[Message]:
    content = RecordDict({"config": ConfigRecord(dict(config))})
    messages = [Message(content, node, "query") for node in range(1, nodes + 1)]
    return list(grid.send_and_receive(messages, timeout=60))


def until_ready(grid: InProcessGrid) -> list[int]:
    pool: Any = grid._backend
    while not all(worker.ready for worker in pool._workers):
        pool._turn(30.0)
    return [worker.leader.process.pid for worker in pool._workers]


def test_workers_share_one_import_but_not_their_random_numbers(app: Any) -> None:
    with InProcessGrid(app("shared_app"), 4, workers=2) as grid:
        pids = until_ready(grid)
        told = [dict(reply.content["config"]) for reply in ask(grid)]
        server = grid._backend._fork_server._leader.process.pid
        assert {one["imported-by"] for one in told} == {server}
        assert {one["parent"] for one in told} == {server}
        assert {one["pid"] for one in told} <= set(pids)
        assert len(set(pids) | {server, os.getpid()}) == 4
        assert len({one["drawn"] for one in told}) == len({one["drawn-too"] for one in told}) == 4


def test_a_grid_takes_the_server_that_was_started_before_and_ends_it(app: Any) -> None:
    reference = app("early_app")
    server = ForkServer(reference)
    with InProcessGrid(reference, 2, workers=2, forks=server) as grid:
        told = [dict(reply.content["config"]) for reply in ask(grid, 2)]
        assert {one["parent"] for one in told} == {server._leader.process.pid}
    assert server.close() == server.close() == "exit code 0"


def test_the_first_optimizer_of_a_worker_imports_nothing_more(app: Any) -> None:
    more = """
import torch, sys
def imported():
    before = set(sys.modules)
    torch.optim.AdamW([torch.zeros(1)])
    return sorted(set(sys.modules) - before)
"""
    with InProcessGrid(app("training_app", more, '"imported": imported()'), 2, workers=2) as grid:
        assert [reply.content["config"]["imported"] for reply in ask(grid, 2)] == [[], []]


def test_a_dead_worker_is_forked_anew_also_if_the_server_is_dead(app: Any) -> None:
    with InProcessGrid(app("dying_app"), 4, workers=2) as grid:
        until_ready(grid)
        first = grid._backend._fork_server
        replies = ask(grid, dies=2)
        reasons = [reply.error.reason for reply in replies if reply.has_error()]
        assert reasons == ["the worker died on partition 1: exit code 7"]
        until_ready(grid)
        assert grid._backend._fork_server is first
        os.kill(first._leader.process.pid, signal.SIGKILL)
        while not first._leader.has_ended():
            pass
        replies = ask(grid, dies=3)
        reasons = [reply.error.reason for reply in replies if reply.has_error()]
        assert reasons == ["the worker died on partition 2: nobody knows what of"]
        until_ready(grid)
        assert grid._backend._fork_server is not first
        assert not any(reply.has_error() for reply in ask(grid))


def test_an_import_that_starts_threads_is_repeated_by_each_worker(app: Any) -> None:
    more = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    with InProcessGrid(app("threaded_app", more), 4, workers=2) as grid:
        pids = until_ready(grid)
        assert not grid._backend._forks
        for told in (dict(reply.content["config"]) for reply in ask(grid)):
            assert told["imported-by"] == told["pid"]
            assert told["pid"] in pids
            assert told["parent"] == os.getpid()


def test_no_copy_is_made_beside_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "gpu"
    monkeypatch.setattr(fork_server, "_GPUS", (str(device),))
    assert "GPU" not in fork_server._hindrance()
    device.touch()
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads == 1:
        assert fork_server._hindrance() == f"there is a GPU, {device}"
    else:
        assert fork_server._hindrance() == f"its import started {threads - 1} threads"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("os._exit(5)", "a worker died while it loaded 'failing_app:app': exit code 5"),
        ("raise ValueError('no data')", "a worker failed to start: .*ValueError: no data"),
    ],
)
def test_an_import_that_fails_is_told(app: Any, more: str, reason: str) -> None:
    with (
        InProcessGrid(app("failing_app", more), 4, workers=2) as grid,
        pytest.raises(EngineError, match=reason),
    ):
        ask(grid)


def test_nothing_is_left_when_the_grid_is_closed(app: Any) -> None:
    with InProcessGrid(app("closed_app"), 4, workers=2) as grid:
        pids = [*until_ready(grid), grid._backend._fork_server._leader.process.pid]
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)


def test_one_worker_is_started_without_a_fork_server(app: Any) -> None:
    with InProcessGrid(app("single_app"), 4, workers=1) as grid:
        assert grid._backend._fork_server is None
        (told,) = (dict(reply.content["config"]) for reply in ask(grid, nodes=1))
        assert told["parent"] == os.getpid()


def test_a_process_that_nobody_can_watch_is_no_worker() -> None:
    class Server:
        def reap(self, pid: int) -> int:
            return -pid

    process = ForkedProcess(1 << 30, Server())
    with pytest.raises(EngineError, match="worker 1073741824 cannot be watched: too many files"):
        assert process.sentinel
    process.kill()  # no such process: nothing happens
    process.join()
    assert process.exitcode == -(1 << 30)
