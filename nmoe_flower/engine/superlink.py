"""Run a Flower app on a SuperLink of its own with the simulation runtime, then leave no trace.

``flwr run`` returns 0 when the ServerApp crashed, starts a daemon that stays, and installs the
app's dependencies anew for every run. Here the SuperLink lives in a temporary ``FLWR_HOME`` on a
free loopback port, the run's status is asked for, and everything is taken down again: on success,
on failure, on Ctrl-C, on SIGTERM, and by a guard process even if this process is killed.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nmoe_flower.addresses import free_ports
from nmoe_flower.engine import flower, processes
from nmoe_flower.engine.cluster import ADDRESS
from nmoe_flower.engine.programs import excerpt, parse_output, require_ray, start_program
from nmoe_flower.engine.signals import StopSignal, interruptible, uninterrupted
from nmoe_flower.errors import EngineError

__all__ = ["run_simulation"]

_NAME = "nmoe"
_TICK = 0.1
_LOOK_SECONDS = 300.0  # between looks at the status while the log goes on: one costs 2 s of a core
_LAST_LOOK_SECONDS = 2.0  # likewise once the log has ended
_READER_SECONDS = 5.0  # for the log's last lines
_LAST_WORDS = 15.0  # seconds a ServerApp that was stopped has to save what it has
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def run_simulation(
    app: Path,
    *,
    num_supernodes: int,
    cpus_per_client: int = 1,
    num_cpus: int | None = None,
    gpus_per_client: float = 0.0,
    log: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
    start_timeout: float = 60.0,
    environment: Mapping[str, str] | None = None,
    ray_address: str | None = None,
) -> None:
    """Run a Flower app on Ray-backed virtual clients and wait until it has finished.

    Args:
        app: Folder with the app's ``pyproject.toml``.
        num_supernodes: Virtual clients, partition ids ``0 .. num_supernodes - 1``.
        cpus_per_client: Cores per Ray actor.
        num_cpus: Cores Ray may use; the number of actors is ``num_cpus // cpus_per_client``. On a
            cluster None stands for all of it.
        gpus_per_client: GPU share per Ray actor.
        log: Takes each line of the run's log; called from another thread.
        on_tick: Called in this thread about ten times per second while the run goes on.
        start_timeout: Seconds the SuperLink has to answer.
        environment: Variables for the ServerApp and the clients, besides this process's own.
        ray_address: ``HOST:PORT`` of a Ray cluster whose nodes run the clients; None: Ray is
            started for this run, whatever ``RAY_ADDRESS`` says. On a cluster a client whose node or
            process dies loses the message it had, and the run goes on; the ClientApp must call
            ``engine.flower.use_cluster``.

    Raises:
        EngineError: The run could not start, did not finish, or lost an actor of its own Ray.
    """
    require_ray()
    settings = {
        "num-supernodes": num_supernodes,
        "client-resources-num-cpus": cpus_per_client,
        "client-resources-num-gpus": gpus_per_client,
        "init-args-log-to-driver": "false",
    }
    variables = {**(environment or {}), ADDRESS: ray_address or ""}
    if ray_address is None:
        cores = num_cpus or os.cpu_count() or 1
        settings["init-args-num-cpus"] = max(cores, cpus_per_client)
    elif num_cpus is not None:
        variables[flower.CLUSTER_CLIENTS] = str(max(num_cpus // cpus_per_client, 1))
    with interruptible(), _SuperLink(start_timeout, variables) as link:
        run_id = link.submit(app, settings)
        try:
            link.follow(run_id, log, on_tick)
        except (KeyboardInterrupt, StopSignal):
            link.stop(run_id)
            raise


class _SuperLink:
    """A SuperLink in a temporary home; entering starts it, leaving ends all it started."""

    def __init__(self, start_timeout: float, environment: Mapping[str, str]) -> None:
        self._start_timeout = start_timeout
        self._environment = environment
        self._children: list[subprocess.Popen[str]] = []
        self._reader: threading.Thread | None = None

    def __enter__(self) -> "_SuperLink":
        # Ray's sockets live below and their paths must stay under 104 characters.
        base = None if len(tempfile.gettempdir()) < 25 else "/tmp"
        self.home = Path(tempfile.mkdtemp(prefix="nmoe-", dir=base)).resolve()
        self._guard = processes.guard(self.home, mark=self._mark)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with uninterrupted():
            processes.end(self._mark, children=self._children)
            for child in self._children:
                child.wait()
            if self._reader is not None:
                self._reader.join(timeout=_READER_SECONDS)
            shutil.rmtree(self.home, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._guard.communicate()

    @property
    def _mark(self) -> str:
        return flower.mark(self.home)

    def _start(self) -> None:
        (port,) = free_ports(1)
        config = flower.connection(_NAME, f"127.0.0.1:{port}")
        (self.home / "config.toml").write_text(config, encoding="utf-8")
        self._output = self.home / "superlink.txt"
        with self._output.open("w") as file:
            out = file.fileno()
            self._server = self._spawn(flower.simulation_superlink(port), out=out, err=out)
        deadline = time.monotonic() + self._start_timeout
        while flower.health(port) != "superlink":
            if self._server.poll() is not None:
                raise EngineError(f"flower-superlink ended at once:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise EngineError(
                    f"flower-superlink did not answer within {self._start_timeout:g} s:\n"
                    f"{self._tail()}"
                )
            time.sleep(0.05)

    def submit(self, app: Path, federation: Mapping[str, object]) -> int:
        """Hand the app in; returns the run id."""
        out = self._flwr(flower.run_command(app, _NAME, federation))
        answer = parse_output(out)
        if "run-id" not in answer or not answer["run-id"]:
            raise EngineError(f"flwr run refused the app {app}:\n{out.strip()}")
        return int(str(answer["run-id"]))

    def follow(self, run_id: int, log: Callable[[str], None], on_tick: Callable[[], None]) -> None:
        """Pass the log on until the run is over; raise unless it completed.

        The end of the log tells at once that the run is over. The status is looked at besides, as a
        log whose connection was lost would never end.
        """
        recent: deque[str] = deque(maxlen=200)
        died = threading.Event()
        stream = self._spawn(flower.log_command(run_id, _NAME))

        def read() -> None:
            assert stream.stdout is not None
            with stream.stdout:
                for line in stream.stdout:
                    recent.append(_COLOUR.sub("", line.rstrip("\n")))
                    if "ActorDiedError" in line:
                        died.set()
                    log(recent[-1])

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        status, details = "", ""
        looked = time.monotonic()
        while not status.startswith("finished"):
            time.sleep(_TICK)
            on_tick()
            if died.is_set():
                raise EngineError(
                    "a Ray actor died (out of memory, or a crash in native code) and Flower would "
                    f"fail nearly every later message:\n{excerpt(recent, 'ActorDiedError')}"
                )
            if self._server.poll() is not None:
                raise EngineError(f"flower-superlink ended during the run:\n{self._tail()}")
            ended = stream.poll() is not None
            if time.monotonic() >= looked + (_LAST_LOOK_SECONDS if ended else _LOOK_SECONDS):
                try:
                    status, details = self._status(run_id)
                except EngineError:
                    if ended:
                        raise  # else it is busy, perhaps: the log goes on
                looked = time.monotonic()
        self._reader.join(timeout=_READER_SECONDS)
        on_tick()
        if status != "finished:completed":
            raise EngineError(
                f"the run ended as {status}{f': {details}' if details else ''}\n{excerpt(recent)}"
            )

    def stop(self, run_id: int) -> None:
        """Let the ServerApp save what it has, which Ray would not let it do on a signal.

        Another signal cuts this short.
        """
        with contextlib.suppress(EngineError):
            self._flwr(flower.stop_command(run_id, _NAME))
        deadline = time.monotonic() + _LAST_WORDS
        while self._runs_server_app() and time.monotonic() < deadline:
            time.sleep(_TICK)

    def _runs_server_app(self) -> bool:
        home = str(self.home)
        return any(
            flower.is_server_app(command)
            for _, command, environment in processes.visible()
            if environment.get(flower.HOME) == home
        )

    def _status(self, run_id: int) -> tuple[str, str]:
        answer = parse_output(self._flwr(flower.status_command(run_id, _NAME)))
        runs = answer.get("runs")
        if not isinstance(runs, list) or not runs:
            return "", ""
        details = str(runs[0].get("status-details", ""))
        if "heartbeat" in details:
            details += " (the simulation process was killed: out of memory?)"
        return str(runs[0].get("status", "")), details

    def _flwr(self, command: Sequence[str]) -> str:
        process = self._spawn(command)
        try:
            return process.communicate(timeout=self._start_timeout)[0]
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"{' '.join(command[:2])} did not answer within {self._start_timeout:g} s"
            ) from None

    def _spawn(
        self, command: Sequence[str], *, out: int = subprocess.PIPE, err: int = subprocess.STDOUT
    ) -> "subprocess.Popen[str]":
        child = start_program(command, self._environment, home=self.home, out=out, err=err)
        self._children.append(child)
        return child

    def _tail(self) -> str:
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-20:])
