"""One Python process with everything imported, whose forks run `nmoe`, `python` and more at once.

A page has dozens of commands, and importing torch takes each of them seconds. `Warm` writes small
programs, `nmoe` and `python` unless told otherwise, into a folder to put first on the PATH. They
send their arguments, folder, environment and standard streams to the warm process, which forks: the
fork is the command. What it does is the same; only the imports are done already. A fork ends with
the program that asked for it, even if that is killed.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import nmoe_flower

SOCKET = "socket"
CLIENT = """\
#!{python} -SE
import os, signal, socket, sys, json
sys.path = []
link = socket.socket(socket.AF_UNIX)
link.connect({socket!r})
told = [{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ), os.getpgrp()]
told = json.dumps(told).encode()
socket.send_fds(link, [len(told).to_bytes(8, "big")], [0, 1, 2])
link.sendall(told)
child = int.from_bytes(link.recv(8), "big")
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(child, number))
sys.exit(int.from_bytes(link.recv(8), "big"))
"""


PAGES = ("nmoe", "python")
CHANGED = "nmoe of a page's own package"


class Warm:
    """A warm process and the folder with its programs; a context manager.

    The programs of its folder ``changed`` do the same with the package of PYTHONPATH.

    Args:
        folder: An empty folder for the programs.
        names: Which ones: `nmoe` (as pages run it), `python`, and any command an installed package
            brings.
    """

    def __init__(self, folder: Path, names: Sequence[str] = PAGES) -> None:
        self.programs = folder
        self.changed = folder / "changed"
        self.changed.mkdir()
        self._names = names
        for name in names:
            self._write(folder / name, name)
        self._write(self.changed / "nmoe", CHANGED)

    def _write(self, path: Path, name: str) -> None:
        socket = str(self.programs / SOCKET)
        text = CLIENT.format(python=sys.executable, socket=socket, name=name)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def __enter__(self) -> "Warm":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.programs / SOCKET))
        listener.listen(64)
        command = [sys.executable, __file__, str(listener.fileno()), *self._names]
        self._process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        listener.close()  # the process has it; a client that comes early waits in the queue
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()


def _serve(listener: socket.socket) -> None:
    """Fork for every client; a second fork waits for the first and tells its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(_answer(link))
        link.close()


def _answer(link: socket.socket) -> int:
    head, streams, _, _ = socket.recv_fds(link, 8, 3)
    told = b""
    while len(told) < int.from_bytes(head, "big"):
        told += (more := link.recv(1 << 16))
        if not more:  # killed while it asked
            return 0
    program, arguments, folder, environment, group = json.loads(told)
    command = os.fork()
    if command == 0:
        link.close()
        with contextlib.suppress(PermissionError):  # of another session
            os.setpgid(0, group)  # ends with its terminal, like any command
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os._exit(_run(program, arguments))
    for stream in streams:
        os.close(stream)
    threading.Thread(target=_end_with_client, args=(link, command), daemon=True).start()
    with contextlib.suppress(OSError):  # the client may be gone by now
        link.sendall(command.to_bytes(8, "big"))
    _, status = os.waitpid(command, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        link.sendall((code if code >= 0 else 128 - code).to_bytes(8, "big"))
    return 0


def _end_with_client(link: socket.socket, command: int) -> None:
    """A client says nothing more: once the link can be read, it is gone."""
    with contextlib.suppress(ConnectionResetError):  # it has gone without having read all
        link.recv(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(command, signal.SIGKILL)


def _run(program: str, arguments: list[str]) -> int:
    """The command itself; returns its exit code."""
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    code: Any = 0
    try:
        if program == CHANGED:
            _forget()
        if os.environ.get("PAGE_WORKERS") == "0":
            importlib.import_module("nmoe_flower.running").usable_cores = lambda: 0
            importlib.import_module("nmoe_flower.study.run").PROGRAM[0] = "python"  # a fork, too
        if program in ("nmoe", CHANGED):
            sys.argv = ["nmoe", *arguments]
            from pages import shortened

            from nmoe_flower.cli import main

            code = main(shortened(arguments, os.environ))
        elif program == "python":
            _python(arguments)
        else:
            sys.argv = [program, *arguments]
            code = _command(program)()
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    if isinstance(code, str):
        os.write(2, f"{code}\n".encode())
        return 1
    return code or 0


def _forget() -> None:
    """Leave the package to be imported anew, from where a new process would."""
    for name in list(sys.modules):
        if name.partition(".")[0] == nmoe_flower.__name__:
            del sys.modules[name]
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)


def _command(name: str) -> Any:
    (script,) = entry_points(group="console_scripts", name=name)
    return script.load()


def _python(arguments: list[str]) -> None:
    """`python -c TEXT`, `python -m MODULE`, `python -` and `python FILE`."""
    kind, rest = (arguments[0], arguments[1:]) if arguments else ("-", [])
    sys.argv = [kind, *rest]
    sys.path.insert(0, "")
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind in ("-c", "-"):
        text = rest.pop(0) if kind == "-c" else sys.stdin.read()
        sys.argv = [kind, *rest]
        exec(compile(text, "<page>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0] = str(Path(kind).parent)
        runpy.run_path(kind, run_name="__main__")


def _load(names: Sequence[str]) -> None:
    """Import what commands import late. Nothing computes before a fork, so no thread is lost."""
    import matplotlib

    matplotlib.use("agg")
    late = ["torch._dynamo", "torch.optim", "matplotlib.pyplot", "opacus", "sklearn.datasets"]
    if "python" in names:  # for pages on text
        late.append("peft")
    for name in late:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(nmoe_flower.__path__, "nmoe_flower."):
        importlib.import_module(module.name)
    for name in set(names) - set(PAGES):
        _command(name)


if __name__ == "__main__":
    _load(sys.argv[2:])
    _serve(socket.socket(fileno=int(sys.argv[1])))
