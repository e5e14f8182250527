import signal
from collections.abc import Iterable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from nmoe_flower.engine import InProcessGrid, StreamingGrid, flower
from nmoe_flower.engine.signals import interruptible
from nmoe_flower.errors import EngineError

pytestmark = pytest.mark.flower


def new_app(calls: list[int] | None = None) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        if calls is not None:
            calls.append(partition)
        count = context.state["seen"]["n"] + 1 if "seen" in context.state else 1
        context.state["seen"] = MetricRecord({"n": count})
        arrays = [x + partition for x in message.content["arrays"].to_numpy_ndarrays()]
        del message.content["arrays"]
        metrics = MetricRecord({"num-examples": 1, "calls": count})
        content = {"arrays": ArrayRecord(arrays), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    @app.query("config")
    def config(message: Message, context: Context) -> Message:
        found = ConfigRecord({**context.run_config, **context.node_config})
        return Message(RecordDict({"config": found}), reply_to=message)

    @app.query("failing")
    def failing(message: Message, context: Context) -> Message | None:
        kind = message.content["config"]["kind"]
        if kind == "raise":
            raise ValueError("bad shape (3, 4)")
        if kind == "exit":
            raise SystemExit("no data")
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "terminate":
            signal.raise_signal(signal.SIGTERM)
        return None

    return app


def broadcast(nodes: Iterable[int], action: str = "train", **config: str) -> list[Message]:
    arrays = ArrayRecord([np.zeros(2, np.float32)])
    content = RecordDict({"arrays": arrays, "config": ConfigRecord(dict(config))})
    return [Message(content, node, action) for node in nodes]


def test_nodes_are_numbered_and_know_their_partition() -> None:
    app = new_app()
    with InProcessGrid(app, 3, run_config={"lr": 0.5}, node_config={"site": "B"}) as grid:
        assert grid.get_node_ids() == [1, 2, 3]
        replies = grid.send_and_receive(broadcast([3, 1], "query.config"))
    assert [dict(reply.content["config"]) for reply in replies] == [
        {"lr": 0.5, "partition-id": 2, "num-partitions": 3, "site": "B"},
        {"lr": 0.5, "partition-id": 0, "num-partitions": 3, "site": "B"},
    ]


def test_state_stays_with_its_node_and_messages_stay_apart() -> None:
    with InProcessGrid(new_app(), 2) as grid:
        for expected in (1, 2):
            messages = broadcast([1, 2])
            for node, reply in enumerate(grid.send_and_receive(messages)):
                assert reply.content["metrics"]["calls"] == expected
                # The client removed "arrays" from its message, yet the other one had them too.
                np.testing.assert_array_equal(
                    reply.content["arrays"]["0"].numpy(), np.full(2, node, np.float32)
                )
            assert "arrays" in messages[0].content


def test_clients_run_one_per_pull() -> None:
    calls: list[int] = []
    with InProcessGrid(new_app(calls), 3) as grid:
        replies = iter(StreamingGrid(grid).send_and_receive(broadcast([1, 2, 3])))
        assert calls == []
        next(replies)
        assert calls == [0]
        next(replies)
        assert calls == [0, 1]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("raise", "ValueError: bad shape (3, 4)"),
        ("exit", "SystemExit: no data"),
        ("none", "returned NoneType, not a Message"),
    ],
)
def test_a_failing_client_is_an_error_reply(
    kind: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with InProcessGrid(new_app(), 2) as grid:
        (reply,) = grid.send_and_receive(broadcast([2], "query.failing", kind=kind))
    assert reply.metadata.src_node_id == 2
    assert reply.error.reason == reason
    if kind == "raise":
        assert "partition 1 failed" in caplog.text
        assert "Traceback" in caplog.text


def test_ctrl_c_in_a_client_ends_the_run() -> None:
    with InProcessGrid(new_app(), 1) as grid, pytest.raises(KeyboardInterrupt):
        grid.send_and_receive(broadcast([1], "query.failing", kind="interrupt"))


def test_a_stop_signal_in_a_client_ends_the_run() -> None:
    """It is meant for the process, not for the client that happens to compute."""
    with (
        interruptible(),
        InProcessGrid(new_app(), 1) as grid,
        pytest.raises(SystemExit, match="143"),
    ):
        grid.send_and_receive(broadcast([1], "query.failing", kind="terminate"))


def test_a_message_to_nobody_is_refused() -> None:
    with InProcessGrid(new_app(), 2) as grid:
        assert grid.push_messages(broadcast([3, 1, 0])) == ["", "1", ""]
        replies = grid.send_and_receive(broadcast([3]))
    assert replies[0].error.reason == "refused: no such node 3"


def test_fedavg_runs_unchanged() -> None:
    """Zeros plus partition i, equal weights: the mean of 0, 1, 2 and 3 is 1.5 a round."""
    with InProcessGrid(new_app(), 4) as grid:
        result = FedAvg(fraction_evaluate=0.0).start(
            grid, ArrayRecord([np.zeros(2, np.float32)]), num_rounds=2
        )
    np.testing.assert_array_equal(result.arrays["0"].numpy(), np.full(2, 3.0, np.float32))


def test_the_run_can_be_set() -> None:
    with InProcessGrid(new_app(), 1) as grid:
        assert grid.run.run_id == flower.identity()
        grid.set_run(flower.Run.create_empty(17))
        assert grid.run.run_id == 17


def test_abandoned_messages_are_never_run() -> None:
    calls: list[int] = []
    with InProcessGrid(new_app(calls), 2) as grid:
        ids = grid.push_messages(broadcast([1, 2]))
        grid.abandon_messages(ids[:1])
        assert len(grid.pull_messages(ids)) == 1
        assert grid.pull_messages(ids) == []
    assert calls == [1]


def test_a_closed_grid_says_so() -> None:
    grid = InProcessGrid(new_app(), 1)
    grid.close()
    grid.close()
    with pytest.raises(EngineError, match="closed"):
        grid.push_messages([])
    with pytest.raises(EngineError, match="closed"):
        grid.pull_messages([])


@pytest.mark.parametrize(
    ("client_app", "arguments", "error", "text"),
    [
        ("noapp", {}, EngineError, "'noapp' must have the form 'package.module:attribute'"),
        ("no_such_module:app", {}, EngineError, "ModuleNotFoundError: No module named"),
        ("nmoe_flower.engine:nothing", {}, EngineError, "no attribute 'nothing'"),
        ("nmoe_flower.seeds:derive_seed", {}, EngineError, "is a function, not a ClientApp"),
        (ClientApp(), {"workers": 2}, EngineError, "workers=2 needs the client app by name"),
        (ClientApp(), {"workers": -1}, ValueError, "workers must be 0 or more, got -1"),
        (ClientApp(), {"num_nodes": 0}, ValueError, "num_nodes must be at least 1, got 0"),
    ],
)
def test_bad_arguments(
    client_app: ClientApp | str, arguments: dict[str, int], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        InProcessGrid(client_app, **{"num_nodes": 2, **arguments})
