"""Processes that make one run after another: here, or on the nodes of a Ray cluster."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from nmoe_flower.errors import EngineError

__all__ = ["INTERRUPTED", "STOPPED", "ClusterHosts", "Host", "Hosts", "LocalHosts"]

STOPPED = "its process was interrupted, and saved its last finished round"
INTERRUPTED = 130  # what a process ends with that was asked to, by Ctrl-C or a signal

Tell = Callable[["Host", str], None]
"""Takes a line that a host's process has written; an empty one: it has ended."""

_LAST_LINES = 3
_LOOK_SECONDS = 300.0  # a node may have to decode the data first
_SECOND_LOOK_SECONDS = 20.0
_SILENCE_SECONDS = 30.0  # then it is looked at whether the node is still there


class Host(Protocol):
    """A process that takes tasks as lines, one after another, so that torch is loaded once."""

    @property
    def where(self) -> str:
        """The machine, for people; empty: this one."""

    def give(self, line: str) -> None:
        """Send it a task."""

    def ended_well(self) -> bool:
        """Whether it ended of its own accord and without an error; waits for its end."""

    def lost(self) -> bool:
        """Whether its machine is gone, or it could not be kept there: not the fault of its run."""

    def reason(self) -> str:
        """Why it ended, in words."""

    def stop(self) -> None:
        """Let it save what it is at, and end."""

    def end(self, seconds: float) -> None:
        """Wait so many seconds at most, then kill it; let go of its files."""


class Hosts(Protocol):
    """Where processes may be."""

    def room(self) -> int:
        """How many there may be at once."""

    def start(self, tell: Tell) -> Host:
        """A new one, where there is most room."""

    def close(self) -> None:
        """No more will be started."""


class LocalHosts:
    """Processes of this machine.

    Args:
        words: The command line.
        most: How many at once.
        threads: Threads of torch in each, unless ``OMP_NUM_THREADS`` is set already. If all took
            every core, threads would wait for others that have none, for most of the time.
    """

    def __init__(self, words: Sequence[str], most: int, threads: int) -> None:
        self._words, self._most, self._threads = words, most, threads

    def room(self) -> int:
        """How many there may be at once."""
        return self._most

    def start(self, tell: Tell) -> Host:
        """A new one."""
        from nmoe_flower.engine import threads_environment

        environment = {**threads_environment(self._threads), **os.environ}
        return _LocalHost(_Process(self._words, environment=environment), tell)

    def close(self) -> None:
        """Nothing is held."""


class _Process:
    """A process with its streams, wherever it is."""

    def __init__(
        self,
        words: Sequence[str],
        folder: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._errors: IO[str] = tempfile.TemporaryFile(  # noqa: SIM115 - read at the end
            "w+", encoding="utf-8", errors="replace"
        )
        self._process = subprocess.Popen(
            list(words),
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C reaches it through us, once
        )
        self._reaper = threading.Thread(target=self._reap, daemon=True)
        self._reaper.start()

    def _reap(self) -> None:
        """Once it has ended, end what it leaves behind: that could hold its streams open."""
        from nmoe_flower.engine import end_group

        self._process.wait()
        end_group(self._process.pid)

    def give(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended already, and will be reaped
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def lines(self) -> Iterator[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # noqa: UP028 - Ray sends what a file does not take
            yield line

    def wait(self) -> tuple[int, str]:
        """The exit code and, in words, why it ended."""
        code = self._process.wait()
        if code < 0:
            with suppress(ValueError):
                ended = signal.Signals(-code).name
                hint = ": the system may be out of memory" if ended == "SIGKILL" else ""
                return code, f"its process was ended by {ended}{hint}"
        if code == INTERRUPTED:
            return code, STOPPED
        last = []
        with suppress(ValueError):  # closed
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-_LAST_LINES:]
        return (
            code,
            f"its process ended with exit code {code}: {' / '.join(last) or 'without a word'}",
        )

    def stop(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def end(self, seconds: float) -> None:
        self._reaper.join(seconds)
        if self._reaper.is_alive():
            self._process.kill()
            self._reaper.join()
        self._errors.close()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


class _LocalHost:
    """A process of this machine, and the thread that reads what it writes."""

    where = ""

    def __init__(self, process: _Process, tell: Tell) -> None:
        self._process, self._tell = process, tell
        self.give, self.stop, self.end = process.give, process.stop, process.end
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.lines():
            self._tell(self, line)
        self._tell(self, "")

    def ended_well(self) -> bool:
        return self._process.wait()[0] == 0

    def lost(self) -> bool:
        return False

    def reason(self) -> str:
        return self._process.wait()[1]


class ClusterHosts:
    """Processes on the nodes of a Ray cluster that is there.

    Every node must find the working folder and ``shared`` under the same paths, the package, and
    the data; one that does not is left out, and told. This process becomes a driver of the cluster.

    Args:
        address: The cluster, ``auto`` or ``HOST:PORT``.
        program: The command line after the interpreter, of which every node has its own.
        shared: A folder that every node must see, as all runs are in it.
        checks: Flat run configurations whose data every node must be able to open.
        cores: Cores that each process takes.
        most: How many at once.
        say: Takes a line about a node that is left out.

    Raises:
        EngineError: There is no such cluster, or no node of it will do.
    """

    def __init__(
        self,
        address: str,
        program: Sequence[str],
        *,
        shared: Path,
        checks: Sequence[Mapping[str, Any]],
        cores: int,
        most: int,
        say: Callable[[str], None],
    ) -> None:
        from nmoe_flower.engine import cluster_at, join_cluster, living, require_ray

        require_ray()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of GPUs, which runs do not use
            join_cluster(cluster_at(address).address)  # looked at first: what is no Ray may hang
        self._program, self._most, self._cores = list(program), most, max(1, cores)
        self._shared, self._checks, self._say = shared, list(checks), say
        self._hosts: list[_ClusterHost] = []
        self._unfit: list[str] = []
        self._fit = self._tried(living())
        if not self.room():
            self.close()
            raise EngineError(
                f"no node of the Ray cluster at {address} can make a run with {self._cores} "
                "cores: " + ("; ".join(self._unfit) or "none has as many")
            )

    def room(self) -> int:
        """How many there may be at once on the nodes that are left."""
        fit: int = sum(node.slots(self._cores, 0) for node in self._left())
        return min(self._most, fit)

    def start(self, tell: Tell) -> Host:
        """A new one, on the node with most room."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        left = self._left()
        if not left:
            raise EngineError("no node is left in the Ray cluster")
        used = {node.id: 0 for node in left}
        for host in self._hosts:
            if not host.is_over and host.node in used:
                used[host.node] += 1
        node = min(left, key=lambda one: (used[one.id] / one.slots(self._cores, 0), one.id))
        remote: Any = ray.remote(_NodeProcess)
        actor = remote.options(
            num_cpus=self._cores,
            max_concurrency=4,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        ).remote(self._program, str(Path.cwd()))
        host = _ClusterHost(actor, node.id, node.name, tell)
        self._hosts.append(host)
        return host

    def close(self) -> None:
        """Leave the cluster; what is still there of ours ends."""
        import ray

        ray.shutdown()

    def _left(self) -> list[Any]:
        """The nodes that will do; one that has lost a process is tried again first."""
        from nmoe_flower.engine import living

        lost = {host.node for host in self._hosts if host.is_lost}
        if lost:
            self._hosts = [host for host in self._hosts if not host.is_lost]
            self._fit -= lost
            self._fit |= self._tried(
                [node for node in living() if node.id in lost], seconds=_SECOND_LOOK_SECONDS
            )
        found = [node for node in living() if node.id in self._fit]
        return [node for node in found if node.slots(self._cores, 0)]

    def _tried(self, nodes: Sequence[Any], *, seconds: float = _LOOK_SECONDS) -> set[str]:
        """Ids of those of the nodes that can make runs; the others are told."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from nmoe_flower import __version__
        from nmoe_flower.engine import describe

        fit = set()
        with tempfile.NamedTemporaryFile(dir=self._shared, prefix=".seen-by-nodes-") as seen:
            look: Any = ray.remote(num_cpus=0, max_retries=0)(_look_of(__version__))
            asked = {
                node: look.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
                ).remote(str(Path.cwd()), str(Path(seen.name).resolve()), self._checks)
                for node in nodes
            }
            for node, answer in asked.items():
                try:
                    ray.get(answer, timeout=seconds)
                except Exception as error:
                    cause = getattr(error, "cause", None) or error
                    self._unfit.append(f"node {node.name} is left out: {describe(cause)}")
                    self._say(self._unfit[-1])
                else:
                    fit.add(node.id)
        return fit


def _look_of(version: str) -> Callable[[str, str, Sequence[Mapping[str, Any]]], None]:
    """What every node must be able to do; it travels by its code, as the package may be missing."""

    def look(folder: str, seen: str, checks: Sequence[Mapping[str, Any]]) -> None:
        import os
        from pathlib import Path

        if not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        if not Path(seen).exists():
            raise FileNotFoundError(f"it does not see what we write to {Path(seen).parent}")
        import nmoe_flower

        if nmoe_flower.__version__ != version:
            raise ImportError(f"it has nmoe-flower {nmoe_flower.__version__}, here is {version}")
        os.chdir(folder)
        from nmoe_flower.client_app import check_node

        for values in checks:
            check_node(values)

    return look


class _NodeProcess(_Process):
    """A process of the interpreter of the node that it is made on."""

    def __init__(self, program: Sequence[str], folder: str) -> None:
        super().__init__([sys.executable, *program], folder)


class _ClusterHost:
    """A process on a node, and the thread that reads what it writes."""

    def __init__(self, actor: Any, node: str, where: str, tell: Tell) -> None:
        self._actor, self.node, self.where, self._tell = actor, node, where, tell
        self._end: tuple[int, str] | None = None
        self._gone = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether its process has ended, or is lost."""
        return self._end is not None or self.is_lost

    @property
    def is_lost(self) -> bool:
        """Whether its process is out of reach."""
        return bool(self._gone)

    def _read(self) -> None:
        import ray

        from nmoe_flower.engine import describe, living

        lines = self._actor.lines.options(num_returns="streaming").remote()
        try:
            while self._end is None:
                if ray.wait([lines], timeout=_SILENCE_SECONDS)[0]:
                    line = next(lines, None)
                    if line is None:
                        self._end = ray.get(self._actor.wait.remote())
                    else:
                        self._tell(self, ray.get(line))
                elif self.node not in {node.id for node in living()}:
                    # Ray may never tell of an actor that was to start there as the node died.
                    raise EngineError("it has left the Ray cluster")
        except Exception as error:  # Ray has many of its own
            self._gone = f"node {self.where} is gone, or its process ({describe(error)})"
        self._tell(self, "")

    def give(self, line: str) -> None:
        self._actor.give.remote(line)

    def ended_well(self) -> bool:
        self._thread.join()
        return self._end is not None and self._end[0] == 0

    def lost(self) -> bool:
        self._thread.join()
        return bool(self._gone)

    def reason(self) -> str:
        self._thread.join()
        return self._gone or ("" if self._end is None else self._end[1])

    def stop(self) -> None:
        self._actor.stop.remote()

    def end(self, seconds: float) -> None:
        import ray

        self._thread.join(seconds)
        with suppress(Exception):  # it is gone already
            ray.kill(self._actor)
