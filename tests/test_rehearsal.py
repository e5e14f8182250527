"""A rehearsal in a process of its own says why that process gave no verdict."""

import sys
from pathlib import Path

import pytest

from nmoe_flower import rehearsal
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, EngineError
from nmoe_flower.rehearsal import rehearse_apart


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("kill -SEGV $$", "the rehearsal of this run failed: killed by SIGSEGV"),
        ("kill -KILL $$", "failed: killed by SIGKILL, often for want of memory"),
        ("kill -40 $$", "failed: killed by signal 40"),
        ("exit 5", "failed: exit code 5"),
        (
            "echo 'part: 3 of 9'; echo Traceback >&2; echo 'OSError: disk full' >&2; exit 1",
            "failed: exit code 1:\nTraceback\nOSError: disk full",
        ),
        ("echo loading >&2; exec sleep 30", "failed: not done within 0.5 s:\nloading"),
    ],
)
def test_a_process_that_died_is_told_of(
    does: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/bash\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(rehearsal, "_REHEARSAL_SECONDS", 0.5)
    with pytest.raises(EngineError) as raised:
        rehearse_apart(Config())
    assert str(raised.value).endswith(said)


def test_what_cannot_be_is_refused_as_in_this_process() -> None:
    with pytest.raises(ConfigError, match=r"^data\.crop-padding is 8, the images have 8 pixels"):
        rehearse_apart(Config.parse({"data.crop-padding": 8}))
