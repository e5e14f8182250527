"""Run a Flower app on a SuperLink of its own with the simulation runtime, then leave no trace.

``flwr run`` returns 0 when the ServerApp crashed, starts a daemon that stays, and installs the
app's dependencies anew for every run. Here the SuperLink lives in a temporary ``FLWR_HOME`` on a
free loopback port, the run's status is asked for, and everything is taken down again: on success,
on failure, on Ctrl-C, on SIGTERM, and by a guard process even if this process is killed.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from nmoe_flower.engine import processes
from nmoe_flower.engine.signals import interruptible, uninterrupted
from nmoe_flower.errors import EngineError

__all__ = ["run_simulation", "write_app"]

_NAME = "nmoe"
_TICK = 0.1
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "PYTHONUNBUFFERED": "1",
}


def write_app(
    folder: Path,
    run_config: Mapping[str, bool | int | float | str],
    *,
    serverapp: str = "nmoe_flower.server_app:app",
    clientapp: str = "nmoe_flower.client_app:app",
) -> Path:
    """Write the smallest Flower app folder: it names two installed apps and their configuration.

    Returns:
        The folder, ready for :func:`run_simulation` or ``flwr run``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in run_config.items()
    ]
    lines = [
        "[project]",
        'name = "nmoe-run"',
        'version = "1.0.0"',
        'description = "One run of nmoe-flower"',
        'license = { file = "LICENSE" }',
        'dependencies = ["flwr[simulation]>=1.41.0"]',
        "[tool.flwr.app]",
        'publisher = "nmoe"',
        "fab-format-version = 1",
        'flwr-version-target = "1.41.0"',
        "[tool.flwr.app.components]",
        f"serverapp = {json.dumps(serverapp)}",
        f"clientapp = {json.dumps(clientapp)}",
        "[tool.flwr.app.config]",
        *values,
        "",
    ]
    (folder / "pyproject.toml").write_text("\n".join(lines), encoding="utf-8")
    (folder / "LICENSE").write_text("Apache-2.0\n", encoding="utf-8")
    return folder


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
) -> None:
    """Run a Flower app on Ray-backed virtual clients and wait until it has finished.

    Args:
        app: Folder with the app's ``pyproject.toml``.
        num_supernodes: Virtual clients, partition ids ``0 .. num_supernodes - 1``.
        cpus_per_client: Cores per Ray actor.
        num_cpus: Cores Ray may use; the number of actors is ``num_cpus // cpus_per_client``.
        gpus_per_client: GPU share per Ray actor.
        log: Takes each line of the run's log; called from another thread.
        on_tick: Called in this thread about ten times per second while the run goes on.
        start_timeout: Seconds the SuperLink has to answer.

    Raises:
        EngineError: The run could not start, did not finish, or lost a Ray actor.
    """
    _require_ray()
    cores = num_cpus or os.cpu_count() or 1
    settings = {
        "num-supernodes": num_supernodes,
        "client-resources-num-cpus": cpus_per_client,
        "client-resources-num-gpus": gpus_per_client,
        "init-args-num-cpus": max(cores, cpus_per_client),
        "init-args-log-to-driver": "false",
    }
    federation = " ".join(f"{key}={value}" for key, value in settings.items())
    with interruptible(), _SuperLink(start_timeout) as link:
        run_id = link.submit(app, federation)
        link.follow(run_id, log, on_tick)


class _SuperLink:
    """A SuperLink in a temporary home; entering starts it, leaving ends all it started."""

    def __init__(self, start_timeout: float) -> None:
        self._start_timeout = start_timeout
        self._children: list[subprocess.Popen[str]] = []
        self._reader: threading.Thread | None = None

    def __enter__(self) -> "_SuperLink":
        # Ray's sockets live below and their paths must stay under 104 characters.
        base = None if len(tempfile.gettempdir()) < 25 else "/tmp"
        self.home = Path(tempfile.mkdtemp(prefix="nmoe-", dir=base)).resolve()
        self._guard = processes.guard(self.home)
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
                self._reader.join(timeout=5.0)
            shutil.rmtree(self.home, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._guard.communicate()

    @property
    def _mark(self) -> str:
        return f"FLWR_HOME={self.home}"

    def _start(self) -> None:
        port = _free_port()
        config = f'[superlink]\ndefault = "{_NAME}"\n[superlink.{_NAME}]\n'
        config += f'address = "127.0.0.1:{port}"\ninsecure = true\n'
        (self.home / "config.toml").write_text(config, encoding="utf-8")
        self._output = self.home / "superlink.txt"
        options = ["--insecure", "--simulation", "--disable-runtime-dependency-installation"]
        command = [_program("flower-superlink"), *options, "--host", "127.0.0.1"]
        with self._output.open("w") as out:
            self._server = self._spawn([*command, "--port", str(port)], out.fileno(), out.fileno())
        deadline = time.monotonic() + self._start_timeout
        while not _healthy(port):
            if self._server.poll() is not None:
                raise EngineError(f"flower-superlink ended at once:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise EngineError(
                    f"flower-superlink did not answer within {self._start_timeout:g} s:\n"
                    f"{self._tail()}"
                )
            time.sleep(0.05)

    def submit(self, app: Path, federation: str) -> int:
        """Hand the app in; returns the run id."""
        arguments = ["run", str(app.resolve()), _NAME, "--federation-config", federation]
        out = self._flwr(*arguments, "--format", "json")
        answer = _json(out)
        if "run-id" not in answer or not answer["run-id"]:
            raise EngineError(f"flwr run refused the app {app}:\n{out.strip()}")
        return int(str(answer["run-id"]))

    def follow(self, run_id: int, log: Callable[[str], None], on_tick: Callable[[], None]) -> None:
        """Pass the log on until the run is over; raise unless it completed."""
        recent: deque[str] = deque(maxlen=200)
        died = threading.Event()
        command = [_program("flwr"), "log", str(run_id), _NAME, "--stream"]
        stream = self._spawn(command, subprocess.PIPE, subprocess.STDOUT)

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
        next_look = time.monotonic()
        while not status.startswith("finished"):
            time.sleep(_TICK)
            on_tick()
            if died.is_set():
                raise EngineError(
                    "a Ray actor died (out of memory, or a crash in native code) and Flower would "
                    f"fail nearly every later message:\n{_excerpt(recent, 'ActorDiedError')}"
                )
            if self._server.poll() is not None:
                raise EngineError(f"flower-superlink ended during the run:\n{self._tail()}")
            if stream.poll() is not None and time.monotonic() >= next_look:
                status, details = self._status(run_id)
                next_look = time.monotonic() + 2.0
        self._reader.join(timeout=5.0)
        on_tick()
        if status != "finished:completed":
            raise EngineError(
                f"the run ended as {status}{f': {details}' if details else ''}\n{_excerpt(recent)}"
            )

    def _status(self, run_id: int) -> tuple[str, str]:
        answer = _json(self._flwr("ls", _NAME, "--run-id", str(run_id), "--format", "json"))
        runs = answer.get("runs")
        if not isinstance(runs, list) or not runs:
            return "", ""
        details = str(runs[0].get("status-details", ""))
        if "heartbeat" in details:
            details += " (the simulation process was killed: out of memory?)"
        return str(runs[0].get("status", "")), details

    def _flwr(self, *arguments: str) -> str:
        process = self._spawn([_program("flwr"), *arguments], subprocess.PIPE, subprocess.STDOUT)
        try:
            return process.communicate(timeout=self._start_timeout)[0]
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"flwr {arguments[0]} did not answer within {self._start_timeout:g} s"
            ) from None

    def _spawn(self, command: list[str], out: int, err: int) -> "subprocess.Popen[str]":
        programs = str(Path(sys.executable).parent)
        environment = os.environ | _ENVIRONMENT
        environment["FLWR_HOME"] = str(self.home)
        environment["RAY_TMPDIR"] = str(self.home)
        environment["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
        child = subprocess.Popen(
            command,
            cwd=self.home,  # a folder named like the connection would be taken for an app
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._children.append(child)
        return child

    def _tail(self) -> str:
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-20:])


def _require_ray() -> None:
    if sys.platform == "win32":
        raise EngineError("the ray engine needs Linux or macOS; use the inprocess engine")
    missing = [name for name in ("ray", "flwr") if importlib.util.find_spec(name) is None]
    missing += [name for name in ("flower-superlink", "flwr") if not Path(_program(name)).exists()]
    if missing:
        raise EngineError(
            f"the ray engine needs {missing[0]}, which is not installed here: "
            'pip install "nmoe-flower[simulation]"'
        )


def _program(name: str) -> str:
    """The program of this Python's environment, whatever is on PATH."""
    return str(Path(sys.executable).parent / name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _json(text: str) -> dict[str, object]:
    """The JSON object in a command's output; empty if there is none."""
    start, stop = text.find("{"), text.rfind("}")
    try:
        answer = json.loads(text[start : stop + 1])
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _excerpt(lines: Iterable[str], *signs: str) -> str:
    """The log from the last of ``signs``, else of a traceback, else of an error on."""
    kept = [line for line in list(lines) if line.strip()]
    for sign in (*signs, "Traceback (most recent call last)", "ERROR"):
        starts = [number for number, line in enumerate(kept) if sign in line]
        if starts:
            return "\n".join(kept[starts[-1] :][:40])
    return "\n".join(kept[-10:])
