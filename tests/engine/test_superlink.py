"""The one test file that starts a real SuperLink and Ray."""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nmoe_flower.config import Config
from nmoe_flower.engine import processes, run_simulation, superlink, write_app
from nmoe_flower.engine.programs import excerpt, parse_output
from nmoe_flower.engine.signals import StopSignal
from nmoe_flower.errors import EngineError

pytestmark = pytest.mark.flower

SERVER = """
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    if context.run_config["test.fail"]:
        raise ValueError("a planted failure")
    deadline = time.monotonic() + 60
    while len(ids := list(grid.get_node_ids())) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    content = RecordDict({"ask": ConfigRecord({"x": 1})})
    replies = grid.send_and_receive([Message(content, i, "query") for i in ids], timeout=60)
    found = sorted(reply.content["answer"]["partition"] for reply in replies)
    environment = {reply.content["answer"]["threads"] for reply in replies}
    Path(context.run_config["test.out"]).write_text(f"{found} {sorted(environment)}")
    print("the server was here")
"""
CLIENT = """
import os

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message, context):
    answer = {"partition": context.node_config["partition-id"]}
    answer["threads"] = os.environ["OMP_NUM_THREADS"]
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)
"""


def _app(folder: Path, *, fail: bool) -> Path:
    config = {"test.fail": fail, "test.out": str(folder / "out.txt")}
    app = write_app(folder / "app", config, serverapp="its_server:app", clientapp="its_client:app")
    (app / "its_server.py").write_text(SERVER)
    (app / "its_client.py").write_text(CLIENT)
    return app


@pytest.fixture(autouse=True)
def _temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Temporary files of these tests alone, not of those beside them; short, for Ray's sockets.

    ``tmp_path`` was made before, with the folder that pytest keeps.
    """
    with tempfile.TemporaryDirectory(prefix="sl-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield


def _homes() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("nmoe-*"))


def _simulations() -> set[int]:
    return {pid for home in _homes() for pid, _ in processes.family(f"FLWR_HOME={home}")}


@pytest.mark.ray
def test_a_run_succeeds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    homes, lines, ticks = _homes(), list[str](), list[int]()
    superlink.run_simulation(
        _app(tmp_path, fail=False),
        num_supernodes=3,
        num_cpus=2,
        log=lines.append,
        on_tick=lambda: ticks.append(1),
    )
    assert (tmp_path / "out.txt").read_text() == "[0, 1, 2] ['1']"
    assert any("the server was here" in line for line in lines)
    assert not any("\x1b" in line for line in lines)
    assert ticks
    assert _homes() <= homes
    assert not _simulations()


@pytest.mark.ray
def test_a_failing_server_app_is_an_error_with_its_traceback(tmp_path: Path) -> None:
    homes = _homes()
    with pytest.raises(EngineError, match="a planted failure") as caught:
        superlink.run_simulation(
            _app(tmp_path, fail=True), num_supernodes=3, num_cpus=1, log=lambda _: None
        )
    assert "finished:failed" in str(caught.value)
    assert "its_server.py" in str(caught.value)
    assert not (tmp_path / "out.txt").exists()
    assert _homes() <= homes
    assert not _simulations()


def test_a_run_is_over_though_its_log_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection may be lost; what the status says counts."""
    monkeypatch.setattr(superlink, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(superlink, "_READER_SECONDS", 0.2)
    said = iter([("running", ""), ("finished:completed", "")])
    monkeypatch.setattr(superlink._SuperLink, "_status", lambda link, run_id: next(said))
    link = superlink._SuperLink(1.0, {})
    command = [sys.executable, "-c", "import time; print('round 1', flush=True); time.sleep(600)"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stream,
        subprocess.Popen(command, stdout=subprocess.DEVNULL) as server,
    ):
        link._server = server
        monkeypatch.setattr(link, "_spawn", lambda *words: stream)
        lines: list[str] = []
        try:
            link.follow(1, lines.append, lambda: None)
        finally:
            stream.kill()
            server.kill()
    assert lines == ["round 1"]
    assert next(said, None) is None


def test_the_app_folder_holds_the_whole_run_config(tmp_path: Path) -> None:
    config = {
        **Config.parse({}).flat(),
        "data.dataset": 'a "quoted" \\ näme\n',
        "extractor.learning-rate": 5e-05,
    }
    app = write_app(tmp_path / "app", config)
    written = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    flower = written["tool"]["flwr"]["app"]
    flat = {
        f"{table}.{key}": value
        for table, values in flower["config"].items()
        for key, value in values.items()
    }
    assert flat == config
    assert flower["components"] == {
        "serverapp": "nmoe_flower.server_app:app",
        "clientapp": "nmoe_flower.client_app:app",
    }
    assert len(written["project"]["name"]) <= 32


def test_missing_programs_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(broken / "python"))
        with pytest.raises(EngineError, match=r"flower-superlink.*\[simulation\]"):
            superlink.run_simulation(tmp_path, num_supernodes=2, log=lambda _: None)


def test_a_superlink_that_ends_at_once_is_an_error(tmp_path: Path) -> None:
    """A stand-in for flower-superlink that says why it cannot start."""
    homes = _homes()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    for name in ("flwr", "flower-superlink"):
        (programs / name).write_text("#!/bin/sh\necho the port is taken\nexit 3\n")
        (programs / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(programs / "python"))
        with pytest.raises(EngineError, match="the port is taken"):
            superlink.run_simulation(tmp_path, num_supernodes=2, log=lambda _: None)
    assert _homes() <= homes


def test_the_excerpt_starts_at_the_last_traceback() -> None:
    lines = [
        "INFO one",
        "Traceback (most recent call last):",
        "  here",
        "",
        "ValueError: x",
        "ERROR",
    ]
    assert excerpt(lines) == "\n".join([*lines[1:3], *lines[4:]])
    assert excerpt(["a", "ERROR b", "c"]) == "ERROR b\nc"
    assert excerpt([str(number) for number in range(20)]) == "\n".join(
        str(number) for number in range(10, 20)
    )


def test_an_answer_is_found_between_other_output() -> None:
    assert parse_output('Loading...\n{"run-id": "7"}\n') == {"run-id": "7"}
    assert parse_output("no object here") == {}


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), StopSignal(143)])
def test_a_run_is_asked_to_save_before_all_is_taken_down(
    stop: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a signal Ray ends the ServerApp at once; Flower's own stop lets it save."""
    done: list[object] = []

    class Link:
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> "Link":
            return self

        def __exit__(self, *_: object) -> None:
            done.append("down")

        def submit(self, *_: object) -> int:
            return 7

        def follow(self, *_: object) -> None:
            raise stop

        def stop(self, run_id: int) -> None:
            done.append(run_id)

    monkeypatch.setattr(superlink, "_SuperLink", Link)
    monkeypatch.setattr(superlink, "require_ray", lambda: None)
    with pytest.raises(type(stop)):
        run_simulation(tmp_path, num_supernodes=2, log=print)
    assert done == [7, "down"]
