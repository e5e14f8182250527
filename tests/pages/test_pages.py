"""What the pages show is run: every block, in order, as a reader would paste it."""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nmoe_flower.addresses import free_ports
from nmoe_flower.config import Config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import pages as tool  # noqa: E402
from warm import Warm  # noqa: E402

PAGES = [page for page in tool.pages() if tool.blocks(page)]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("warm")
    with Warm(folder):
        yield folder


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page: str, programs: Path, tmp_path: Path) -> None:
    blocks = tool.blocks(page)
    edits = tool.edits(blocks)
    tool.scratch(tmp_path, whole=edits)
    changed = programs / "changed"  # of a page that has a package of its own
    with tool.Reader(tmp_path, programs, edits=edits, changed=changed) as reader:
        for block in blocks:
            if not block.needs:
                reader.follow(block)


# --- the tool itself: a test that runs pages must not pass because it reads them wrongly ---


def page(folder: Path, text: str) -> list[tool.Block]:
    (folder / "page.md").write_text(text, encoding="utf-8")
    return tool.blocks("page.md", folder)


def test_marks_belong_to_the_block_after_them(tmp_path: Path) -> None:
    first, second, third = page(
        tmp_path,
        "# Page\n\n<!-- needs: gpu, minutes -->\n<!-- run: --set a.b=1 -->\n```bash\none\n```\n"
        "\n- as in `x.csv`:\n\n<!-- file: x.csv -->\n```csv\na,b\n```\n"
        "\n    ```python\n    if True:\n        pass\n    ```\n",
    )
    assert (first.needs, first.run, first.line) == (("gpu", "minutes"), "--set a.b=1", 5)
    assert (second.needs, second.file, second.text) == ((), "x.csv", "a,b\n")
    assert (third.language, third.text) == ("python", "if True:\n    pass\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```\nnmoe run\n```\n", "page.md:1: language ''"),
        ("```ruby\n```\n", "language 'ruby'; allowed: bash, python"),
        ("<!-- needs: gpu -->\n\nwords\n\n```bash\n```\n", "a mark with no block after it"),
        ("<!-- wants: gpu -->\n```bash\n```\n", "an unknown one: <!-- wants: gpu -->"),
        ("In a.py:\n\n<!-- edit: b.py -->\n```diff\n```\n", "does not name the file b.py"),
        ("In a.csv:\n\n<!-- file: b.csv -->\n```csv\n```\n", "does not name the file b.csv"),
    ],
)
def test_what_a_page_may_not_say(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(tool.BlockError) as caught:
        page(tmp_path, text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```bash\necho said; false\ntrue\n```\n", "page.md:1: exit code 1"),
        ("```bash\nfalse | true\n```\n", "exit code 1"),
        ("<!-- exit: 1 -->\n```bash\ntrue\n```\n", "exit code 0"),
        ("```bash\necho $missing\n```\n", "unbound variable"),
        ("```bash\nnmoe run --set data.taw=1\n```\n", "unknown key"),
        ("```python\nassert 1 == 2\n```\n", 'File "page.md:1", line 1'),
        ("```python\nimport warnings\nwarnings.warn('old')\n```\n", "UserWarning: old"),
        ("```python\nraise SystemExit\n```\n", "SystemExit"),
        ('```toml\n[data]\ntau = "much"\n```\n', "data.tau"),
        ("```toml\ntau = \n```\n", "page.md:1: "),
        ("```json\n{1: 2}\n```\n", "page.md:1: "),
        ("<!-- serves: 1 -->\n```bash\nexit 3\n```\n", "ended with exit code 3"),
    ],
)
def test_what_fails_is_told(text: str, told: str, programs: Path, tmp_path: Path) -> None:
    (block,) = page(tmp_path, text)
    with tool.Reader(tmp_path, programs) as reader, pytest.raises(tool.BlockError) as caught:
        reader.follow(block)
    assert told in str(caught.value)


def test_blocks_share_a_folder_and_python_blocks_a_session(programs: Path, tmp_path: Path) -> None:
    text = (
        "```python\nx = 1\n```\n```bash\nmkdir a; cd a; echo 'y = 2' > ../own.py\n```\n"
        "```python\nimport own\nassert x + own.y == 3\n```\n```bash\ntest -d a\n```\n"
        "```bash\npython -c 'import own; raise SystemExit(own.y - 2)'\n```\n"
    )
    with tool.Reader(tmp_path, programs) as reader:
        for block in page(tmp_path, text):
            reader.follow(block)


def test_what_serves_goes_on_until_the_page_ends(programs: Path, tmp_path: Path) -> None:
    serving = "python -m http.server --bind 127.0.0.1 {port}"
    (port,) = free_ports(1)
    text = f"<!-- serves: {port} -->\n```bash\n{serving.format(port=port)}\n```\n"
    (block,) = page(tmp_path, text)
    with tool.Reader(tmp_path, programs) as reader:
        reader.follow(block)
        tool.socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        tool.socket.create_connection(("127.0.0.1", port))


def test_what_a_block_leaves_running_ends_with_the_page(programs: Path, tmp_path: Path) -> None:
    started = "setsid bash -c 'echo > ready; exec sleep 987' > out 2>&1 &"
    (block,) = page(tmp_path, f"```bash\n{started}\nuntil test -e ready; do :; done\n```\n")
    mark = tool.flower.mark(tmp_path / ".flwr")
    with tool.Reader(tmp_path, programs) as reader:
        reader.follow(block)
        assert tool.processes.family(mark)
    assert not tool.processes.family(mark)


def test_a_fork_ends_with_the_program_that_asked_for_it(programs: Path) -> None:
    waiting = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    command = [programs / "python", "-c", waiting]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        fork = os.pidfd_open(int(client.stdout.readline()))
        client.kill()
    with os.fdopen(fork) as fork:
        assert select.select([fork], [], [], 60.0)[0]


def test_a_fork_ends_with_a_program_that_was_gone_before_it_knew_the_fork(programs: Path) -> None:
    """It closes its end with the fork's number unread, which the other end hears as a reset."""
    waiting = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    told = json.dumps(["python", ["-c", waiting], "/", dict(os.environ), os.getpgrp()]).encode()
    reading, writing = os.pipe()
    with os.fdopen(reading) as said, socket.socket(socket.AF_UNIX) as link:
        link.connect(str(programs / "socket"))
        socket.send_fds(link, [len(told).to_bytes(8, "big")], [writing, writing, 2])
        os.close(writing)
        link.sendall(told)
        fork = os.pidfd_open(int(said.readline()))
        select.select([link], [], [], 60.0)  # the number is there
    with os.fdopen(fork) as gone:
        assert select.select([gone], [], [], 60.0)[0]


def test_a_scratch_folder_is_not_the_checkout(tmp_path: Path) -> None:
    tool.scratch(tmp_path)
    errors = tmp_path / "nmoe_flower" / "errors.py"
    assert errors.read_bytes() == (ROOT / "nmoe_flower" / "errors.py").read_bytes()
    assert not errors.resolve().is_relative_to(ROOT)
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("diff", "result"),
    [
        (" b\n-c\n+d\n+e\n", "a\n\nb\nd\ne\na\n"),
        (" a\n\n+x\n b\n", "a\n\nx\nb\nc\na\n"),
        ("+end\n", "a\n\nb\nc\na\nend\n"),
    ],
)
def test_a_diff_is_applied_where_its_old_lines_stand(
    diff: str, result: str, programs: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.py").write_text("a\n\nb\nc\na\n")
    (block,) = page(tmp_path, f"In b.py:\n\n<!-- edit: b.py -->\n```diff\n{diff}```\n")
    with tool.Reader(tmp_path, programs) as reader:
        reader.follow(block)
    assert (tmp_path / "b.py").read_text() == result


@pytest.mark.parametrize(("line", "times"), [("a", 2), ("gone", 0)])
def test_a_diff_is_refused_where_its_old_lines_do_not_stand_once(
    line: str, times: int, tmp_path: Path
) -> None:
    (block,) = page(tmp_path, f"In b.py:\n\n<!-- edit: b.py -->\n```diff\n-{line}\n```\n")
    with pytest.raises(tool.BlockError, match=f"b.py has these lines {times} times:\n{line}\n"):
        tool.edited(block, "a\nb\na\n")


# --- commands, cut short ---


def test_a_run_is_cut_short_and_the_mark_has_the_last_word() -> None:
    given = ["run", "--set", "extractor.rounds=40", "gate.rounds=1"]
    command = tool.shortened(given, {"PAGE_OPTIONS": "--set extractor.rounds=3"})
    assert command[:4] == given
    assert command[4:7] == ["--workers", "0", "--no-figures"]
    assert "extractor.rounds=2" in command
    assert command[-2:] == ["--set", "extractor.rounds=3"]
    assert not [setting for setting in command[4:] if setting.startswith("gate.rounds")]


def test_whatever_is_trained_for_long_is_cut_short() -> None:
    """Every count of rounds, steps or epochs, but those that follow another if 0."""
    kept = {"extractor.local-epochs", "adapter.local-steps"}
    counts = {
        key for key in Config().flat() if key.endswith(("rounds", "steps", "epochs", "cycles"))
    }  # fmt: skip
    assert counts - kept == {key for key in tool.SHORT if not key.startswith("data.")}


def test_the_digits_stand_in_for_the_hub_but_not_for_own_images(tmp_path: Path) -> None:
    marks = {"PAGE_OPTIONS": ""}
    remote = tool.shortened(["partition", "--set", "data.dataset=uoft-cs/cifar10"], marks)
    assert "data.dataset=digits" in remote
    own = tool.shortened(["run", "--set", f"data.dataset={tmp_path}"], marks)
    assert not [setting for setting in own[3:] if setting.startswith("data.")]


@pytest.mark.parametrize("command", [["align", "x.csv"], ["report", "runs/a"], ["run", "--help"]])
def test_other_commands_are_left_alone(command: list[str]) -> None:
    assert tool.shortened(command, {}) == command
    assert tool.shortened(command, {"PAGE_OPTIONS": ""})[: len(command)] == command


def test_settings_that_do_not_hold_are_left_for_the_command_to_tell() -> None:
    command = tool.shortened(["run", "gone.toml"], {"PAGE_OPTIONS": ""})
    assert command == ["run", "gone.toml", "--workers", "0", "--no-figures"]


# --- the dates ---


def test_the_list_has_every_block_that_does_not_run() -> None:
    needing = [block for name in tool.pages() for block in tool.blocks(name) if block.needs]
    lines = tool.table().splitlines()
    assert len(needing) == len(lines) > 0
    for block, line in zip(needing, lines, strict=True):
        assert block.place in line


def test_dates_are_kept_for_blocks_that_are_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "RECORD", tmp_path / "record.json")
    tool.RECORD.write_text(json.dumps({"gone.md": {"0123456789ab": "2026-01-01"}}))
    block = next(b for name in tool.pages() for b in tool.blocks(name) if b.needs)
    tool.keep([block], tool.datetime.date(2026, 11, 27))
    assert tool.dates() == {block.page: {block.digest: "2026-11-27"}}
    assert f"2026-11-27  {', '.join(block.needs)}" in tool.table()


def test_the_committed_dates_are_of_blocks_that_exist() -> None:
    needing = {b.digest for name in tool.pages() for b in tool.blocks(name) if b.needs}
    assert {digest for page in tool.dates().values() for digest in page} <= needing
