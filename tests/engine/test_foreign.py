"""Clients of other people: what they raise, start, edit and send costs them their reply at most."""

import importlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from nmoe_flower import records
from nmoe_flower.engine import InProcessGrid, workers
from nmoe_flower.engine.described import describe
from nmoe_flower.errors import EngineError, ReplyError

HERE = Path(__file__).parent
NODES = 3
needs_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for any process")


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(HERE))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module", params=[0, 1], ids=["in-process", "worker"])
def grid(request: pytest.FixtureRequest, _importable: None) -> Iterator[InProcessGrid]:
    with InProcessGrid("foreign_app:app", NODES, workers=request.param) as made:
        yield made


def is_inline(grid: InProcessGrid) -> bool:
    return not hasattr(grid._backend, "_workers")


def ask(grid: InProcessGrid, action: str, /, *, nodes: int = NODES, **config: Any) -> list[Message]:
    content = RecordDict(
        {"arrays": ArrayRecord([np.ones(4, np.float32)]), "config": ConfigRecord(config)}
    )
    messages = [Message(content, node, f"query.{action}") for node in range(1, nodes + 1)]
    return list(grid.send_and_receive(messages, timeout=60))


RAISED = {
    "mute": "MuteError (its text cannot be made: RuntimeError)",
    "leaving": "LeavingError (its text cannot be made: SystemExit)",
    "unpicklable": "ValueError: holds a lambda",
    "local class": "Local: made here \\ud800",
    "cancelled": "CancelledError: too late",
    "generator": "GeneratorExit",
    "base": "BaseException: at the root",
    "group": "BaseExceptionGroup: several (2 sub-exceptions)",
    "long": "ValueError: " + "x" * 1000,
}


@pytest.mark.parametrize(("kind", "reason"), RAISED.items(), ids=list(RAISED))
def test_whatever_is_raised_is_a_failed_reply(
    grid: InProcessGrid, kind: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The log has the text as it was raised, and half a surrogate pair cannot be sent by xdist.
    caplog.set_level(logging.CRITICAL, logger="nmoe_flower.engine")
    for reply in ask(grid, "raise", kind=kind):
        assert reply.error.reason == reason


def test_an_interrupt_of_a_clients_own(grid: InProcessGrid) -> None:
    """A failed reply of a worker, which hears no Ctrl-C; in this process it may be one."""
    if is_inline(grid):
        with pytest.raises(KeyboardInterrupt):
            ask(grid, "raise", kind="interrupt")
    else:
        for reply in ask(grid, "raise", kind="interrupt"):
            assert reply.error.reason == "KeyboardInterrupt"


def test_a_text_that_is_interrupted_stops_the_program() -> None:
    class StoppedError(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        describe(StoppedError())


def test_clients_may_start_processes(grid: InProcessGrid) -> None:
    for reply in ask(grid, "children"):
        found = reply.content["config"]
        assert found["parent"] == found["pid"] != found["child"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("how", ["return", "raise", "leave"])
def test_a_copy_that_a_client_forks_answers_nobody(grid: InProcessGrid, how: str) -> None:
    """Two answers to one message would be taken for answers to two."""
    own = os.getpid()
    for _ in range(2):
        answers = ask(grid, "fork", how=how)
        assert os.getpid() == own
        assert [records.metrics_of(one.content)["copy"] for one in answers] == [0] * NODES


def test_a_client_that_edits_its_message_edits_nobody_elses(grid: InProcessGrid) -> None:
    content = RecordDict(
        {"arrays": ArrayRecord([np.ones(4, np.float32)]), "config": ConfigRecord({"list": [1, 2]})}
    )
    messages = [Message(content, node, "query.edit") for node in (1, 2, 3)]
    for node, reply in enumerate(grid.send_and_receive(messages), 1):
        assert dict(reply.content["config"]) == {"list": [1, 2], "sum": 4.0}
        assert reply.metadata.src_node_id == node
    assert list(content["arrays"]) == ["0"]
    assert content["arrays"]["0"].numpy().tolist() == [1.0] * 4
    assert content["config"]["list"] == [1, 2]
    assert [message.metadata.dst_node_id for message in messages] == [1, 2, 3]


def test_numbers_and_texts_of_classes_of_their_own(grid: InProcessGrid) -> None:
    for reply in ask(grid, "types"):
        assert reply.content["metrics"] == {
            "colour": 3, "real": 0.5, "list": [1.5], "numpy": 2.5,
        }  # fmt: skip
        assert reply.content["config"] == {"text": "abc", "texts": ["d"]}


def test_a_state_that_cannot_travel_fails_the_reply_and_is_as_before(grid: InProcessGrid) -> None:
    found = [ask(grid, "state", nodes=1, spoil=spoil)[0] for spoil in (False, True, False)]
    assert found[0].content["n"]["calls"] == 1
    if is_inline(grid):  # where it need not travel
        assert [reply.content["n"]["calls"] for reply in found[1:]] == [2, 3]
    else:
        assert found[1].error.reason.startswith("its reply or its state cannot be sent: ")
        assert found[2].content["n"]["calls"] == 2


def test_an_array_without_bytes(grid: InProcessGrid) -> None:
    for reply in ask(grid, "broken"):
        if reply.has_error():
            assert reply.error.reason.startswith("its reply or its state cannot be sent: ")
        else:
            with pytest.raises(ReplyError, match="has no bytes"):
                records.to_numpy(reply.content["arrays"])


def test_replies_larger_than_what_is_kept_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MOST_RESERVED", 1000)
    with InProcessGrid("foreign_app:app", NODES, workers=1) as grid:
        for size in (500_000, 10, 900_000):
            for node, reply in enumerate(ask(grid, "large", size=size), 1):
                value = reply.content["arrays"]["0"].numpy()
                assert (value.shape, set(value.tolist())) == ((size,), {node})
        segments = [s for w in grid._backend._workers for s in w.replies if s is not None]
        assert all(segment.size <= 1 << 16 for segment in segments)


def test_replies_come_through_the_pipe_where_shared_memory_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with InProcessGrid("foreign_app:app", NODES, workers=1) as grid:
        take = grid._backend._arena.take

        def full(size: int) -> Any:
            if size > 100_000:
                raise EngineError("no shared memory left")
            return take(size)

        monkeypatch.setattr(grid._backend._arena, "take", full)
        for _ in range(2):
            for reply in ask(grid, "large", size=200_000):
                assert reply.content["arrays"]["0"].numpy().shape == (200_000,)


# --- nothing is orphaned ---


def ended(pids: list[int], handles: list[int]) -> bool:
    """Whether all processes end within 20 seconds; their handles were opened while they lived."""
    try:
        return all(wait([handle], 20) for handle in handles)
    finally:
        for handle in handles:
            os.close(handle)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@needs_pidfd
@pytest.mark.parametrize("how", ["close", "kill"])
def test_what_a_client_started_ends_with_its_worker(how: str) -> None:
    grid = InProcessGrid("foreign_app:app", 1, workers=1)
    (reply,) = ask(grid, "offspring", nodes=1, kind="stay")
    pids = reply.content["metrics"]["pids"]
    handles = [os.pidfd_open(pid) for pid in pids]
    assert wait(handles, 0) == []
    if how == "kill":
        worker = grid._backend._workers[0]
        os.kill(worker.leader.process.pid, signal.SIGKILL)
        assert ask(grid, "children", nodes=1)[0].has_error()
    else:
        grid.close()
    assert ended(pids, handles)
    grid.close()


@needs_pidfd
def test_a_worker_that_dies_beside_living_children_is_missed_at_once(tmp_path: Path) -> None:
    """They hold its end of every pipe, so that only the kernel tells of its death."""
    with InProcessGrid("foreign_app:app", 1, workers=1) as grid:
        told = tmp_path / "pids"
        (reply,) = ask(grid, "offspring", nodes=1, kind="die", file=str(told))
        assert reply.error.reason == "the worker died on partition 0: exit code 7"
        assert ask(grid, "children", nodes=1)[0].has_content()
    pids = [int(pid) for pid in told.read_text().split()]
    handles = []
    for pid in pids:
        try:
            handles.append(os.pidfd_open(pid))
        except ProcessLookupError:
            continue  # ended and reaped already
    assert ended(pids, handles)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from nmoe_flower.engine import InProcessGrid

grid = InProcessGrid("foreign_app:app", 1, workers=1)
content = RecordDict({"config": ConfigRecord({"kind": "stay"})})
(reply,) = grid.send_and_receive([Message(content, 1, "query.offspring")])
print(*reply.content["metrics"]["pids"], flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_no_grandchild_outlives_the_program(how: str, tmp_path: Path) -> None:
    """Every process holds the error pipe, so ``run`` returns when the last of them has ended."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(HERE), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert len(done.stdout.split()) == 2
    assert done.returncode == (-signal.SIGKILL if how == "kill" else 0)
