"""A Flower Grid without Ray or a SuperLink: clients run here, or in worker processes."""

import weakref
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
    UserConfigValue,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from nmoe_flower.engine import flower
from nmoe_flower.engine.answering import Nodes, answer_message, load_client_app
from nmoe_flower.engine.fork_server import ForkServer
from nmoe_flower.engine.shared import own
from nmoe_flower.engine.streaming import LEAST_WINDOW, StreamingGrid
from nmoe_flower.engine.workers import WorkerPool, busy_with
from nmoe_flower.errors import EngineError
from nmoe_flower.rendezvous import require_rendezvous, run_together

__all__ = ["InProcessGrid"]

Record = ArrayRecord | ConfigRecord | MetricRecord


class InProcessGrid(Grid):
    """Run a ClientApp behind Flower's Grid on this machine.

    Node ids are ``1 .. num_nodes``; node ``i + 1`` has ``partition-id`` i in its node config. A
    client that raises becomes an error reply, whatever it raises, and so does one whose worker
    process dies. Clients in workers may start processes of their own, such as a DataLoader's: they
    end with their worker, and that with this process, also if it is killed.

    Args:
        client_app: A ClientApp, or ``"package.module:attribute"``.
        num_nodes: How many virtual nodes.
        run_config: Given to every client as ``context.run_config``.
        workers: 0 runs clients in this process, one whenever a reply is pulled. More than 0 runs
            them in so many processes of one thread each; this needs the textual ``client_app``.
        node_config: Added to every node's config.
        stack: Without workers, so many clients train at once where their networks have one shape;
            a client of this app does not notice. 0 or 1: one after the other.
        forks: What two or more workers of this app are forked from, if it was started before; it is
            closed with them.

    Raises:
        EngineError: The ClientApp cannot be imported, or is an object although ``workers`` > 0; or
            ``stack`` needs a package that is not installed.
        ValueError: ``num_nodes`` is below 1, or ``workers`` or ``stack`` is negative.

    Example:
        >>> from flwr.app import Message, RecordDict
        >>> from flwr.clientapp import ClientApp
        >>> app = ClientApp()
        >>> @app.query()
        ... def query(message, context):
        ...     return Message(RecordDict(), reply_to=message)
        >>> with InProcessGrid(app, 2) as grid:
        ...     messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        ...     [reply.metadata.src_node_id for reply in grid.send_and_receive(messages)]
        [1, 2]
    """

    pull_blocks = True
    """``pull_messages`` waits for a reply itself; see StreamingGrid."""

    def __init__(
        self,
        client_app: ClientApp | str,
        num_nodes: int,
        *,
        run_config: Mapping[str, UserConfigValue] | None = None,
        workers: int = 0,
        node_config: Mapping[str, UserConfigValue] | None = None,
        stack: int = 0,
        forks: ForkServer | None = None,
    ) -> None:
        if num_nodes < 1:
            raise ValueError(f"num_nodes must be at least 1, got {num_nodes}")
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, got {workers}")
        if stack < 0:
            raise ValueError(f"stack must be 0 or more, got {stack}")
        if stack > 1:
            require_rendezvous()
        self.window = max(LEAST_WINDOW, stack)
        run_id = flower.identity()
        self._run = flower.Run.create_empty(run_id)
        self._ids = count(1)
        self._num_nodes = num_nodes
        nodes = Nodes(num_nodes, run_id, dict(run_config or {}), dict(node_config or {}))
        self._backend: _Inline | WorkerPool
        if not workers:
            app = load_client_app(client_app) if isinstance(client_app, str) else client_app
            self._backend = _Inline(app, nodes, stack)
        elif isinstance(client_app, str):
            self._backend = WorkerPool(client_app, nodes, workers, forks)
        else:
            raise EngineError(
                f"workers={workers} needs the client app by name, 'package.module:attribute': "
                f"a {type(client_app).__name__} object cannot travel to another process"
            )
        self._finalizer = weakref.finalize(self, self._backend.close)
        self.keeps_busy = busy_with(workers) if workers else self.window
        """Messages that keep it busy; see StreamingGrid."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; safe to call twice."""
        self._finalizer()

    def set_run(self, run: flower.Run) -> None:
        """Set what ``run`` returns."""
        self._run = run

    @property
    def run(self) -> flower.Run:
        """The run: empty but for its id, unless one was set."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message (deprecated in Flower: call ``Message``)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """``1 .. num_nodes``."""
        return list(range(1, self._num_nodes + 1))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; the id of one to an unknown node is empty.

        Raises:
            EngineError: The grid is closed.
        """
        self._check_open()
        ids = []
        for message in messages:
            if 1 <= message.metadata.dst_node_id <= self._num_nodes and message.has_content():
                message_id = str(next(self._ids))
                flower.rewrite(message, message_id=message_id)
                self._backend.submit(message)
                ids.append(message_id)
            else:
                ids.append("")
        return ids

    def pull_messages(
        self, message_ids: Iterable[str], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Wait until one of these replies is there, at most ``timeout`` seconds.

        Without workers this runs the next client and does not look at the time. Ids nobody knows
        are ignored; if nothing is under way, the answer is empty at once.

        Raises:
            EngineError: The grid is closed, or a worker cannot start.
        """
        self._check_open()
        return self._backend.collect(list(message_ids), timeout)

    def abandon_messages(self, message_ids: Iterable[str], *, overdue: bool = False) -> None:
        """Nobody will pull these; a worker that is stuck in an overdue one is restarted."""
        if self._finalizer.alive:
            self._backend.abandon(list(message_ids), overdue=overdue)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """All replies as a list, in the order of the messages."""
        return list(StreamingGrid(self).send_and_receive(messages, timeout=timeout))

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise EngineError("this InProcessGrid is closed")


class _Inline:
    """Runs clients in this process, one or a stack per pull; keeps one Context per node."""

    def __init__(self, app: ClientApp, nodes: Nodes, stack: int) -> None:
        self._app = app
        self._stack = max(1, stack)
        self._nodes = nodes
        self._contexts: dict[int, Context] = {}
        self._pending: deque[Message] = deque()

    def submit(self, message: Message) -> None:
        self._pending.append(message)

    def collect(self, wanted: Collection[str], timeout: float | None) -> list[Message]:
        chosen = self._chosen(set(wanted))
        self.abandon([message.metadata.message_id for message in chosen], overdue=False)
        if len(chosen) < 2:
            return [self._answer(message) for message in chosen]
        return run_together([partial(self._answer, message) for message in chosen])

    def _chosen(self, wanted: Collection[str]) -> list[Message]:
        """The first message that is wanted, and those that may be trained with it."""
        chosen: list[Message] = []
        nodes: set[int] = set()
        for message in self._pending:
            about = message.metadata
            if about.message_id not in wanted or about.dst_node_id in nodes:
                continue
            if chosen and about.message_type != chosen[0].metadata.message_type:
                continue
            chosen.append(message)
            nodes.add(about.dst_node_id)  # a node's state is in one place at a time
            trains = about.message_type.partition(".")[0] == MessageType.TRAIN
            if len(chosen) == self._stack or not trains:
                break
        return chosen

    def abandon(self, wanted: Collection[str], *, overdue: bool) -> None:
        gone = set(wanted)
        self._pending = deque(m for m in self._pending if m.metadata.message_id not in gone)

    def close(self) -> None:
        self._pending.clear()
        self._contexts.clear()

    def _answer(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        if node_id not in self._contexts:
            self._contexts[node_id] = self._nodes.context(node_id, RecordDict())
        found = answer_message(self._app, _own_copy(message), self._contexts[node_id])
        # To the message as it was sent: a client may have edited what it was asked, and by whom.
        return (
            Message(found.error, reply_to=message)
            if found.has_error()
            else Message(found.content, reply_to=message)
        )


def _own_copy(message: Message) -> Message:
    """The same message with records of its own (bytes shared): clients may edit theirs."""
    content = RecordDict({name: _own(record) for name, record in message.content.items()})
    return flower.message_with(content, flower.metadata_of(message))


def _own(record: Record) -> Record:
    if isinstance(record, ArrayRecord):
        return own(record)
    entries = {k: list(v) if isinstance(v, list) else v for k, v in record.items()}
    kind: Any = MetricRecord if isinstance(record, MetricRecord) else ConfigRecord
    copy: Record = kind(entries)
    return copy
