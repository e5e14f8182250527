"""Client processes on the nodes of a Ray cluster, and which client's message goes to which.

A client stays on one node, where its store and its decoded images are, as long as that node lives.
A node that dies takes the messages with it that were there; its clients move to those that are
left, and find their own files only if all nodes write to one file system.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nmoe_flower.engine.cluster import Node
from nmoe_flower.engine.described import describe
from nmoe_flower.errors import EngineError

__all__ = ["Actors", "Check"]

Check = Callable[[Mapping[str, Any]], None]
"""Raises what a node cannot do, given the run configuration; sent to the node by its name."""

Answer = tuple[Any, Any]
"""A reply and the client's context."""

_log = logging.getLogger("flwr")

_LOOK_SECONDS = 0.1
_DISCOVER_SECONDS = 5.0
_SILENCE_SECONDS = 30.0
_MOST_STARTS = 3


class _Place:
    """A node, what is known of it, and its actors."""

    def __init__(self, node: Node, slots: int, check: Any) -> None:
        self.node = node
        self.slots = slots
        self.check = check  # reference to the check's outcome; None once it is known
        self.starting: dict[Any, Any] = {}  # actor by the reference that tells it is ready
        self.idle: list[Any] = []
        self.clients = 0
        self.failed_starts = 0


class Actors:
    """Actors on every node that can run clients; safe to call from many threads.

    Args:
        nodes: Tells which nodes are alive.
        start: Starts an actor on the node with this id; a method ``run`` answers a message.
        check: Starts the check of a node, given its id and the run configuration.
        cpus: Cores a client takes.
        gpus: What of a GPU a client takes.
        most: Most actors at once; None: as many as fit.

    Raises:
        EngineError: No client fits on any node.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[Node]],
        *,
        start: Callable[[str], Any],
        check: Callable[[str, Mapping[str, Any]], Any],
        cpus: float,
        gpus: float,
        most: int | None = None,
    ) -> None:
        self._nodes, self._start, self._check = nodes, start, check
        self._cpus, self._gpus, self._most = cpus, gpus, most
        self._changed = threading.Condition()
        self._places: dict[str, _Place] = {}
        self._unfit: dict[str, str] = {}
        self._homes: dict[int, str] = {}
        self._run_config: Mapping[str, Any] | None = None
        self._next_look = self._next_discovery = 0.0
        self._silent_until = time.monotonic() + _SILENCE_SECONDS
        present = nodes()
        if not any(node.slots(cpus, gpus) for node in present):
            each = f"{cpus:g} cores" + (f" and {gpus:g} of a GPU" if gpus else "")
            found = "; ".join(f"{n.name}: {n.cpus:g} cores, {n.gpus:g} GPUs" for n in present)
            raise EngineError(f"no node of the Ray cluster has the {each} of a client: {found}")

    def run(self, app: Any, message: Any, partition: int, context: Any) -> Answer:
        """Have a client answer a message on its node; waits until there is room.

        Args:
            app: Function that returns the ClientApp.
            message: What it is asked.
            partition: The client's partition id.
            context: The client's context.

        Raises:
            EngineError: The process or the node of the client died, or no node is left.
            Exception: What the ClientApp raised.
        """
        from ray import exceptions, get

        place, actor = self._take(partition, context.run_config)
        lost = (
            exceptions.RayActorError,
            exceptions.ActorUnschedulableError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
            exceptions.WorkerCrashedError,
        )
        try:
            _, reply, changed = get(actor.run.remote(app, message, str(partition), context))
        except lost as error:
            self._lose(place, actor)
            raise EngineError(
                f"the process of client {partition} on node {place.node.name} is gone "
                f"({type(error).__name__}): out of memory, a crash in native code, or a lost node"
            ) from None
        except BaseException:
            self._give_back(place, actor)
            raise
        self._give_back(place, actor)
        return reply, changed

    def close(self) -> None:
        """End all actors."""
        from ray import kill

        with self._changed:
            for place in self._places.values():
                for actor in [*place.idle, *place.starting.values()]:
                    kill(actor)
            self._places.clear()

    def _take(self, partition: int, run_config: Mapping[str, Any]) -> tuple[_Place, Any]:
        with self._changed:
            if self._run_config is None:
                self._run_config = dict(run_config)
            while True:
                self._look()
                place = self._home(partition)
                if place is not None and place.idle:
                    return place, place.idle.pop()
                self._changed.wait(_LOOK_SECONDS)

    def _give_back(self, place: _Place, actor: Any) -> None:
        with self._changed:
            self._silent_until = time.monotonic() + _SILENCE_SECONDS
            place.idle.append(actor)
            self._changed.notify_all()

    def _lose(self, place: _Place, actor: Any) -> None:
        """The next of its kind tells whether the node is still there."""
        from ray import kill

        with self._changed:
            kill(actor)
            if place.node.id in self._places:
                self._start_on(place)
            self._changed.notify_all()

    def _home(self, partition: int) -> _Place | None:
        """The place of a client: as before, or where there is most room; None: not known yet."""
        home = self._places.get(self._homes.get(partition, ""))
        if home is not None:
            return home if home.check is None else None
        if any(place.check is not None for place in self._places.values()):
            return None  # who knows which of them will do
        fit = [place for place in self._places.values() if place.slots]
        if not fit:
            reasons = "; ".join(self._unfit.values()) or "it has no node left"
            raise EngineError(f"no node of the Ray cluster can run a client: {reasons}")
        home = min(fit, key=lambda place: (place.clients / place.slots, place.node.id))
        home.clients += 1
        self._homes[partition] = home.node.id
        return home

    def _look(self) -> None:
        """Take up nodes that came or left, and the outcome of what was started."""
        from ray import wait

        now = time.monotonic()
        if now < self._next_look:
            return
        if now >= self._next_discovery:
            self._discover()
            self._next_discovery = now + _DISCOVER_SECONDS
        for place in list(self._places.values()):
            if place.check is not None and wait([place.check], timeout=0)[0]:
                self._judge(place)
            ready, _ = (
                wait(list(place.starting), num_returns=len(place.starting), timeout=0)
                if (place.starting)
                else ([], [])
            )
            for reference in ready:
                self._settle(place, reference)
        self._next_look = now + _LOOK_SECONDS
        if now > self._silent_until:
            self._silent_until = now + _SILENCE_SECONDS
            if not any(place.idle for place in self._places.values()):
                _log.warning("waiting for the Ray cluster: its cores are busy, or a node is lost")

    def _discover(self) -> None:
        """Which nodes there are; what was started on one that is gone may never say so."""
        present = self._nodes()
        alive = _ids(present)
        for lost in [place for place in self._places.values() if place.node.id not in alive]:
            self._leave(lost)
        room = self._room()
        for node in present:
            if node.id in self._places or node.id in self._unfit or not room:
                continue
            slots = min(node.slots(self._cpus, self._gpus), room)
            if slots:
                room -= slots
                check = self._check(node.id, self._run_config or {})
                self._places[node.id] = _Place(node, slots, check)

    def _room(self) -> int:
        taken = sum(place.slots for place in self._places.values())
        return 1 << 30 if self._most is None else max(self._most - taken, 0)

    def _judge(self, place: _Place) -> None:
        """Start a node's actors, or leave the node out and say why."""
        from ray import get
        from ray.exceptions import RayTaskError

        try:
            get(place.check)
        except Exception as error:
            cause = getattr(error, "cause", error) if isinstance(error, RayTaskError) else error
            self._drop(place, f"node {place.node.name} cannot run clients: {describe(cause)}")
            return
        place.check = None
        for _ in range(place.slots):
            self._start_on(place)
        _log.info("node %s runs %d clients at once", place.node.name, place.slots)

    def _start_on(self, place: _Place) -> None:
        actor = self._start(place.node.id)
        place.starting[actor.__ray_ready__.remote()] = actor

    def _settle(self, place: _Place, reference: Any) -> None:
        from ray import get

        actor = place.starting.pop(reference)
        try:
            get(reference)
        except Exception as error:
            if place.node.id not in _ids(self._nodes()):
                self._leave(place)
                return
            place.failed_starts += 1
            if place.failed_starts < _MOST_STARTS:
                self._start_on(place)
                return
            why = f"node {place.node.name} cannot start clients: {describe(error)}"
            self._drop(place, why)
        else:
            place.failed_starts = 0
            place.idle.append(actor)
            self._changed.notify_all()

    def _leave(self, place: _Place) -> None:
        self._drop(place, f"node {place.node.name} has left the Ray cluster")

    def _drop(self, place: _Place, why: str) -> None:
        if self._places.pop(place.node.id, None) is not None:
            self._unfit[place.node.id] = why
            self._next_discovery = 0.0
            _log.error("%s", why)


def _ids(nodes: Sequence[Node]) -> set[str]:
    return {node.id for node in nodes}
