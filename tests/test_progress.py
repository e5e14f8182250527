"""Round records on a terminal, in a file, for a script; and the follower of a growing file."""

import io
import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nmoe_flower.progress import Follower, Progress, _Live, _Silence, _Text, make_progress


def record(number: int, rounds: int = 100, **changes: Any) -> dict[str, Any]:
    plain = {
        "stage": "extractor",
        "round": number,
        "rounds": rounds,
        "metrics": {"loss": 1.25},
        "clients": [0, 1, 2],
        "failures": [],
        "bytes_up": 1_000_000,
        "bytes_down": 500_000,
        "seconds": 0.25,
    }
    return plain | changes


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Collected:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []

    def update(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)

    def answered(self, stage: str, count: int, clients: int) -> None:
        self.records.append({"stage": stage, "count": count, "clients": clients})

    def message(self, text: str) -> None:
        self.records.append({"message": text})

    def close(self) -> None:
        pass


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    return Terminal()


def test_text_shows_first_and_last_round_and_one_line_per_two_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = make_progress("text", stream, clock=clock)
    for number in range(1, 101):
        clock.now = 0.1 * number  # 10 s for 100 rounds: 0.1, then 2.1, 4.1, 6.1, 8.1, and 10.0
        progress.update(record(number))
    shown = [int(line.split()[1].partition("/")[0]) for line in stream.getvalue().splitlines()]
    assert shown[0] == 1
    assert shown[-1] == 100
    assert len(shown) == 6


def test_a_text_line_has_position_metrics_clients_bytes_and_seconds() -> None:
    stream = io.StringIO()
    make_progress("text", stream).update(record(7))
    assert stream.getvalue() == "extractor   7/100  loss 1.250  3 ok  1.5 MB  0.25 s/round\n"


def test_every_failure_is_shown_whatever_the_time() -> None:
    stream = io.StringIO()
    progress = make_progress("text", stream, clock=Clock())
    failure = {"partition": 3, "reason": "NaN in head.weight"}
    for number in (1, 2, 3):
        progress.update(record(number, failures=[failure]))
    lines = stream.getvalue().splitlines()
    assert sum("client 3 dropped: NaN in head.weight" in line for line in lines) == 3
    assert "3 ok, 1 failed" in lines[0]


def test_stages_are_timed_apart() -> None:
    stream = io.StringIO()
    progress = make_progress("text", stream, clock=Clock())
    progress.update(record(1))
    progress.update(record(2))
    progress.update(record(1, stage="gate/federated"))
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == [
        "extractor",
        "gate/federated",
    ]


@pytest.mark.parametrize("value", [None, "text", [1.0]])
def test_metrics_that_are_no_numbers_are_left_out(value: Any) -> None:
    stream = io.StringIO()
    make_progress("text", stream).update(record(1, metrics={"loss": value, "accuracy": 0.5}))
    assert "loss" not in stream.getvalue()
    assert "accuracy 0.500" in stream.getvalue()


def test_json_lines_are_the_records() -> None:
    stream = io.StringIO()
    progress = make_progress("json", stream)
    progress.update(record(1))
    progress.message("hello")
    progress.close()
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        record(1),
        {"message": "hello"},
    ]


def test_auto_is_text_when_the_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    make_progress("auto", stream).update(record(1))
    assert stream.getvalue().startswith("extractor   1/100")


def test_a_terminal_shows_done_stages_and_the_time_left(terminal: Terminal) -> None:
    clock = Clock()
    progress = make_progress("auto", terminal, clock=clock)
    progress.update(record(10, rounds=10, stage="extractor"))
    clock.now = 4.25
    progress.update(record(1, rounds=4, stage="gate/federated"))
    clock.now = 8.0
    # Two of four rounds took 8 - (4.25 - 0.25) = 4 s, so two more take 4 s.
    progress.update(record(2, rounds=4, stage="gate/federated"))
    progress.message("[not markup]")
    progress.close()
    last = terminal.getvalue().rpartition("extractor")[2]
    assert "✓" in terminal.getvalue()
    assert "2/4" in last
    assert "4 s left" in last
    assert "[not markup]" in terminal.getvalue()


# What a round of 80 columns says where there is room for all of it.
WHOLE = {"metrics": {"loss": 1.25, "accuracy-local": 0.5}, "clients": [*range(10)]}


def live_lines(
    monkeypatch: pytest.MonkeyPatch, columns: int, records: list[dict[str, Any]], lines: int = 24
) -> list[str]:
    """What stands on a terminal of that width after these records, from its buffer."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    clock = Clock()
    progress = make_progress("auto", Terminal(), clock=clock)
    assert isinstance(progress, _Live)
    for one in records:
        clock.now += 3
        progress.update(one)
    view = str(progress._view())
    progress.close()
    assert max(map(len, view.splitlines())) <= columns
    return view.splitlines()


@pytest.mark.parametrize(
    ("columns", "kept", "gone"),
    [
        (120, ["━", "left", "loss 1.250", "10 ok", "accuracy-local", "s/round"], []),
        (100, ["━", "left", "loss 1.250", "10 ok", "accuracy-local"], ["MB"]),
        (80, ["━", "left", "loss 1.250", "10 ok"], ["MB", "s/round"]),
        (60, ["left", "loss 1.250"], ["MB", "━"]),
        (40, ["loss 1.250"], ["MB", "━", "left"]),
    ],
)
def test_a_narrow_terminal_keeps_stage_and_round_and_drops_bytes_first(
    monkeypatch: pytest.MonkeyPatch, columns: int, kept: list[str], gone: list[str]
) -> None:
    told = [record(100, **WHOLE), record(7, 100, stage="gate/federated", **WHOLE)]
    first, second = live_lines(monkeypatch, columns, told)
    assert first.startswith("✓ extractor ")
    assert "100/100" in first
    assert second.startswith("▸ gate/federated ")
    assert " 7/100" in second
    assert [word for word in kept if word not in second] == []
    assert [word for word in gone if word in second] == []


@pytest.mark.parametrize("columns", [20, 24, 30, 40, 60, 80, 120])
@pytest.mark.parametrize("stage", ["extractor", "control:local-classifier-test", "x"])
def test_no_width_breaks_a_line_or_loses_the_round(
    monkeypatch: pytest.MonkeyPatch, columns: int, stage: str
) -> None:
    (line,) = live_lines(monkeypatch, columns, [record(7, stage=stage, **WHOLE)])
    assert "7/100" in line
    assert line.split()[1][:4] == stage[:4]


def test_many_stages_on_a_low_terminal_show_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [record(1, 1, stage=f"stage-{number}") for number in range(30)]
    lines = live_lines(monkeypatch, 80, told, lines=10)
    assert [line.split()[1] for line in lines] == [f"stage-{number}" for number in range(23, 30)]


def test_a_terminal_says_what_it_waits_for(terminal: Terminal) -> None:
    clock = Clock()
    progress = make_progress("auto", terminal, clock=clock)
    assert isinstance(progress, _Live)
    progress.update(record(100))
    progress.answered("experts", 3, 10)
    clock.now = 4.9
    assert "answered" not in str(progress._view())
    clock.now = 12.0
    assert str(progress._view()).splitlines()[-1] == (
        "  experts: 3 of 10 clients have answered, 12 s without news"
    )
    progress.update(record(1, 1, stage="experts"))
    assert "answered" not in str(progress._view())
    progress.close()


def test_silence_is_broken_after_5_10_20_and_40_seconds_and_then_each_minute() -> None:
    clock, told = Clock(), list[float]()
    silence = _Silence(told.append, clock)
    silence.end()  # no thread: time is told by hand
    for second in range(201):
        clock.now = float(second)
        silence.look()
    assert told == [5, 10, 20, 40, 80, 140, 200]
    silence.broken()
    clock.now = 204.0
    silence.look()
    assert told[-1] == 200
    clock.now = 205.0
    silence.look()
    assert told[-1] == 5


def test_plain_text_says_how_many_have_answered() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = make_progress("text", stream, clock=clock)
    assert isinstance(progress, _Text)
    progress.close()  # no thread: time is told by hand
    progress.message("run folder x")
    clock.now = 6.0
    progress._silence.look()
    progress.answered("experts", 3, 10)
    clock.now = 12.0
    progress._silence.look()
    progress.update(record(1, 1, stage="experts"))
    progress.answered("", 0, 0)
    clock.now = 14.0
    progress._silence.look()
    assert stream.getvalue().splitlines() == [
        "run folder x",
        "  still at work, 6 s without news",
        "  experts: 3 of 10 clients have answered, 12 s without news",
        "experts 1/1  loss 1.250  3 ok  1.5 MB  0.25 s/round",
    ]


def test_a_watcher_tells_by_itself_and_ends_with_its_reader() -> None:
    """Real threads: one that tells, and one whose reader has left."""
    heard = threading.Event()
    clock = Clock()
    silence = _Silence(lambda seconds: heard.set(), clock)
    clock.now = 5.0
    assert heard.wait(20)
    silence.end()

    stream, clock = io.StringIO(), Clock()
    progress = make_progress("text", stream, clock=clock)
    assert isinstance(progress, _Text)
    stream.close()
    clock.now = 5.0
    progress._silence._watcher.join(20)
    assert not progress._silence._watcher.is_alive()


def test_json_has_no_line_for_answers_and_silence() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = make_progress("json", stream, clock=clock)
    progress.answered("experts", 3, 10)
    clock.now = 100.0
    progress.close()
    assert stream.getvalue() == ""


@pytest.fixture
def collected() -> Collected:
    found = Collected()
    as_progress: Progress = found
    assert as_progress is found
    return found


def test_the_follower_waits_for_the_file_and_for_whole_lines(
    tmp_path: Path, collected: Collected
) -> None:
    path = tmp_path / "rounds.jsonl"
    follow = Follower(path, collected)
    follow()
    assert collected.records == []
    line = json.dumps(record(1)) + "\n"
    path.write_text(line + line[:20])
    follow()
    assert collected.records == [record(1)]
    path.write_text(line + line)
    follow()
    follow()
    assert collected.records == [record(1), record(1)]


def test_the_follower_skips_damaged_lines(tmp_path: Path, collected: Collected) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(b"\xff{broken\n[1, 2]\n" + json.dumps(record(2)).encode() + b"\n")
    Follower(path, collected)()
    assert collected.records == [record(2)]


def test_the_follower_of_a_resumed_run_shows_new_rounds_only(
    tmp_path: Path, collected: Collected
) -> None:
    path = tmp_path / "rounds.jsonl"
    lines = [json.dumps(record(number)) + "\n" for number in range(1, 6)]
    path.write_text("".join(lines[:4]))
    follow = Follower(path, collected, from_end=True)
    path.write_text("".join(lines[:2]))  # the run drops what came after its checkpoint
    follow()
    assert collected.records == []
    path.write_text("".join(lines[:3]))
    follow()
    assert collected.records == [record(3)]


class Shell:
    """What a notebook's kernel has: a shell with a kernel, and a display that can be redrawn."""

    kernel = object()

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, view: dict[str, str], *, raw: bool, display_id: bool) -> "Shell":
        assert raw
        assert display_id
        self.shown.append(view["text/plain"])
        return self

    def update(self, view: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(view["text/plain"])
        self.html = view["text/html"]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    display = SimpleNamespace(display=shell.display)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shell


def test_a_notebook_shows_stages_that_are_drawn_anew(
    notebook: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    view = make_progress("auto", clock=clock)
    view.message("run folder <runs>")
    for number in (1, 2, 3):
        clock.now += 0.1
        view.update(record(number))
    assert "extractor" in notebook.shown[-1]
    assert "1/100" in notebook.shown[-1]  # two rounds later, but not a quarter of a second
    clock.now += 0.2
    view.update(record(4))
    said, stage = notebook.shown[-1].splitlines()
    assert said == "run folder <runs>"
    assert stage.startswith("▸ extractor")
    assert "4/100" in stage
    view.update(record(100))
    view.close()
    assert notebook.shown[-1].splitlines()[1].startswith("✓ extractor")
    assert notebook.html.startswith("<pre>run folder &lt;runs&gt;\n✓ extractor")
    assert capsys.readouterr().out == ""


def test_a_notebook_tells_of_silence(notebook: Shell) -> None:
    clock = Clock()
    view = make_progress("auto", clock=clock)
    view.answered("experts", 1, 10)
    clock.now += 7.0
    view._watch.look()  # type: ignore[attr-defined]
    view.close()
    assert "  experts: 1 of 10 clients have answered, 7 s without news" in notebook.shown
    assert notebook.shown[-1] == ""


def test_a_notebook_shows_nothing_where_nothing_was_said(notebook: Shell) -> None:
    view = make_progress("auto", clock=Clock())
    view.close()
    assert notebook.shown == []


def test_elsewhere_ipython_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    view = make_progress("auto")
    view.close()
    assert isinstance(view, _Text)


def test_nothing_is_shown_of_what_nobody_wants(capsys: pytest.CaptureFixture[str]) -> None:
    view = make_progress(None)
    view.message("run folder")
    view.update(record(1))
    view.answered("experts", 1, 10)
    view.close()
    assert capsys.readouterr() == ("", "")
