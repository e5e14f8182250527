"""Everything that touches what Flower keeps to itself: private modules, flags, its folder.

Flower's public names (``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp``) are imported where they
are used. The rest changes from release to release without notice, so it stands here alone, beside
the versions it was tried with; with any other version, importing this file says what to install.
"""

import contextlib
import functools
import http.client
import importlib.metadata
import itertools
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import Array, ArrayRecord, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from nmoe_flower.addresses import MAX_PORT
from nmoe_flower.engine import cluster, processes
from nmoe_flower.engine.actors import Actors, Check
from nmoe_flower.engine.spawn import WORKER_ENVIRONMENT
from nmoe_flower.errors import EngineError
from nmoe_flower.records import PARTITION_ID

_missing: ImportError | None = None
try:
    from flwr.common import log
    from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
except ImportError as error:
    _missing = error  # check_version, at the end of this file, says what that means

__all__ = [
    "ANY_VERSION",
    "CLUSTER_CLIENTS",
    "ENVIRONMENT",
    "HOME",
    "KNOWN_VERSIONS",
    "LOCAL_PORT",
    "NO_INSTALLATION",
    "SCRIPT_CONNECTION",
    "SCRIPT_EXPORTS",
    "SCRIPT_REGISTER",
    "SCRIPT_RUN",
    "SCRIPT_SUPERLINK",
    "SCRIPT_SUPERNODE",
    "SIGNED_APPS",
    "SIMULATE",
    "SUPERLINK_NODE_ID",
    "Command",
    "ErrorCode",
    "NodeInfo",
    "Run",
    "RunningSuperLink",
    "argument_parsers",
    "array_record",
    "at_exit",
    "build_fab",
    "check_version",
    "connection",
    "health",
    "home",
    "hub_files",
    "identify",
    "identity",
    "installed_version",
    "is_known",
    "is_simulated",
    "local_port",
    "log",
    "log_command",
    "mark",
    "message_with",
    "metadata_of",
    "node_config",
    "programs",
    "pull_interval",
    "requirement",
    "rewrite",
    "run_command",
    "simulation_superlink",
    "status_command",
    "superlink_process",
    "use_cluster",
]

KNOWN_VERSIONS = ("1.41", "1.42")
"""The releases this file was tried with, in order; any patch of them will do."""

ANY_VERSION = "NMOE_ANY_FLOWER"
"""Set this variable to 1 to try a version that is not known."""


def installed_version() -> str:
    """The version of the installed Flower, nightly builds included.

    Raises:
        EngineError: Flower is not installed.
    """
    for name in ("flwr", "flwr-nightly"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise EngineError(f"Flower is not installed: pip install '{requirement()}'")


def requirement() -> str:
    """What pip has to be told to install a known version.

    >>> requirement()
    'flwr>=1.41.0,<1.43'
    """
    major, minor = KNOWN_VERSIONS[-1].split(".")
    return f"flwr>={KNOWN_VERSIONS[0]}.0,<{major}.{int(minor) + 1}"


def is_known(version: str) -> bool:
    """Whether this file was tried with a version.

    >>> [is_known(version) for version in ("1.41.0", "1.42.3", "1.40.0", "1.43.0", "1.4.2")]
    [True, True, False, False, False]
    """
    return ".".join(version.split(".")[:2]) in KNOWN_VERSIONS


def check_version(version: str, *, missing: ImportError | None = None) -> None:
    """Refuse a Flower this file does not know.

    Args:
        version: The installed one.
        missing: What could not be imported from it.

    Raises:
        EngineError: The version is unknown and nobody asked to try it, or something is missing.
    """
    tried = os.environ.get(ANY_VERSION) == "1"
    if missing is None and (tried or is_known(version)):
        return
    known = " and ".join(KNOWN_VERSIONS)
    hint = "" if missing is not None else f"; {ANY_VERSION}=1 tries {version} all the same"
    raise EngineError(
        f"Flower {version} is installed, this nmoe-flower is written for Flower {known}"
        + (f" and misses something ({missing})" if missing is not None else "")
        + f". Install one of them: pip install '{requirement()}'{hint}"
    )


def identify(*, run_id: int = 1, node_id: int = 1, task_id: int = 1) -> None:
    """Give this process an identity, without which it can build no message."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id


def identity() -> int:
    """The id of this process's run; one that has none becomes the server of run 1."""
    for name, value in (("run_id", 1), ("node_id", SUPERLINK_NODE_ID), ("task_id", 1)):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, value)
    return TaskIdentity.run_id


def at_exit(callback: Callable[[], None]) -> None:
    """Have Flower call this before it ends the process of a ServerApp: ``flwr stop``, SIGTERM."""
    from flwr.supercore.exit import add_exit_handler

    add_exit_handler(callback)


def pull_interval(grid: Grid) -> float | None:
    """Seconds between two pulls of a grid within this process; None for one across a network."""
    interval = getattr(grid, "pull_interval", None)
    return None if interval is None else float(interval)


def is_simulated(grid: Grid) -> bool:
    """Whether the nodes of this grid are virtual ones of Flower's simulation."""
    return pull_interval(grid) is not None


def rewrite(message: Message, **fields: object) -> None:
    """Set fields of a message's metadata that are read-only, such as ``message_id``."""
    for name, value in fields.items():
        message.metadata.__dict__[f"_{name}"] = value


def message_with(content: RecordDict, metadata: Iterable[Any] | Message) -> Message:
    """A message of this content; its metadata is another message's, or ``metadata_of`` one."""
    if isinstance(metadata, Message):
        copy = Message.__new__(Message)
        copy.__dict__.update(metadata.__dict__)
        copy.__dict__["_content"] = content
        return copy
    build: Any = Message
    made: Message = build(content, metadata=Metadata(*metadata))
    return made


def metadata_of(message: Message) -> tuple[Any, ...]:
    """The arguments of ``Metadata``: what another process needs to rebuild the message."""
    metadata = message.metadata
    return (
        metadata.run_id,
        metadata.message_id,
        metadata.src_node_id,
        metadata.dst_node_id,
        metadata.reply_to_message_id,
        metadata.group_id,
        metadata.created_at,
        metadata.ttl,
        metadata.message_type,
        metadata.src_task_id,
        metadata.dst_task_id,
    )


def array_record(entries: Iterable[tuple[str, str, tuple[int, ...], str, bytes]]) -> ArrayRecord:
    """An ArrayRecord of (name, dtype, shape, stype, data).

    Arrays are filled as unpickling fills them: through ``__init__`` each would cost 8 us, which
    with 60 arrays a message is more than the copy of 1.2 MB.
    """
    record = ArrayRecord()
    arrays: dict[str, Array] = record.__dict__["_data"]
    for name, dtype, shape, stype, data in entries:
        array = arrays[name] = Array.__new__(Array)
        array.__dict__.update(dtype=dtype, shape=shape, stype=stype, data=data)
    return record


HOME = "FLWR_HOME"
"""The variable that names Flower's folder: connections, apps, state."""

LOCAL_PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
"""The variable that moves the SuperLink which ``flwr run`` starts on this machine."""

NO_INSTALLATION = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
"""The variable that keeps a SuperLink from installing an app's dependencies for every run."""

ENVIRONMENT = {
    **WORKER_ENVIRONMENT,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    NO_INSTALLATION: "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONUNBUFFERED": "1",
}
"""What Flower's programs are started with here: nothing calls home, nothing is installed."""

SIMULATE = "flwr run . --federation-config 'num-supernodes=10 client-resources-num-cpus=1'"
"""How a user asks ``flwr run`` for ten clients."""

SIGNED_APPS = "flower-supernode --trusted-entities"
"""How a node is told whose signature it wants on an app."""

CLUSTER_CLIENTS = "NMOE_RAY_CLIENTS"
"""The variable with the most clients at once on a Ray cluster; unset: as many as fit."""

Command = list[str]


class Programs(NamedTuple):
    """The programs a simulation needs, by name."""

    superlink: str = "flower-superlink"
    flwr: str = "flwr"


programs = Programs()


def mark(home: Path) -> str:
    """What the environment of every process of a SuperLink in ``home`` contains."""
    return f"{HOME}={home}"


def connection(name: str, address: str) -> str:
    """The text of ``config.toml`` in Flower's folder: one unencrypted connection, the default."""
    return (
        f"[superlink]\ndefault = {json.dumps(name)}\n[superlink.{name}]\n"
        f"address = {json.dumps(address)}\ninsecure = true\n"
    )


def home() -> Path:
    """Flower's folder on this machine."""
    return Path(os.environ.get(HOME) or Path.home() / ".flwr")


def local_port() -> int:
    """Where the SuperLink listens that ``flwr run`` starts on this machine, or finds there.

    Raises:
        EngineError: The variable holds no port.
    """
    text = os.environ.get(LOCAL_PORT, "39091")
    if not (re.fullmatch(r"[0-9]{1,5}", text) and 0 < int(text) <= MAX_PORT):
        raise EngineError(
            f"{LOCAL_PORT} is {text[:20]!r}, which is no port; allowed: 1 to {MAX_PORT}"
        )
    return int(text)


def health(port: int) -> str:
    """Who listens on a port of this machine: ``superlink``, ``nothing`` or ``other``."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0) as answer:
            return "superlink" if answer.status == 200 else "other"
    except urllib.error.URLError as error:
        refused = isinstance(error.reason, ConnectionRefusedError)
        return "nothing" if refused else "other"
    except (OSError, http.client.HTTPException):
        return "other"


class RunningSuperLink(NamedTuple):
    """A SuperLink of this machine and the environment it was born with."""

    pid: int
    programs: Path
    """The folder of its programs, which is its Python environment."""
    cwd: Path
    """The folder in which apps run."""
    installs: bool
    """Whether it installs an app's dependencies for every run."""


def superlink_process(port: int) -> RunningSuperLink | None:
    """The process of the SuperLink that listens on a port; None if it cannot be seen."""
    for pid, words, environment in processes.visible():
        named = [Path(word) for word in words[:2] if Path(word).name == programs.superlink]
        if not named or ("--port", str(port)) not in itertools.pairwise(words):
            continue
        off = "--disable-runtime-dependency-installation" in words
        installs = not off and environment.get(NO_INSTALLATION, "").lower() not in ("1", "true")
        with contextlib.suppress(OSError):
            cwd = Path(f"/proc/{pid}/cwd").readlink()
            return RunningSuperLink(pid, named[0].parent, cwd, installs)
    return None


def simulation_superlink(port: int) -> Command:
    """Start a SuperLink with Flower's simulation runtime on this machine only."""
    options = ["--insecure", "--simulation", "--disable-runtime-dependency-installation"]
    return [programs.superlink, *options, "--host", "127.0.0.1", "--port", str(port)]


def run_command(app: Path, connection: str, federation: Mapping[str, object]) -> Command:
    """Hand an app in; prints a JSON object with the ``run-id``."""
    settings = " ".join(f"{key}={value}" for key, value in federation.items())
    command = [programs.flwr, "run", str(app.resolve()), connection]
    return [*command, "--federation-config", settings, "--format", "json"]


def log_command(run_id: int, connection: str) -> Command:
    """Print a run's log until the run is over."""
    return [programs.flwr, "log", str(run_id), connection, "--stream"]


def status_command(run_id: int, connection: str) -> Command:
    """Print a JSON object with a run's ``status``."""
    return [programs.flwr, "ls", connection, "--run-id", str(run_id), "--format", "json"]


def use_cluster(check: Check) -> None:
    """Have the simulation of this process, if it is one, run clients on a cluster that is there.

    Flower's own backend tells Ray how many cores there are, which Ray refuses where a cluster
    exists, and ends with the first node that is lost. A ClientApp calls this as it is imported,
    which is before Ray is started. Without ``RAY_ADDRESS``, and in any other process, nothing
    happens.

    Args:
        check: What every node must be able to do: a function that nodes import by its name.

    Raises:
        EngineError: The variable holds no address.
    """
    if "flwr.simulation.app" not in sys.modules:
        return
    address = cluster.named_address(None, os.environ)
    if address is None:
        return
    from flwr.server.superlink.fleet.vce import vce_api
    from flwr.server.superlink.fleet.vce.backend import raybackend

    made: Any = functools.partial(_cluster_backend(), address=address, check=check)
    setattr(raybackend, "RayBackend", made)  # noqa: B010
    # One thread waits for each message under way, wherever that runs; Flower's are a few per core.
    setattr(  # noqa: B010
        vce_api,
        "ThreadPoolExecutor",
        functools.partial(ThreadPoolExecutor, max_workers=_CLUSTER_THREADS),
    )


_CLUSTER_THREADS = 256


@functools.cache
def _cluster_backend() -> Any:
    """The class of Flower's backend on a Ray cluster; made where Ray is installed."""
    import ray
    from flwr.server.superlink.fleet.vce.backend.backend import Backend
    from flwr.simulation.ray_transport.ray_actor import ClientAppActor
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class ClusterBackend(Backend):
        def __init__(
            self, backend_config: Mapping[str, Any], *, address: str, check: Check
        ) -> None:
            wanted = backend_config.get("client_resources") or {}
            cpus, gpus = float(wanted.get("num_cpus", 1)), float(wanted.get("num_gpus", 0))
            most = os.environ.get(CLUSTER_CLIENTS, "")
            cluster.join_cluster(address)

            def on(node: str) -> Any:
                return NodeAffinitySchedulingStrategy(node, soft=False)

            remote: Any = ClientAppActor
            checked = ray.remote(num_cpus=0, max_retries=0)(check)
            self._app: Callable[[], Any] | None = None
            self._actors = Actors(
                cluster.living,
                start=lambda node: remote.options(
                    num_cpus=cpus, num_gpus=gpus, scheduling_strategy=on(node)
                ).remote(),
                check=lambda node, run_config: checked.options(scheduling_strategy=on(node)).remote(
                    run_config
                ),
                cpus=cpus,
                gpus=gpus,
                most=int(most) if most else None,
            )

        def build(self, app_fn: Callable[[], Any]) -> None:
            self._app = app_fn

        @property
        def num_workers(self) -> int:
            return _CLUSTER_THREADS

        def is_worker_idle(self) -> bool:
            return True

        def process_message(self, message: Message, context: Any) -> tuple[Message, Any]:
            partition = int(context.node_config[PARTITION_ID])
            return self._actors.run(self._app, message, partition, context)

        def terminate(self) -> None:
            self._actors.close()
            ray.shutdown()

    return ClusterBackend


def stop_command(run_id: int, connection: str) -> Command:
    """Ask for a run to end; its ServerApp calls what ``at_exit`` took."""
    return [programs.flwr, "stop", str(run_id), connection]


def is_server_app(command: Sequence[str]) -> bool:
    """Whether a command line is that of the process in which a simulation's ServerApp runs."""
    return any(Path(word).name == "flwr-simulation" for word in command)


def argument_parsers() -> dict[str, Any]:
    """The programs' own parsers, by name: what they would make of a command line."""
    from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

    return {
        "flower-superlink": _parse_args_run_superlink(),
        "flower-supernode": _parse_args_run_supernode(),
    }


def node_config(argument: str) -> dict[str, Any]:
    """What a SuperNode makes of its ``--node-config``."""
    from flwr.common.config import parse_config_args

    return dict(parse_config_args([argument]))


SCRIPT_EXPORTS = """\
export FLWR_HOME="$PWD/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.25
"""
"""For shell scripts that keep Flower's folder beside themselves, like the ones below."""

SCRIPT_SUPERLINK = """\
flower-superlink --host {listen} --port {port} --database superlink.db \\
    --ssl-ca-certfile ca.pem --ssl-certfile superlink.pem --ssl-keyfile superlink.key \\
    --enable-supernode-auth --disable-runtime-dependency-installation
"""

SCRIPT_SUPERNODE = """\
flower-supernode --superlink "${{SUPERLINK:-{superlink}}}" --root-certificates ca.pem \\
    --auth-supernode-private-key supernode.key --host 127.0.0.1 --port {runtime_port} \\
    --node-config node.toml
"""

SCRIPT_CONNECTION = """\
mkdir -p flwr
cat > flwr/config.toml <<END
[superlink]
default = "federation"
[superlink.federation]
address = "${{SUPERLINK:-{superlink}}}"
root-certificates = "$PWD/ca.pem"
END
cd flwr  # a folder named like the connection would be taken for an app
"""

SCRIPT_REGISTER = 'flwr supernode register "$key" federation --name "$name"\n'

SCRIPT_RUN = """flwr run ../app federation --stream --run-config "run.name='$RUN'"\n"""


def build_fab(app: Path) -> bytes:
    """The bundle that ``flwr run`` sends to the SuperLink, built by Flower's own code.

    Raises:
        EngineError: Flower refuses the folder.
    """
    from flwr.cli.build import build_fab_from_disk

    try:
        return build_fab_from_disk(app)
    except ValueError as error:
        raise EngineError(f"Flower cannot bundle {app}: {error}") from error


def hub_files(app: Path) -> list[Path]:
    """The files that ``flwr app publish`` would send, checked as it checks them.

    Raises:
        EngineError: Flower's Hub would refuse the folder.
    """
    from importlib import import_module

    from click import ClickException

    publish: Any = import_module("flwr.cli.app_cmd.publish")
    try:
        publish._validate_app_name(app.name, "the folder's name")
        files: list[Path] = publish._collect_file_paths(app)
        publish._validate_files(files)
    except ClickException as error:
        raise EngineError(f"Flower Hub would refuse {app}: {error.message}") from error
    return files


check_version(installed_version(), missing=_missing)
