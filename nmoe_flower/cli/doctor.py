"""``nmoe doctor``: what this machine has, one line each, and what would fail on it."""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from nmoe_flower import __version__
from nmoe_flower.errors import NMoEError
from nmoe_flower.plurals import how_many

__all__ = ["ABOUT", "Look", "add_arguments", "doctor"]

ABOUT = "what is here, and what would fail"

State = Literal["ok", "note", "fail"]

EXTRAS = (
    "data",
    "simulation",
    "index",
    "report",
    "stack",
    "tracking",
    "mlflow",
    "wandb",
    "privacy",
    "serve",
    "vision",
    "text",
)
# Who listens there when nothing else is said.
PORTS = {8000: "a SuperLink", 9094: "a SuperNode", 7600: "a peer"}
NEED_FLOWER = ("programs", "flower's folder", "local superlink")
OLDEST_PYTHON = (3, 11)
LEAST_MEMORY = 2.0  # GiB; ten clients on the digits take about one
LEAST_DISK = 1.0
LEAST_SHARED = 0.06  # what Docker gives unless told otherwise
_SIGNS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}
_GIB = 2**30
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Look:
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        state: ``fail`` if something would not work here, ``note`` if one should know.
        text: What was found; and what to do, unless all is well.
    """

    name: str
    state: State
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe doctor``."""
    parser.description = (
        "Look at this machine before a run: versions, extras, cores, memory, GPU, data caches, "
        "ports, write permissions, and the local SuperLink of flwr run. Nothing is changed. "
        "The exit code is 1 if something would fail."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR",
        help="where run folders are to go (./runs)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    looks = list(doctor(args.out))
    failed = sum(look.state == "fail" for look in looks)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(look) for look in looks]}))
    else:
        width = max(len(look.name) for look in looks)
        for look in looks:
            print(f"{_SIGNS[look.state]}  {look.name:<{width}}  {look.text}")
        print(f"{failed} of {len(looks)} would fail" if failed else "nothing would fail")
    return 1 if failed else 0


def doctor(out: Path) -> Iterator[Look]:
    """Look at everything, in the order it is needed.

    Args:
        out: Where run folders are to go.
    """
    looks: dict[str, Callable[[], tuple[State, str]]] = {
        "nmoe-flower": _package,
        "python": _python,
        "flower": _flower,
        "programs": _programs,
        **{f"extra {name}": partial(_extra, name) for name in EXTRAS},
        "cores": _cores,
        "memory": _memory,
        "shared memory": _shared_memory,
        "torch": _torch,
        "gpu": _gpu,
        "data cache": _data_cache,
        "hub cache": _hub_cache,
        "run folders": partial(_folder, out),
        "flwr run's folders": partial(_folder, Path.home() / "nmoe-runs"),
        "flower's folder": _flower_home,
        **{f"port {port}": partial(_port, port) for port in PORTS},
        "local superlink": _local_superlink,
    }
    failed = set[str]()
    for name, look in looks.items():
        if name in NEED_FLOWER and "flower" in failed:
            yield Look(name, "note", "not looked at: see flower, above")
            continue
        try:
            found = Look(name, *look())
        except (NMoEError, OSError) as error:
            found = Look(name, "fail", str(error))
        if found.state == "fail":
            failed.add(name)
        yield found


def _package() -> tuple[State, str]:
    from nmoe_flower.installation import checkout, installed_from

    source = checkout() or installed_from()
    return "ok", f"{__version__} from {source or Path(__file__).parents[1]}"


def _python() -> tuple[State, str]:
    found = f"{platform.python_version()} in {sys.prefix}, {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return "fail", f"{found}; {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed"
    return "ok", found


def _flower() -> tuple[State, str]:
    from nmoe_flower.engine import flower

    version = flower.installed_version()
    if not flower.is_known(version):
        return "note", f"{version}, not known, tried because of {flower.ANY_VERSION}"
    return "ok", f"{version}, supported (known: {', '.join(flower.KNOWN_VERSIONS)})"


def _programs() -> tuple[State, str]:
    """``flwr run`` starts what is on PATH, whatever Python this is."""
    from nmoe_flower.engine import flower

    here = Path(sys.executable).parent
    for name in flower.programs:
        found = shutil.which(name)
        if found is None:
            return "note", f"{name} is not on PATH: activate the environment of {here}"
        if Path(found).parent != here:
            return "note", f"{name} on PATH is {found}, not that of {here}: activate one of them"
    return "ok", f"{', '.join(flower.programs)} in {here}"


def _extra(name: str) -> tuple[State, str]:
    from importlib import metadata

    from nmoe_flower.installation import extra_requirements, install_hint

    missing, found = [], []
    matches = [_NAME.match(requirement) for requirement in extra_requirements(name)]
    names = [match[0] for match in matches if match]
    if "flwr" in names:
        names.append("ray")  # that extra of Flower's is Ray
    for package in names:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if not names:
        return "note", f"of a newer version than was installed: {install_hint(name)}"
    if missing:
        return "note", f"absent ({', '.join(missing)}): {install_hint(name)}"
    return "ok", ", ".join(found)


def _cores() -> tuple[State, str]:
    from nmoe_flower.machine import usable_cores

    count, quota = usable_cores(), _cgroup("cpu.max")
    if quota and (allowed := int(quota[0]) / int(quota[1])) < count:
        return (
            "note",
            f"{how_many(count, 'core')}, of which this container may use {allowed:g}: --workers",
        )
    return "ok", f"{count} for this process, {os.cpu_count()} in the machine"


def _memory() -> tuple[State, str]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if limit := _cgroup("memory.max"):
        total = min(total, int(limit[0]))
    available = float(total)
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        available = min(available, int(kilobytes) * 1024.0)
    text = f"{available / _GIB:.1f} GiB available of {total / _GIB:.1f}"
    return ("ok" if available / _GIB >= LEAST_MEMORY else "note"), text


def _cgroup(name: str) -> list[str]:
    """A limit of this container, in words of its file; empty if there is none."""
    try:
        words = Path("/sys/fs/cgroup", name).read_text(encoding="ascii").split()
    except OSError:
        return []
    return words if words and words[0].isdigit() else []


def _shared_memory() -> tuple[State, str]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return "ok", "no /dev/shm: the system keeps it elsewhere"
    free = shutil.disk_usage(folder).free / _GIB
    if free <= LEAST_SHARED:
        return "note", f"{free:.2f} GiB free in {folder}: too little for large models; --workers 0"
    return "ok", f"{free:.1f} GiB free in {folder}"


def _torch() -> tuple[State, str]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return "fail", f"torch cannot be imported: {error}"
    from nmoe_flower.training import use_bf16

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
    faster = "bfloat16" if use_bf16("auto", torch.device("cpu"), worthwhile=True) else "float32"
    return "ok", f"{torch.__version__}, built for {built}; this CPU is faster in {faster}"


def _gpu() -> tuple[State, str]:
    try:
        import torch
    except (ImportError, OSError):
        return "note", "unknown without torch"
    if torch.cuda.is_available():
        found = []
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            found.append(f"cuda:{number} {about.name}, {about.total_memory / _GIB:.0f} GiB")
        return "ok", "; ".join(found)
    if torch.backends.mps.is_available():
        return "ok", "mps"
    if Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        return "note", "an NVIDIA driver is here, but this torch cannot use it: run.device is cpu"
    return "ok", "none: run.device is cpu"


def _data_cache() -> tuple[State, str]:
    from nmoe_flower.data import cache_root

    return _folder(cache_root())


def _hub_cache() -> tuple[State, str]:
    home = os.environ.get("HF_HOME") or Path("~", ".cache", "huggingface")
    return _folder(Path(home).expanduser())


def _flower_home() -> tuple[State, str]:
    from nmoe_flower.engine import flower

    return _folder(flower.home())


def _folder(folder: Path) -> tuple[State, str]:
    """Whether something can be written there, how much there is, and how much fits."""
    folder = folder.absolute()
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return "fail", f"{folder} cannot be written: {error.strerror or error} ({there})"
    free = shutil.disk_usage(there).free
    held = f"{_bytes(_size(folder))} held, " if folder.exists() else "not there yet, "
    text = f"{folder}: {held}{_bytes(free)} free"
    return ("ok" if free / _GIB >= LEAST_DISK else "note"), text


def _size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).lstat().st_size
    return total


def _bytes(count: int) -> str:
    """Bytes in words.

    >>> _bytes(0), _bytes(2_400_000), _bytes(5_600_000_000)
    ('0 bytes', '2 MB', '5.6 GB')
    """
    from rich.filesize import decimal

    return decimal(count, precision=1 if count >= 1e9 else 0)


def _port(port: int) -> tuple[State, str]:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return "ok", f"free, for {PORTS[port]}"
    except OSError:
        return "note", f"taken: give {PORTS[port]} another one (--port, --listen)"


def _local_superlink() -> tuple[State, str]:
    """The one that ``flwr run .`` starts, and later finds again with the environment it has."""
    from nmoe_flower.engine import flower

    port = flower.local_port()
    answer = flower.health(port)
    if answer == "nothing":
        return "ok", f"none on 127.0.0.1:{port}; flwr run . starts one with this environment"
    if answer != "superlink":
        return "fail", (
            f"another program listens on 127.0.0.1:{port}, where flwr run . wants its SuperLink: "
            f"set {flower.LOCAL_PORT} to a free port"
        )
    running = flower.superlink_process(port)
    if running is None:
        return "note", f"one answers on 127.0.0.1:{port}; its environment cannot be seen from here"
    where = f"pid {running.pid} on 127.0.0.1:{port}, of {running.programs}, in {running.cwd}"
    stop = f"stop it (kill {running.pid}); the next flwr run starts another"
    if running.installs:
        return "note", f"{where}; it installs all packages anew for every run: {stop} with " + (
            f"{flower.NO_INSTALLATION}=1"
        )
    lacks = _lacks(running.programs / "python")
    if lacks:
        return "fail", f"{where}; its environment {lacks}: {stop}"
    return "ok", where


def _lacks(python: Path) -> str:
    """What an environment would not do for a run of this package; empty if it will."""
    from importlib import metadata

    if python.parent == Path(sys.executable).parent:
        return ""
    code = (
        "import json, importlib.metadata as m\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found.get(n) for n in ('flwr', 'ray', 'torch')}))"
    )
    try:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True, timeout=20
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return "cannot be asked what it holds"
    missing = [name for name, version in found.items() if version is None]
    if missing:
        return f"has no {' and no '.join(missing)}"
    ours = metadata.version("flwr")
    if found["flwr"].split(".")[:2] != ours.split(".")[:2]:
        return f"has Flower {found['flwr']}, not {ours}"
    return ""
