import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from unittest import mock

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.engine import (
    InProcessGrid,
    StreamingGrid,
    answering,
    exchange,
    flower,
    streaming,
    workers,
)
from nmoe_flower.engine.flower import NodeInfo, Run

pytestmark = pytest.mark.flower


class FakeGrid(Grid):
    """Answers whenever ``choose(under way)`` says so; node ids above 1000 are refused."""

    def __init__(
        self,
        choose: Callable[[list[str]], Sequence[str]],
        *,
        lost: Iterable[int] = (),
        unavailable: Iterable[int] = (),
        leave_out: bool = False,
    ) -> None:
        self._choose = choose
        self._lost = set(lost)
        self._unavailable = set(unavailable)
        self._leave_out = leave_out
        self._under_way: dict[str, Message] = {}
        self.pushes: list[int] = []
        self.unanswered = 0
        self.most_under_way = 0
        self.marker = "of the wrapped grid"

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        assert isinstance(messages, list)
        self.pushes.append(len(messages))
        ids: list[str | None] = []
        for message in messages:
            node = message.metadata.dst_node_id
            flower.rewrite(message, message_id=f"id-{node}")
            if node > 1000:
                ids += [] if self._leave_out else [None]
                continue
            self._under_way[f"id-{node}"] = message
            ids.append(f"id-{node}")
        self.most_under_way = max(self.most_under_way, len(self._under_way))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        able = [
            name
            for name in message_ids
            if self._under_way[name].metadata.dst_node_id not in self._lost
        ]
        return [self._reply(self._under_way.pop(name)) for name in self._choose(able)]

    def _reply(self, message: Message) -> Message:
        if message.metadata.dst_node_id not in self._unavailable:
            return Message(message.content, reply_to=message)
        error = Message(Error(5, "Node Unavailable"), reply_to=message)
        flower.rewrite(error, src_node_id=1)
        return error

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        return Run.create_empty(9)

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return [10, 11]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None):
        raise AssertionError("the wrapped grid's own exchange is never used")


@pytest.fixture(autouse=True)
def _identity() -> None:
    InProcessGrid(answering.ClientApp(), 1).close()


def messages(nodes: Iterable[int]) -> list[Message]:
    return [
        Message(RecordDict({"config": ConfigRecord({"node": node})}), node, "train")
        for node in nodes
    ]


def everything(able: list[str]) -> list[str]:
    return able


NODE_IDS = st.integers(2, 20) | st.integers(990, 1010)


class Clock:
    """Time passes only in sleep."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(
    nodes=st.lists(NODE_IDS, unique=True, max_size=30),
    lost=st.sets(NODE_IDS),
    unavailable=st.sets(NODE_IDS),
    window=st.integers(1, 12),
    leave_out=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_one_reply_per_message_in_order_whatever_arrives_when(
    nodes: list[int],
    lost: set[int],
    unavailable: set[int],
    window: int,
    leave_out: bool,
    seed: int,
) -> None:
    chance = random.Random(seed)

    def choose(able: list[str]) -> list[str]:
        return chance.sample(able, chance.randint(0, len(able)))

    grid = FakeGrid(choose, lost=lost, unavailable=unavailable, leave_out=leave_out)
    wrapped = StreamingGrid(grid, window=window, poll=1.0)
    timeout = 100.0 if lost.intersection(nodes) else None
    with mock.patch.object(exchange, "time", Clock()):
        replies = list(wrapped.send_and_receive(iter(messages(nodes)), timeout=timeout))

    assert [reply.metadata.src_node_id for reply in replies] == nodes
    for node, reply in zip(nodes, replies, strict=True):
        if reply.has_content():
            assert reply.content["config"]["node"] == node
            assert node <= 1000
            assert node not in lost | unavailable
        else:
            assert timeout or node > 1000 or node in unavailable
            assert reply.error.reason
    assert grid.most_under_way <= window


def test_the_window_moves_only_when_a_reply_is_consumed() -> None:
    grid = FakeGrid(everything)
    replies = StreamingGrid(grid, window=4, poll=0.0).send_and_receive(messages(range(2, 12)))
    assert grid.pushes == [4]  # sent before anybody iterates
    for _ in range(4):
        next(replies)
    assert grid.pushes == [4]  # the fourth is still in the caller's hands: 3 + 4 = 7 may be out
    next(replies)
    assert grid.pushes == [4, 4]
    assert len(list(replies)) == 5
    assert grid.pushes == [4, 4, 2]


def test_a_grid_gets_no_more_at_once_than_keeps_it_busy() -> None:
    grid = FakeGrid(everything)
    grid.keeps_busy = 3
    replies = StreamingGrid(grid, poll=0.0).send_and_receive(messages(range(2, 12)))
    assert [reply.metadata.src_node_id for reply in replies] == list(range(2, 12))
    assert grid.pushes == [3, 3, 3, 1]
    with InProcessGrid(answering.ClientApp(), 1) as inline:
        assert inline.keeps_busy == inline.window  # may be trained as one stack
    assert workers.busy_with(4) == 2 * 4 + 4 + 1  # two for each, and as many that wait, and one


def test_replies_that_wait_for_a_slow_one_are_few_if_they_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One slow client: of 100 models the server holds those of 3 MB, not all others.

    The first is answered once nothing else is under way. Each reply has 1 MB; two are under way at
    a time, so that beside the 3 MB there is at most the one that was under way meanwhile.
    """
    early: list[int] = []

    def slow_first(able: list[str]) -> list[str]:
        first = min(able, key=lambda name: int(name.removeprefix("id-")))
        if rest := [name for name in able if name != first]:
            return rest[:1]
        early.append(sum(grid.pushes) - 1 - len(seen))
        return [first]

    record = ArrayRecord([np.zeros(250_000, np.float32)])
    sent = [Message(RecordDict({"arrays": record}), node, "train") for node in range(2, 22)]
    monkeypatch.setattr(exchange, "_MOST_EARLY_BYTES", 3_000_000)
    grid = FakeGrid(slow_first)
    grid.keeps_busy = 2
    seen: list[int] = []
    for reply in StreamingGrid(grid, poll=0.0).send_and_receive(sent):
        seen.append(reply.metadata.src_node_id)
    assert seen == list(range(2, 22))
    assert max(early) == 3
    assert len(early) == 5  # 1 + 3 replies each time


def test_messages_are_read_as_the_window_moves() -> None:
    taken = []

    def source() -> Iterable[Message]:
        for message in messages(range(2, 10)):
            taken.append(message.metadata.dst_node_id)
            yield message

    replies = StreamingGrid(FakeGrid(everything), window=3, poll=0.0).send_and_receive(source())
    assert taken == [2, 3, 4]
    assert len(list(replies)) == 8
    assert taken == list(range(2, 10))


def test_a_silent_node_is_named_and_the_others_keep_their_replies() -> None:
    grid = FakeGrid(everything, lost=[3])
    wrapped = StreamingGrid(grid, window=2, poll=0.001)
    replies = list(wrapped.send_and_receive(messages([2, 3, 4, 5]), timeout=0.01))
    assert [reply.has_error() for reply in replies] == [False, True, False, True]
    assert replies[1].metadata.src_node_id == 3
    assert replies[1].error.reason == "no reply within 0.01 s"
    # 4 was pushed when 2 was consumed and had answered; 5 had no room before the deadline.
    assert replies[3].error.reason == "not sent: the exchange ended after 0.01 s"


class RestartingGrid(FakeGrid):
    """Node 3 keeps silent; it is restarted at ``at`` seconds, and answers then if ``late``."""

    def __init__(self, clock: Clock, *, at: float, late: bool = False) -> None:
        super().__init__(everything, lost=[3])
        self._clock, self._at, self._late = clock, at, late

    def get_nodes(self) -> list[NodeInfo]:
        gone = self._clock.now >= self._at
        if gone and self._late:
            self._lost.clear()
        started = {2: "09:00", 3: "10:00" if gone else "09:00", 4: "09:00"}
        return [NodeInfo(node_id=n, last_activated_at=at) for n, at in started.items()]


def ask_restarting(*, at: float, late: bool = False) -> tuple[list[Message], float]:
    clock = Clock()
    with mock.patch.object(exchange, "time", clock):
        wrapped = StreamingGrid(RestartingGrid(clock, at=at, late=late), poll=0.1)
        return list(wrapped.send_and_receive(messages([2, 3, 4]), timeout=3600.0)), clock.now


def test_a_node_that_comes_back_without_its_message_holds_nobody_up() -> None:
    """It is looked for every 5 s, at the next pull: a restart after 62 s is seen at 68 s."""
    replies, seconds = ask_restarting(at=62.0)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].metadata.src_node_id == 3
    assert replies[1].error.reason.startswith("the node was restarted")
    assert 62.0 <= seconds <= 68.0


def test_a_node_that_answered_and_was_then_restarted_has_answered() -> None:
    replies, _ = ask_restarting(at=62.0, late=True)
    assert not any(reply.has_error() for reply in replies)


def test_a_node_restarted_before_it_was_asked_is_waited_for() -> None:
    replies, seconds = ask_restarting(at=0.0)
    assert replies[1].error.reason == "no reply within 3600 s"
    assert seconds == pytest.approx(3600.0, abs=0.2)


def test_grids_within_the_process_are_not_asked_for_their_nodes() -> None:
    grid = FakeGrid(everything)
    vars(grid).update(pull_interval=0.1)
    with mock.patch.object(FakeGrid, "get_nodes", side_effect=AssertionError):
        assert len(list(StreamingGrid(grid).send_and_receive(messages([2])))) == 1


def test_an_error_of_the_superlink_is_put_down_to_the_node_it_was_meant_for() -> None:
    grid = FakeGrid(everything, unavailable=[7])
    (reply,) = StreamingGrid(grid, poll=0.0).send_and_receive(messages([7]))
    assert reply.metadata.src_node_id == 7
    assert reply.error == Error(5, "Node Unavailable")


@pytest.mark.parametrize("leave_out", [True, False], ids=["left out", "None"])
def test_a_refused_message_is_answered_with_an_error(leave_out: bool) -> None:
    grid = FakeGrid(everything, leave_out=leave_out)
    replies = list(StreamingGrid(grid, poll=0.0).send_and_receive(messages([2, 2000, 3])))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.reason == "refused: no such node 2000"
    assert replies[1].metadata.src_node_id == 2000


def test_no_messages_no_replies() -> None:
    grid = FakeGrid(everything)
    assert list(StreamingGrid(grid).send_and_receive([])) == []
    assert grid.pushes == []


def test_it_keeps_no_reference_to_a_reply_it_handed_over() -> None:
    import gc
    import weakref

    replies = StreamingGrid(FakeGrid(everything), window=3, poll=0.0).send_and_receive(
        messages(range(2, 8))
    )
    gc.disable()
    try:
        for _ in range(6):
            seen = weakref.ref(next(replies))
            assert seen() is None
    finally:
        gc.enable()


def test_around_wraps_once() -> None:
    wrapped = StreamingGrid.around(FakeGrid(everything))
    assert StreamingGrid.around(wrapped) is wrapped


def test_everything_else_is_the_wrapped_grids() -> None:
    grid = FakeGrid(everything)
    wrapped = StreamingGrid(grid)
    assert wrapped.get_node_ids() == [10, 11]
    assert [node.node_id for node in wrapped.get_nodes()] == [10, 11]
    assert wrapped.run.run_id == 9
    assert wrapped.marker == "of the wrapped grid"
    assert wrapped.push_messages(messages([2])) == ["id-2"]
    assert len(wrapped.pull_messages(["id-2"])) == 1
    with pytest.raises(AttributeError, match="no_such_thing"):
        wrapped.no_such_thing  # noqa: B018


@pytest.mark.parametrize(
    ("attributes", "seconds"),
    [
        ({"pull_interval": 0.1}, 0.005),
        ({"pull_interval": 0.005}, 0.005),
        ({"pull_blocks": True}, 0.0),
        ({}, 0.1),
    ],
)
def test_how_often_it_asks(attributes: dict[str, object], seconds: float) -> None:
    grid = FakeGrid(everything)
    vars(grid).update(attributes)
    assert streaming._poll_for(grid) == seconds


class SlowGrid(FakeGrid):
    """Node n answers n seconds after the messages were sent; notes when it is asked."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(lambda able: [name for name in able if int(name[3:]) <= clock.now])
        self._clock = clock
        self.asked: list[float] = []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.asked.append(self._clock.now)
        return super().pull_messages(message_ids)


def test_a_long_wait_is_looked_at_less_often() -> None:
    """Pauses of a tenth of the wait, from 0.1 s to 1 s, and from 0.1 s again after a reply."""
    clock = Clock()
    grid = SlowGrid(clock)
    with mock.patch.object(exchange, "time", clock):
        replies = list(StreamingGrid(grid, poll=0.1).send_and_receive(messages([5, 35])))
    assert [reply.metadata.src_node_id for reply in replies] == [5, 35]
    first = min(at for at in grid.asked if at >= 5)
    assert first <= 5 * 1.1
    assert clock.now <= 35 + 1
    pauses = [later - at for at, later in itertools.pairwise(grid.asked)]
    assert max(pauses) == pytest.approx(1.0)
    assert pauses[grid.asked.index(first) + 1] == pytest.approx(0.1)
    # 10 + ln(5) / ln(1.1) = 27 pulls; then 10 + ln(10) / ln(1.1) = 34, and one a second.
    assert len(grid.asked) < 27 + 34 + 30


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        StreamingGrid(FakeGrid(everything), window=0)
