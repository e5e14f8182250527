"""``nmoe infer --text``: a line of JSON, or text and a line of JSON; wrong options in words."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from nmoe_flower.cli import main

Make = Callable[..., Any]


def test_a_text_is_scored(village: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(village().bundles[0].folder)
    assert main(["infer", folder, "--text", "abcabcabcabc", "--prefix", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["bytes"], found["prefix"]) == (9, 9, 3)
    assert found["answered_by"] == {"0": ["self"]}
    assert (found["bytes_up"], found["fallback"]) == (0, None)
    assert found["perplexity"] == pytest.approx(2 ** found["bits_per_byte"], rel=1e-3)


def test_a_text_from_stdin_goes_on(
    village: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = village()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abcabc")))
    assert main(["infer", str(made.bundles[0].folder), "--text", "-", "--generate", "4"]) == 0
    told = capsys.readouterr()
    written = bytes(made.greedy(0, list(b"abcabc"), 4)).decode(errors="replace")
    assert told.out.rstrip("\n") == written.rstrip("\ufffd")
    facts = json.loads(told.err.splitlines()[-1])
    assert (facts["tokens"], facts["experts"], facts["peers"]) == (4, {"0": 4}, {"self": 4})


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--text", "ab", "photo.png"], 2, "leave out photo.png"),
        (["--text", "ab", "--generate", "2", "--prefix", "1"], 2, "--prefix is of scoring"),
        (["--text", "ab", "--seed", "1"], 2, "--seed is of --generate"),
        (["--text", "ab", "--records", "r"], 2, "--records is of images and files alone"),
        (["photo.png", "--generate", "2"], 2, "--generate is of --text"),
        (["photo.png"], 1, "is a bundle of text, not of images"),
        (["--text", ""], 1, "the text is empty"),
        (["--text", "ab", "--send", "tokens"], 1, "is the text itself"),
        (["--text", "ab", "--generate", "40"], 1, "allowed: --generate up to 38"),
        (["--text", "abcd", "--prefix", "4"], 1, "allowed: 1 to 3"),
        (["--text", "ab", "--weights", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_line(
    village: Make, capsys: pytest.CaptureFixture[str], options: list[str], code: int, said: str
) -> None:
    command = ["infer", str(village().bundles[0].folder), *options]
    if code == 2:
        with pytest.raises(SystemExit) as left:
            main(command)
        assert left.value.code == 2
    else:
        assert main(command) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_text_on_stdin_must_be_utf8(
    village: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert main(["infer", str(village().bundles[0].folder), "--text", "-"]) == 1
    assert "stdin is no UTF-8 from byte 2 on" in capsys.readouterr().err
