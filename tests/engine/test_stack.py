"""An engine that runs several clients at once where they train; the clients do not notice."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from nmoe_flower import running
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid, StreamingGrid, inprocess
from nmoe_flower.errors import EngineError
from nmoe_flower.results import RunFolder
from nmoe_flower.training import RowBatches, SharedLoss, fit, sgd, stack

pytestmark = pytest.mark.flower

ALONE = "note: engine.stack = 8: clients train together with --workers 0; here each trains alone"
NETWORK = nn.Linear(2, 1)  # one for all clients of this process


def squares(network: Any, batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
    lost: Tensor = (network(batch[0])[:, 0] - batch[1]).square()
    return lost if reduction == "none" else lost.mean()


def app_of(log: list[str]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        me = int(context.node_config["partition-id"])
        count = context.state["seen"]["n"] + 1 if "seen" in context.state else 1
        context.state["seen"] = MetricRecord({"n": count})
        if message.content["config"].get("broken") == me:
            raise ValueError("no data")
        if message.content["config"].get("stopped") == me:
            raise KeyboardInterrupt
        with torch.no_grad():
            for parameter in NETWORK.parameters():
                parameter.fill_(float(me))
        rows = torch.arange(6.0).view(3, 2) / (me + 2)
        order = np.arange(2 * (me + 1)).reshape(-1, 2) % 3
        log.append(f"{me} starts")
        result = fit(
            NETWORK,
            RowBatches((rows, torch.ones(3)), order),
            SharedLoss(squares, NETWORK),
            optimizer=sgd(NETWORK, learning_rate=0.1),
        )
        log.append(f"{me} ends")
        weights = [p.detach().numpy().copy() for p in NETWORK.parameters()]
        metrics = MetricRecord({"loss": result.loss, "steps": result.steps, "calls": count})
        content = {"arrays": ArrayRecord(weights), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        log.append("query")
        return Message(RecordDict(), reply_to=message)

    return app


def asked(nodes: list[int], kind: str = "train", **config: int) -> Iterator[Message]:
    for node in nodes:
        yield Message(RecordDict({"config": ConfigRecord(dict(config))}), node, kind)


def replies(stack: int, nodes: list[int], **config: int) -> tuple[list[str], list[Message]]:
    log: list[str] = []
    with InProcessGrid(app_of(log), 4, stack=stack) as grid:
        return log, list(grid.send_and_receive(asked(nodes, **config)))


def told(reply: Message) -> tuple[int, list[np.ndarray], dict[str, Any]]:
    assert not reply.has_error(), reply.error.reason
    arrays = reply.content["arrays"].to_numpy_ndarrays()
    return reply.metadata.src_node_id, arrays, dict(reply.content["metrics"])


def test_clients_that_share_a_network_get_their_own_weights_back() -> None:
    log, alone = replies(0, [1, 2, 3, 4])
    assert log[:2] == ["0 starts", "0 ends"]
    log, together = replies(3, [1, 2, 3, 4])
    assert log == [f"{me} {what}" for what in ("starts", "ends") for me in range(3)] + [
        "3 starts",
        "3 ends",
    ]
    for one, other in zip(alone, together, strict=True):
        node, arrays, metrics = told(one)
        same, found, told_too = told(other)
        assert node == same
        for wanted, got in zip(arrays, found, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
        assert told_too == pytest.approx(metrics, abs=1e-6)


def test_a_client_that_fails_fails_alone() -> None:
    _, found = replies(4, [1, 2, 3, 4], broken=1)
    assert [reply.has_error() for reply in found] == [False, True, False, False]
    assert "no data" in str(found[1].error.reason)
    _, alone = replies(0, [1, 2, 3, 4], broken=1)
    for place in (0, 2, 3):
        for wanted, got in zip(told(alone[place])[1], told(found[place])[1], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def test_a_signal_to_stop_ends_all_of_them() -> None:
    log: list[str] = []
    with (
        InProcessGrid(app_of(log), 4, stack=4) as grid,
        pytest.raises(KeyboardInterrupt),
    ):
        grid.send_and_receive(asked([1, 2, 3, 4], stopped=2))
    assert log == ["0 starts", "1 starts"]


def test_a_node_that_is_asked_twice_answers_one_after_the_other() -> None:
    _, found = replies(4, [1, 2, 2, 3])
    assert [told(reply)[2]["calls"] for reply in found] == [1, 1, 2, 1]


def test_what_trains_nothing_is_run_when_its_reply_is_pulled() -> None:
    log: list[str] = []
    with InProcessGrid(app_of(log), 3, stack=3) as grid:
        answers = iter(StreamingGrid(grid).send_and_receive(asked([1, 2, 3], "query")))
        next(answers)
        assert log == ["query"]


def test_as_many_messages_are_under_way_as_train_at_once() -> None:
    log: list[str] = []
    with InProcessGrid(app_of(log), 70, stack=70) as grid:
        next(iter(StreamingGrid(grid).send_and_receive(asked(list(range(1, 71))))))
    assert log.count("69 starts") == 1


def test_an_operation_without_a_rule_is_trained_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("no batching rule")

    stack._tell.cache_clear()
    _, wanted = replies(0, [1, 2])
    monkeypatch.setattr(stack, "vmap", refused)
    with caplog.at_level(logging.WARNING):
        _, found = replies(2, [1, 2])
    for one, other in zip(wanted, found, strict=True):
        assert [a.tolist() for a in told(one)[1]] == [a.tolist() for a in told(other)[1]]
    assert caplog.messages == ["engine.stack: Linear is trained alone: no batching rule"]


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"engine\.stack needs greenlet.*engine\.stack = 0"):
        InProcessGrid(ClientApp(), 1, stack=2)
    with pytest.raises(ValueError, match="stack must be 0 or more, got -1"):
        InProcessGrid(ClientApp(), 1, stack=-1)
    assert inprocess.InProcessGrid(ClientApp(), 1, stack=1)


def test_a_run_that_asks_for_it_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused() -> None:
        raise EngineError("engine.stack needs greenlet")

    monkeypatch.setattr(running, "require_rendezvous", refused)
    with pytest.raises(EngineError, match="needs greenlet"):
        running.run(set={"engine.stack": 2}, out=tmp_path, progress=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked_for", "workers", "note"),
    [
        ({"engine.stack": 8}, None, []),
        ({"engine.stack": 8}, 2, [ALONE]),
        ({}, 2, []),
    ],
    ids=str,
)
def test_workers_and_stacks(
    asked_for: dict[str, int],
    workers: int | None,
    note: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Where the key is set clients run in this process, unless workers are asked for."""
    folder = RunFolder.create(tmp_path / "run", Config.parse(asked_for), overwrite=False)
    told: list[str] = []
    started: list[int] = []
    view = SimpleNamespace(message=told.append)
    monkeypatch.setattr(
        running, "_train_in_process", lambda *given: started.append(given[2].size(folder.config))
    )
    running._train(folder, view, running._Crew("inprocess", workers), resumed=False)
    assert started == [workers or 0]
    assert [line for line in told if "engine.stack" in line] == note
