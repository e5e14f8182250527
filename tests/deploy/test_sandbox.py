"""Whatever happens on a sandbox, nothing is left behind."""

import contextlib
from pathlib import Path

import pytest

from nmoe_flower.deploy.sandbox import Sandbox, tail
from nmoe_flower.errors import EngineError

FAMILY = "sleep 600 & echo $!; (setsid sleep 600 & echo $!); exec sleep 600"


def lines(log: Path) -> list[str]:
    return log.read_text().split() if log.is_file() else []


def alive(pid: int) -> bool:
    """Running, and not only waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_children_and_grandchildren_end_with_the_stage(tmp_path: Path) -> None:
    """Also one in a session of its own, as Flower's programs start them."""
    log = tmp_path / "log"
    with contextlib.suppress(KeyboardInterrupt), Sandbox() as sandbox:
        child = sandbox.start(["sh", "-c", FAMILY], folder=tmp_path, log=log)
        sandbox.wait(lambda: len(lines(log)) == 2, 30.0, "the family", log=log, alive=child)
        family = [child.pid, *map(int, lines(log))]
        assert all(alive(pid) for pid in family)
        own = sandbox.folder.parent
        raise KeyboardInterrupt
    assert not any(alive(pid) for pid in family)
    assert not own.exists()


def test_a_folder_that_was_given_is_kept(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "lab") as sandbox:
        assert sandbox.folder == (tmp_path / "lab").resolve()
        sandbox.run(["sh", "-c", "echo $NMOE_STAGE"], folder=tmp_path, log=sandbox.folder / "log",
                  seconds=30.0)  # fmt: skip
    assert "nmoe-stage-" in (tmp_path / "lab" / "log").read_text()


def test_what_fails_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Sandbox() as sandbox:
        with pytest.raises(EngineError, match=r"ended: exit code 3:\nERROR no network"):
            sandbox.run(
                ["sh", "-c", "echo fine; echo ERROR no network; exit 3"],
                folder=tmp_path, log=log, seconds=30.0,
            )  # fmt: skip
        child = sandbox.start(["sh", "-c", "exit 4"], folder=tmp_path, log=log)
        with pytest.raises(EngineError, match="the SuperLink ended: exit code 4"):
            sandbox.wait(lambda: False, 30.0, "the SuperLink", log=log, alive=child)


def test_every_wait_has_an_end(tmp_path: Path) -> None:
    with Sandbox() as sandbox, pytest.raises(EngineError, match=r"not within 0\.2 s"):
        sandbox.run(["sleep", "600"], folder=tmp_path, log=tmp_path / "log", seconds=0.2)


def test_a_log_that_is_not_there_has_no_end(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == ""
    assert not list(tmp_path.iterdir())
