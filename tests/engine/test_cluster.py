"""A Ray cluster that is there: its address, its nodes, and clients on two real raylets."""

import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nmoe_flower.addresses import free_ports
from nmoe_flower.engine import cluster, flower
from nmoe_flower.engine.actors import Actors
from nmoe_flower.engine.cluster import Cluster, Node, cluster_at, join_cluster, named_address
from nmoe_flower.errors import DataError, EngineError

ray = pytest.importorskip("ray")


@pytest.mark.parametrize("text", [
    "", " ", "host", "host:", ":6379", "host:0", "host:65536", "host:x", "host:+1", "auto ",
    "ray://host:10001", "http://127.0.0.1:8265", "a b:6379", "::1:6379", "host:6379/x", "x" * 300,
])  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match=r"allowed: auto, HOST:PORT") as refused:
        named_address(text, {})
    assert repr(text[:80]) in str(refused.value)
    if text:
        with pytest.raises(EngineError, match=r"^RAY_ADDRESS is "):
            named_address(None, {"RAY_ADDRESS": text})


def test_the_argument_goes_before_the_variable() -> None:
    assert named_address("[::1]:6379", {"RAY_ADDRESS": "auto"}) == "[::1]:6379"
    assert named_address("auto", {}) == "auto"
    assert named_address(None, {"RAY_ADDRESS": "local"}) is None
    assert named_address(None, {}) is None


@pytest.mark.parametrize("ask", [cluster_at, join_cluster])
def test_a_cluster_that_is_not_there_is_one_sentence_at_once(ask: Any) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(EngineError, match=f"no Ray cluster at {address}.*ray start --head"):
        ask(address)


def test_what_listens_but_is_no_ray_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_JOIN_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(EngineError, match=rf"{address} does not answer within 0\.3 s"):
            cluster_at(address)


def test_what_ray_says_becomes_one_sentence() -> None:
    """The first text is what ``ray.init`` raises for a cluster of another version."""
    mismatch = RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n    Python: 3.12.1\n"
        "This process on node 10.0.0.2 was started with:\n    Ray: 2.55.1\n    Python: 3.11.2\n"
    )
    assert cluster._in_words("h:1", mismatch) == (
        "the Ray cluster at h:1 runs Ray 2.40.0 on Python 3.12.1, here is Ray 2.55.1 on Python "
        "3.11.2: every machine needs the same"
    )
    nothing = ConnectionError("Could not find any running Ray instance.")
    assert "no Ray cluster runs on this machine" in cluster._in_words("auto", nothing)
    assert "does not answer: OSError: x" in cluster._in_words("h:1", OSError("x"))


def test_a_cluster_tells_what_it_is_made_of() -> None:
    found = Cluster("h:1", (Node("1", "a", 8, 2), Node("2", "b", 4, 0)))
    assert str(found) == "the Ray cluster at h:1: 2 nodes, 12 cores, 2 GPUs"


class Reference:
    """An outcome that is there already, or ``None`` for one that is still to come."""

    def __init__(self, outcome: object) -> None:
        self.outcome = outcome


SILENCE = object()


class FakeRay:
    """Nodes of one or more cores, whose actors answer with the name of their node."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> None:
        self.nodes, self.refusals = list(nodes), dict[str, Exception]()
        self.checked, self.started = list[str](), list[str]()
        self.silent = set[str]()  # nodes that are asked in vain
        monkeypatch.setattr(ray, "wait", self._wait)
        monkeypatch.setattr(ray, "get", self._get)
        monkeypatch.setattr(ray, "kill", lambda actor: None)

    def actors(self, **options: Any) -> Actors:
        settings = {"cpus": 1.0, "gpus": 0.0, **options}
        return Actors(lambda: list(self.nodes), start=self._start, check=self._check, **settings)

    def ask(self, actors: Actors, partition: int) -> Any:
        return actors.run(None, "ask", partition, SimpleNamespace(run_config={}))[0]

    def _wait(self, references: Any, **_: object) -> tuple[list[Any], list[Any]]:
        ready = [one for one in references if one.outcome is not SILENCE]
        return ready, [one for one in references if one not in ready]

    def _get(self, reference: Reference) -> Any:
        if isinstance(reference.outcome, Exception):
            raise reference.outcome
        return reference.outcome

    def _check(self, node: str, run_config: Mapping[str, Any]) -> Reference:
        self.checked.append(node)
        return Reference(self.refusals.get(node))

    def _start(self, node: str) -> Any:
        self.started.append(node)

        def there() -> Reference:
            if node in self.silent:
                return Reference(SILENCE)
            alive = node in {n.id for n in self.nodes}
            return Reference(None if alive else ray.exceptions.ActorUnschedulableError("gone"))

        def run(app: object, message: object, cid: str, context: object) -> Reference:
            alive = there().outcome is None and message != "crash"
            return Reference((cid, node, context) if alive else ray.exceptions.ActorDiedError())

        return SimpleNamespace(
            __ray_ready__=SimpleNamespace(remote=there), run=SimpleNamespace(remote=run)
        )


HERE, THERE = Node("a", "here", 1, 0), Node("b", "there", 3, 0)


def test_clients_are_spread_by_room_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 clients on 1 and 3 cores a quarter goes to the smaller node, and there they stay."""
    fake = FakeRay(monkeypatch, HERE, THERE)
    actors = fake.actors()
    first = [fake.ask(actors, partition) for partition in range(8)]
    assert sorted(first) == ["a"] * 2 + ["b"] * 6
    assert [fake.ask(actors, partition) for partition in range(8)] == first
    assert fake.checked == ["a", "b"]
    assert sorted(fake.started) == ["a", "b", "b", "b"]


def test_no_more_actors_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, HERE, THERE)
    fake.ask(fake.actors(most=2), 0)
    assert sorted(fake.started) == ["a", "b"]


def test_a_node_that_cannot_read_the_data_is_left_out_and_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeRay(monkeypatch, HERE, THERE)
    fake.refusals["a"] = DataError("/data/faces is missing")
    monkeypatch.setattr("nmoe_flower.engine.actors._log.propagate", True)
    actors = fake.actors()
    assert {fake.ask(actors, partition) for partition in range(6)} == {"b"}
    told = "node here cannot run clients: DataError: /data/faces is missing"
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == [told]
    fake.refusals["b"] = DataError("nor here")
    fake.started.clear()
    with pytest.raises(EngineError, match=r"no node .* can run a client: .*missing.*nor here"):
        fake.ask(fake.actors(), 0)
    assert not fake.started


def test_a_crash_costs_one_message_and_a_lost_node_moves_its_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeRay(monkeypatch, HERE, THERE)
    actors = fake.actors()
    homes = [fake.ask(actors, partition) for partition in range(8)]
    one = homes.index("a")
    with pytest.raises(EngineError, match=rf"client {one} on node here is gone \(ActorDied"):
        actors.run(None, "crash", one, SimpleNamespace(run_config={}))
    assert fake.ask(actors, one) == "a"  # by an actor that took the place of the first
    fake.nodes.remove(HERE)
    with pytest.raises(EngineError, match=rf"client {one} on node here is gone"):
        fake.ask(actors, one)
    assert [fake.ask(actors, partition) for partition in range(8)] == ["b"] * 8
    fake.nodes.remove(THERE)
    with pytest.raises(EngineError, match="is gone"):
        fake.ask(actors, 0)


def test_a_lost_node_that_is_asked_in_vain_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray may never tell of an actor that was to start on a node as that died."""
    monkeypatch.setattr("nmoe_flower.engine.actors._DISCOVER_SECONDS", 0.0)
    fake = FakeRay(monkeypatch, HERE, THERE)
    actors = fake.actors()
    homes = [fake.ask(actors, partition) for partition in range(8)]
    one = homes.index("a")
    fake.silent.add("a")
    with pytest.raises(EngineError, match=rf"client {one} on node here is gone"):
        actors.run(None, "crash", one, SimpleNamespace(run_config={}))
    fake.nodes.remove(HERE)
    assert fake.ask(actors, one) == "b"


def test_a_client_that_fits_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, HERE)
    with pytest.raises(EngineError, match=r"has the 1 cores and 0\.5 of a GPU of a client: here"):
        fake.actors(gpus=0.5)


def test_only_a_simulation_with_a_cluster_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any other process not even the address is looked at."""
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    flower.use_cluster(lambda config: None)


@pytest.mark.ray
@pytest.mark.flower
@pytest.mark.filterwarnings("ignore")
def test_a_raylet_that_is_killed_costs_its_clients_of_that_round(
    two_raylets: Any, tmp_path: Path
) -> None:
    """Client 1 is at work on the second raylet as that is killed; client 0 sees nothing of it."""

    class App:
        """What an actor calls; told to wait, it says that it is at work, and never returns."""

        def __call__(self, message: Any, context: Any) -> Any:
            import ray

            while message == "wait":
                (tmp_path / "at-work").touch()
                time.sleep(0.05)
            return ray.get_runtime_context().get_node_id()

    backend = flower._cluster_backend()(
        {"client_resources": {"num_cpus": 1}},
        address=two_raylets.address,
        check=lambda run_config: None,
    )
    backend.build(App)

    def ask(partition: int, message: str = "where") -> str:
        config = {"partition-id": partition}
        context = SimpleNamespace(node_config=config, run_config={})
        return str(backend.process_message(message, context)[0])

    try:
        homes = [ask(0), ask(1)]
        assert len(set(homes)) == 2
        second = next(n for n in two_raylets.worker_nodes if n.node_id in homes)
        hit = homes.index(second.node_id)
        lost: list[str] = []

        def wait() -> None:
            try:
                lost.append(ask(hit, "wait"))
            except EngineError as error:
                lost.append(str(error))

        asking = threading.Thread(target=wait, daemon=True)
        asking.start()
        deadline = time.monotonic() + 60
        while not (tmp_path / "at-work").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        two_raylets.remove_node(second, allow_graceful=False)
        assert ask(1 - hit) == homes[1 - hit]
        asking.join(60)
        assert len(lost) == 1
        assert f"the process of client {hit} on node" in lost[0]
        assert ask(hit) == homes[1 - hit]
    finally:
        backend.terminate()
