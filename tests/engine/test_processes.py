"""Taking a simulation down: every process that carries its mark, and those they started."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nmoe_flower.engine import processes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes")

# A marked parent whose child has left its session and lost its environment, as Ray's workers do.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(600)"], env={}, start_new_session=True
)
print(child.pid, flush=True)
time.sleep(600)
"""
# The same, but SIGTERM does not impress it.
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(0, flush=True);"
    "import time; time.sleep(600)"
)


def _start(code: str, mark: str) -> tuple["subprocess.Popen[str]", int]:
    name, _, value = mark.partition("=")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {name: value},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        return process, int(process.stdout.readline())


def _gone(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] == "Z"


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_family_is_the_marked_processes_and_their_descendants(tmp_path: Path) -> None:
    mark = f"NMOE_TEST={tmp_path}"
    parent, child = _start(PARENT, mark)
    assert {pid for pid, _ in processes.family(mark)} == {parent.pid, child}
    assert processes.end(mark, children=[parent]) == set()
    assert parent.returncode == -15
    assert _gone(child)
    assert processes.family(mark) == set()


def test_other_marks_are_left_alone(tmp_path: Path) -> None:
    process, _ = _start(STUBBORN, f"NMOE_TEST={tmp_path}")
    try:
        assert processes.end(f"NMOE_TEST={tmp_path}/other") == set()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_what_ignores_the_request_is_killed(tmp_path: Path) -> None:
    mark = f"NMOE_TEST={tmp_path}"
    process, _ = _start(STUBBORN, mark)
    assert processes.end(mark, grace=0.1, children=[process]) == set()
    assert process.returncode == -9


def test_the_guard_cleans_up_after_a_killed_parent(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys, time; from pathlib import Path;"
        f"sys.path.insert(0, {str(Path(processes.__file__).parent)!r}); import processes;"
        f"guard = processes.guard(Path({str(home)!r}), mark='FLWR_HOME={home}');"
        "print(guard.pid, flush=True);"
        "time.sleep(600)"
    )
    owner, guard = _start(code, "NMOE_TEST=owner")
    marked, child = _start(PARENT, f"FLWR_HOME={home}")
    owner.kill()
    owner.wait()
    assert _soon(lambda: marked.poll() is not None and _gone(child) and not home.exists())
    assert _soon(lambda: _gone(guard))
