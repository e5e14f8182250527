"""The options of all commands: what is no number of theirs is refused by name, before anything."""

import argparse
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from nmoe_flower import arguments
from nmoe_flower.arguments import ListenAddress, NameList, Number, OutputFile, Whole
from nmoe_flower.cli import _parser, main

BENCHMARKS = (
    "adapters",
    "align",
    "fedsc",
    "infer.command",
    "rounds.command",
    "sizes",
    "text_peers",
)
OURS = (Whole, Number, ListenAddress, NameList, OutputFile)
# Options that take any text; what it may be is checked where it is used.
TEXTS = {
    "--set", "--name", "--gate", "--data", "--classes", "--hosts", "--deny", "--move", "--dataset",
    "names", "images", "arguments", "study", "--one", "--only", "--backbone",
    "--ray-address", "--text",
}  # fmt: skip
WRONG = ("nan", "inf", "-inf", "Infinity", "-1", "1" + "0" * 400, "-" + "9" * 5000, "x", "", " ",
         "1e999", "0x10", "1_0_x", "٣x")  # fmt: skip


def walk(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser, argparse.Action]]:
    """Every option and argument of a parser and of all below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from walk(below, (*words, name))
        else:
            yield words, parser, action


def everything() -> list[tuple[tuple[str, ...], argparse.ArgumentParser, argparse.Action]]:
    found = list(walk(_parser()))
    for name in BENCHMARKS:
        module = import_module(f"benchmarks.{name}")
        found += walk(module._parser(), ("benchmarks", name.partition(".")[0]))
    return found


def called(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else action.dest


ALL = everything()
NUMBERS = [
    pytest.param(words, parser, action, id=" ".join((*words, called(action))))
    for words, parser, action in ALL
    if isinstance(action.type, Whole | Number)
]


def test_every_option_says_what_it_may_be() -> None:
    """A bare ``int`` or ``float`` lets NaN and nonsense through, or names a function of ours."""
    for words, _, action in ALL:
        if action.nargs == 0 or action.choices is not None or called(action) in TEXTS:
            continue
        kind = action.type
        own = getattr(kind, "__module__", "").startswith(("nmoe_flower.", "benchmarks."))
        assert kind is Path or isinstance(kind, OURS) or own, (*words, called(action), kind)
    commands = {words for words, _, _ in ALL}
    assert {("deploy", "check"), ("benchmarks", "rounds"), ("serve",), ("align",)} <= commands
    assert len(NUMBERS) >= 45


@pytest.mark.parametrize(("words", "parser", "action"), NUMBERS)
def test_what_is_no_number_is_refused_with_option_and_value(
    words: tuple[str, ...], parser: argparse.ArgumentParser, action: argparse.Action,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    option = called(action)
    for wrong in WRONG:
        with pytest.raises(SystemExit) as left:
            parser.parse_args([f"{option}={wrong}"])
        assert left.value.code == 2
        told = capsys.readouterr().err
        assert f"argument {'/'.join(action.option_strings)}: {wrong[:40]!r}"[:-1] in told
        assert "; allowed: a " in told
        assert "value" not in told  # "invalid _count value"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--seed", "-1"],
        ["run", "--workers", "nan"],
        ["align", "clients.csv", "--usage-weight", "inf"],
        ["privacy", "--epsilon", "8", "nan"],
        ["privacy", "--delta", "1"],
        ["serve", "b", "--insecure", "--max-wait-ms", "nan"],
        ["serve", "b", "--insecure", "--listen", "127.0.0.1"],
        ["serve", "b", "--insecure", "--listen", "127.0.0.1:99999"],
        ["serve", "b", "--insecure", "--listen", "127.0.0.1:7o00"],
        ["serve", "b", "--insecure", "--metrics-port", "0"],
        ["infer", "b", "i", "--deadline", "1e400"],
        ["peers", "--peers", "p", "--insecure", "--interval", "0"],
        ["deploy", "lab", "--nodes", "2", "--days", "-1"],
        ["deploy", "lab", "--nodes", "2", "--days", "0"],
        ["deploy", "lab", "--nodes", "2", "--days", "99999999"],
        ["deploy", "lab", "--nodes", "1"],
        ["deploy", "--demo", "nan"],
        ["benchmarks.rounds.command", "--kind", "tiny,tiny"],
        ["benchmarks.align", "--size", "10x999999999999999999999"],
        ["benchmarks.infer.command", "run", "--load", "1x"],
    ],
)
def test_commands_leave_with_2_and_write_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    benchmark = words[0].startswith("benchmarks.")
    with pytest.raises(SystemExit) as left:
        import_module(words[0]).main(words[1:]) if benchmark else main(words)
    assert left.value.code == 2
    option = next(word for word in reversed(words) if word.startswith("--"))
    assert f"argument {option}" in capsys.readouterr().err.replace("--nodes/--demo", "--demo")
    assert list(tmp_path.iterdir()) == []


def test_good_values_pass() -> None:
    assert Whole(1, 9)(" 9 ") == 9
    assert Whole(0)("+7") == 7
    assert Number(0, 10)("1e-3") == 0.001
    assert Number(0, 10)("10") == 10
    assert ListenAddress()("[::1]:0") == "[::1]:0"
    assert NameList(("a", "b"))("b,a") == ["b", "a"]
    assert OutputFile((".png",))("a.PNG") == Path("a.PNG")
    assert OutputFile()("a") == Path("a")
    assert arguments.SEED(str(2**32 - 1)) == 2**32 - 1


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Number(0, 1, open=True), "0"), (Number(0, 1, below=True), "1"), (Number(0, 1), "1.1"),
        (Whole(1, 9), "10"), (Whole(1, 9), "0"), (Whole(1, 9), "1.0"), (Whole(1, 9), "1e0"),
        (NameList(("a", "b")), "a,a"), (NameList(("a", "b")), ""), (NameList(("a", "b")), "c"),
        (OutputFile((".png",)), "a.txt"), (OutputFile((".png",)), ""),
        (OutputFile(), "."), (OutputFile(), ""),
    ],
)  # fmt: skip
def test_bounds_are_bounds(kind: arguments.Whole, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="allowed: "):
        kind(text)
