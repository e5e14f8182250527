import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from nmoe_flower.engine import InProcessGrid, StreamingGrid, spawn, workers
from nmoe_flower.errors import EngineError

NODES = 10
needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="looks into /proc")


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """The workers inherit sys.path, so they find the app beside this file."""
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def grid(_importable: None) -> Iterator[InProcessGrid]:
    with InProcessGrid("echo_app:app", NODES, workers=2, run_config={"lr": 0.5}) as made:
        yield made


def arrays() -> ArrayRecord:
    generator = np.random.default_rng(3)
    return ArrayRecord(
        [
            generator.standard_normal((40, 7)).astype(np.float32),
            np.array(2.5, np.float32),
            np.zeros((0, 3), np.float32),
            np.arange(5),
        ]
    )


def exchange(grid: InProcessGrid, kind: str, nodes: int = NODES, **config: object) -> list[Message]:
    content = RecordDict({"arrays": arrays(), "config": ConfigRecord(dict(config))})
    messages = [Message(content, node, kind) for node in range(1, nodes + 1)]
    return list(StreamingGrid(grid, window=6).send_and_receive(messages, timeout=60))


def contents(replies: list[Message]) -> list[dict[str, object]]:
    return [
        {
            name: (
                {key: (a.dtype, a.shape, a.stype, a.data) for key, a in record.items()}
                if isinstance(record, ArrayRecord)
                else dict(record)
            )
            for name, record in reply.content.items()
        }
        for reply in replies
    ]


@pytest.mark.usefixtures("_importable")
def test_replies_are_bit_equal_to_those_of_this_process() -> None:
    here = InProcessGrid("echo_app:app", NODES)
    with here, InProcessGrid("echo_app:app", NODES, workers=2) as there:
        for _ in range(3):  # the third round has the state of the second
            expected = contents(exchange(here, "train"))
            assert contents(exchange(there, "train")) == expected
        assert expected[4]["metrics"]["calls"] == 3


def test_an_echo_returns_what_was_sent(grid: InProcessGrid) -> None:
    sent = RecordDict({"arrays": arrays(), "more": arrays(), "config": ConfigRecord({"a": [1]})})
    (reply,) = grid.send_and_receive([Message(sent, 1, "query")])
    assert reply.content == sent
    assert reply.metadata.src_node_id == 1
    assert reply.metadata.dst_node_id == 1


def test_each_message_may_have_arrays_of_its_own(grid: InProcessGrid) -> None:
    shared = arrays()
    messages = [
        Message(
            RecordDict({"arrays": shared, "own": ArrayRecord([np.full(9, node, np.float64)])}),
            node,
            "query",
        )
        for node in range(1, NODES + 1)
    ]
    for node, reply in enumerate(grid.send_and_receive(messages), 1):
        assert reply.content["arrays"] == shared
        assert reply.content["own"]["0"].numpy().tolist() == [node] * 9


def test_several_messages_to_one_node_run_one_after_the_other(grid: InProcessGrid) -> None:
    content = RecordDict({"arrays": arrays(), "config": ConfigRecord()})
    replies = grid.send_and_receive([Message(content, 1, "train") for _ in range(6)])
    calls = [reply.content["metrics"]["calls"] for reply in replies]
    assert calls == list(range(calls[0], calls[0] + 6))


@pytest.mark.usefixtures("_importable")
def test_a_lone_worker_has_the_next_message_before_it_is_done() -> None:
    """No other could be idle first, so the last message waits there, not here."""
    with InProcessGrid("echo_app:app", 3, workers=1) as grid:
        sent = [Message(RecordDict({"arrays": arrays()}), node, "query") for node in (1, 2, 3)]
        ids = list(grid.push_messages(sent))
        assert len(list(grid.pull_messages(ids))) == 1
        pool: Any = grid._backend
        assert [len(worker.jobs) for worker in pool._workers] == [2]


def test_long_messages_and_growing_replies(grid: InProcessGrid) -> None:
    """Longer than a pipe holds (64 KiB), in both directions, and growing from round to round."""
    for size in (10, 50_000, 100_000):
        replies = exchange(grid, "query.long", size=size, text="x" * 300_000)
        for partition, reply in enumerate(replies):
            value = reply.content["arrays"]["0"].numpy()
            assert value.shape == (size,)
            assert (value == partition).all()
            assert reply.content["config"]["text"] == "x" * 300_000 + str(partition)


def test_the_context_of_a_worker(grid: InProcessGrid) -> None:
    found = dict(exchange(grid, "query.context")[2].content["config"])
    assert found == {"lr": 0.5, "partition-id": 2, "num-partitions": NODES, "node-id": 3}


def test_the_environment_is_set_for_workers_only(
    grid: InProcessGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = exchange(grid, "query.environment")[0].content["config"]
    assert found["pid"] != os.getpid()
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["GOMP_SPINCOUNT"] == "0"
    assert found["MALLOC_TOP_PAD_"] == "67108864"

    main = sys.modules["__main__"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MALLOC_TOP_PAD_", raising=False)
    with spawn.spawning():
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert sys.modules["__main__"] is not main
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MALLOC_TOP_PAD_" not in os.environ
    assert sys.modules["__main__"] is main


def test_failing_and_dying_clients_cost_only_their_own_reply(grid: InProcessGrid) -> None:
    trouble = {"1": "raise", "2": "die", "4": "exit", "6": "kill", "8": "none"}
    replies = exchange(grid, "query.trouble", **trouble)
    assert [reply.metadata.src_node_id for reply in replies] == list(range(1, NODES + 1))
    reasons = {
        partition: reply.error.reason
        for partition, reply in enumerate(replies)
        if reply.has_error()
    }
    assert reasons == {
        1: "ValueError: bad shape (3, 4)",
        2: "the worker died on partition 2: exit code 7",
        4: "SystemExit: no data",
        6: "the worker died on partition 6: killed by SIGKILL, often for want of memory",
        8: "returned NoneType, not a Message",
    }
    assert not any(reply.has_error() for reply in exchange(grid, "query"))


def test_a_hanging_client_is_given_up_and_its_worker_restarted(grid: InProcessGrid) -> None:
    content = RecordDict({"arrays": arrays(), "config": ConfigRecord({"0": "hang"})})
    messages = [Message(content, node, "query.trouble") for node in (1, 2)]
    first, second = StreamingGrid(grid).send_and_receive(messages, timeout=0.5)
    assert first.error.reason == "no reply within 0.5 s"
    assert second.has_content()
    assert not any(reply.has_error() for reply in exchange(grid, "query"))


def test_an_exchange_that_is_left_early_does_not_disturb_the_next(grid: InProcessGrid) -> None:
    content = RecordDict({"arrays": arrays(), "config": ConfigRecord()})
    messages = [Message(content, node, "query") for node in range(1, NODES + 1)]
    replies = StreamingGrid(grid).send_and_receive(messages)
    next(replies)
    replies.close()
    assert [r.metadata.src_node_id for r in exchange(grid, "query")] == list(range(1, NODES + 1))


def test_shared_memory_is_used_again(grid: InProcessGrid) -> None:
    def owned() -> set[str]:
        return set(grid._backend._arena._owned)

    pool = grid._backend
    exchange(grid, "query")
    while any(None in worker.replies for worker in pool._workers):  # until each answered twice
        exchange(grid, "query")
    before = owned()
    for _ in range(5):
        exchange(grid, "query")
    assert owned() == before
    assert not grid._backend._broadcasts


@needs_proc
def test_close_leaves_no_process_and_no_memory() -> None:
    grid = InProcessGrid("echo_app:app", NODES, workers=1)
    exchange(grid, "query")
    content = RecordDict({"config": ConfigRecord({"0": "hang"})})
    ids = grid.push_messages([Message(content, 1, "query.trouble")])
    assert grid.pull_messages(ids, timeout=0.0) == []
    pool = grid._backend
    pids = [worker.leader.process.pid for worker in pool._workers]
    names = list(pool._arena._owned)
    assert names
    assert all(Path("/dev/shm", name.lstrip("/")).exists() for name in names)
    start = time.monotonic()
    grid.close()
    assert time.monotonic() - start < 2 * workers._CLOSE_SECONDS
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)
    assert not any(Path("/dev/shm", name.lstrip("/")).exists() for name in names)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from nmoe_flower.engine import InProcessGrid

grid = InProcessGrid("echo_app:app", 2, workers=2)  # no main guard: workers do not run this file
content = RecordDict({"arrays": ArrayRecord([]), "config": ConfigRecord({"0": "hang"})})
messages = [Message(content, node, "query.trouble") for node in (1, 2)]
ids = grid.push_messages(messages)
print(len(list(grid.pull_messages(ids))), *grid._backend._arena._owned, flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_proc
@pytest.mark.parametrize("how", ["kill", "exit"])
def test_no_process_outlives_its_parent(how: str, tmp_path: Path) -> None:
    """Every process holds the error pipe, so ``run`` returns when the last of them has ended."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(Path(__file__).parent), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    answered, *names = done.stdout.split()
    assert answered == "1"
    assert names
    assert not any(Path("/dev/shm", name.lstrip("/")).exists() for name in names)
    if how == "kill":
        assert done.returncode == -signal.SIGKILL
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_an_app_that_a_worker_cannot_import() -> None:
    with (
        InProcessGrid("no_such_module:app", 2, workers=1) as grid,
        pytest.raises(EngineError, match=r"worker failed to start.*no_such_module"),
    ):
        grid.send_and_receive([Message(RecordDict(), 1, "query")])


def test_a_worker_that_dies_while_it_loads(tmp_path: Path) -> None:
    (tmp_path / "deadly_app.py").write_text("import os\nos._exit(5)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with (
            InProcessGrid("deadly_app:app", 2, workers=1) as grid,
            pytest.raises(EngineError, match="died while it loaded 'deadly_app:app': exit code 5"),
        ):
            grid.send_and_receive([Message(RecordDict(), 1, "query")])
    finally:
        sys.path.remove(str(tmp_path))
