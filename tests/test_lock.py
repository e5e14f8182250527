"""One process at a time in a run folder, and none for ever."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nmoe_flower import cli, lock
from nmoe_flower.config import Config
from nmoe_flower.errors import LockedError
from nmoe_flower.lock import LOCK, locked
from nmoe_flower.results import RunFolder

HOLDER = """
import sys
from pathlib import Path
from nmoe_flower.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that holds a folder."""

    def __init__(self, folder: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != lock._TOKEN}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def end(self, *, killed: bool) -> None:
        if killed:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def held(tmp_path):
    holder = Holder(tmp_path / "run")
    yield holder
    holder.end(killed=True)


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_second_is_refused_by_name_and_pid(tmp_path, held):
    with pytest.raises(LockedError) as caught, locked(tmp_path / "run"):
        pass
    said = str(caught.value)
    assert f"{tmp_path / 'run'} is in use by process {held.process.pid} since " in said
    assert "--out" in said


@pytest.mark.parametrize("killed", [False, True])
def test_the_next_takes_over_when_the_holder_has_ended(tmp_path, held, killed):
    held.end(killed=killed)
    assert (tmp_path / "run" / LOCK).exists() == killed
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run").exists()


def test_what_stands_in_the_folder_stays(tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    with locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


def test_a_process_does_not_enter_twice(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(LockedError, match=f"process {os.getpid()} "), locked(tmp_path / "run"):
            pass
        with locked(tmp_path / "other"):
            pass


def test_a_program_that_works_for_the_holder_may_enter(tmp_path):
    """As the ServerApp in a SuperLink that nmoe run has started."""
    code = HOLDER.replace("sys.stdin.read()", "pass")
    with locked(tmp_path / "run"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
        assert done.returncode == 0
        assert (tmp_path / "run" / LOCK).exists()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert done.returncode == 0


def test_the_lock_of_a_file_that_was_removed_is_taken_again(tmp_path, monkeypatch):
    """Its holder removes the file between our opening it and our locking it."""
    real, removed = lock._lock, []

    def late(handle, path):
        if not removed:
            path.unlink()
            removed.append(path)
        return real(handle, path)

    monkeypatch.setattr(lock, "_lock", late)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()


# --- file systems without locks: what stands in the file has to do ---


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(*_):
        raise OSError("no locks available")

    if lock.fcntl is not None:
        monkeypatch.setattr(lock.fcntl, "flock", refuse)


def left_behind(folder: Path, **holder: object) -> None:
    mine = {"pid": os.getpid(), "started": lock._started(os.getpid()), "host": socket.gethostname()}
    folder.mkdir()
    (folder / LOCK).write_text(json.dumps({**mine, **holder}))


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_living_holder_is_believed(tmp_path):
    left_behind(tmp_path / "run")
    with pytest.raises(LockedError), locked(tmp_path / "run"):
        pass


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize(
    "holder", [{"started": "an age ago"}, {"pid": "x"}, {"pid": -1}, {"pid": 10**30}, "dead"]
)
def test_without_locks_a_dead_one_is_not(tmp_path, holder):
    """An id that is used again belongs to a process that began at another time."""
    if lock._started(os.getpid()) is None and "started" in holder:
        pytest.skip("when a process began cannot be told here")
    left_behind(tmp_path / "run", **({"pid": dead_pid()} if holder == "dead" else holder))
    with locked(tmp_path / "run"):
        pass


@pytest.mark.usefixtures("without_locks")
def test_without_locks_one_of_another_host_is_believed(tmp_path):
    left_behind(tmp_path / "run", host="elsewhere", pid=dead_pid())
    with pytest.raises(LockedError, match="on elsewhere"), locked(tmp_path / "run"):
        pass


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 5000, "\xff"])
def test_without_locks_what_nobody_can_read_is_nobodys(tmp_path, text):
    (tmp_path / LOCK).write_text(text, encoding="latin-1")
    with locked(tmp_path):
        pass


# --- the commands ---

QUICK = ["data.num-clients=4", "data.train-per-client=60", "data.test-per-client=10"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["--name", "x"], ["--name", "x", "--overwrite"], ["--resume", "runs/x"]]
)
def test_a_run_in_use_is_not_begun_resumed_or_overwritten(here, capsys, arguments):
    path = here / "runs" / "x"
    RunFolder.create(path, Config.load(None, [*QUICK, "run.name=x", f"run.out={path.parent}"]))
    before = {name.name: name.read_bytes() for name in path.iterdir()}
    holder = Holder(path)
    try:
        settings = [] if "--resume" in arguments else ["--set", *QUICK]
        assert cli.main(["run", "--no-figures", "--workers", "0", *arguments, *settings]) == 1
    finally:
        holder.end(killed=False)
    assert f"in use by process {holder.process.pid}" in capsys.readouterr().err
    assert {name.name: name.read_bytes() for name in path.iterdir()} == before
