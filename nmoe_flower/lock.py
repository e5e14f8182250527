"""One process at a time in a run folder.

The lock is the system's (``flock`` on ``run.lock``): it ends with the process that holds it,
however that ends, and no process id that is used again can be mistaken for it. What stands in the
file is for people: who holds the folder. Where the file system has no locks, what stands there has
to do, and a lock of another host is believed.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nmoe_flower.errors import LockedError, NMoEError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "locked"]

LOCK = "run.lock"
_TOKEN = "NMOE_RUN_LOCK"  # in the environment of programs that work for the holder
_MOST = 4096


@contextmanager
def locked(folder: Path, *, otherwise: str = "another run.name or --out") -> Iterator[None]:
    """Hold a run folder; it is made if missing, and removed again if it stays empty.

    Programs that are started meanwhile (a SuperLink with its ServerApp) may enter too: they work
    for this process, and end with it.

    Args:
        folder: The folder.
        otherwise: What else can be chosen where another process holds it; for errors.

    Raises:
        LockedError: Another process holds it; the text says which.
        NMoEError: The folder cannot be written.
    """
    path = folder / LOCK
    if _is_of_our_parent(path):
        yield
        return
    before = os.environ.get(_TOKEN)
    handle = _acquire(path, otherwise)
    try:
        token = secrets.token_hex(16)
        _write(handle, token)
        os.environ[_TOKEN] = token
        yield
    finally:
        if before is None:
            os.environ.pop(_TOKEN, None)
        else:
            os.environ[_TOKEN] = before
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: nobody can hold it under this name any more
        os.close(handle)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if it is empty


def _acquire(path: Path, otherwise: str) -> int:
    """An open file that is locked, and is the one that has the name."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise NMoEError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            if not _lock(handle, path):
                raise _refusal(path, otherwise)
            if _is_named(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed it between our two steps


def _lock(handle: int, path: Path) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        else:
            return True
    return not _is_alive(_read(path))


def _is_named(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _write(handle: int, token: str) -> None:
    holder = {
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "token": token,
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode() + b"\n", 0)


def _read(path: Path) -> dict[str, Any]:
    """Who holds the folder, as far as the file tells."""
    try:
        with path.open("rb") as file:
            holder = json.loads(file.read(_MOST))
    except (OSError, ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _refusal(path: Path, otherwise: str) -> LockedError:
    holder = _read(path)
    host = holder.get("host", "an unknown host")
    where = "" if host == socket.gethostname() else f" on {host}"
    since = f" since {holder['since']}" if "since" in holder else ""
    return LockedError(
        f"{path.parent} is in use by process {holder.get('pid', 'unknown')}{where}{since}: wait "
        f"for it, end it, or choose {otherwise}"
    )


def _is_of_our_parent(path: Path) -> bool:
    token = os.environ.get(_TOKEN)
    holder = _read(path) if token else {}
    return bool(token) and holder.get("token") == token and holder.get("pid") != os.getpid()


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the process that is named still runs; one of another host is believed to."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or not 1 <= pid < 1 << 31:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is somebody else's
    return holder.get("started") in (None, _started(pid))


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's own count; None where that cannot be told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
