"""The ``nmoe`` command. Heavy imports wait until a command needs them."""

import argparse
import itertools
import sys
import traceback
from collections.abc import Callable, Collection, Sequence

from nmoe_flower import __version__
from nmoe_flower.arguments import Parser
from nmoe_flower.cli import (
    align,
    bench,
    bundle,
    config,
    deploy,
    doctor,
    forget,
    infer,
    join,
    options,
    partition,
    peers,
    privacy,
    recipes,
    report,
    run,
    serve,
    study,
    systems,
)
from nmoe_flower.errors import NMoEError, did_you_mean

__all__ = ["main"]

_INTERRUPTED = 130
# In the order of the help text.
_COMMANDS = (
    run,
    partition,
    report,
    study,
    config,
    recipes,
    systems,
    align,
    privacy,
    forget,
    join,
    bundle,
    serve,
    infer,
    peers,
    deploy,
    doctor,
    bench,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it finished and produced its results, 1 if it failed, 130 after Ctrl-C. Wrong usage
        leaves through ``SystemExit(2)``, as argparse does it.
    """
    try:
        args = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = args.command
        code = command(args)
        sys.stdout.flush()
        return code
    except NMoEError as error:
        print(f"nmoe: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("nmoe: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # the reader has left; nothing more can be told
    except Exception:
        traceback.print_exc()
    return 1


class _Formatter(argparse.HelpFormatter):
    """Help whose column of names is wide enough for commands, too, which stand further in."""

    def add_argument(self, action: argparse.Action) -> None:
        """Make room for an action, and for what is indented below it."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            inner = self._current_indent + self._indent_increment
            names = (len(one.metavar or one.dest) for one in action._choices_actions)
            self._action_max_length = max(self._action_max_length, *(inner + n for n in names))


class _Command(Parser):
    """One command, which names a misspelt option before its value is taken for something else."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        passes_on = any(a.nargs in (argparse.REMAINDER, argparse.PARSER) for a in self._actions)
        known = [option for action in self._actions for option in action.option_strings]
        for word in [] if passes_on else itertools.takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"unknown option {name}{did_you_mean(name, known, prefix='--')}")
        return super().parse_known_args(words, namespace)


class _Parser(Parser):
    """The whole command line, whose short forms are spelled out before they are read."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = _spelled_out(sys.argv[1:] if args is None else args, verbs=deploy.VERBS)
        return super().parse_known_args(words, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nmoe",
        formatter_class=_Formatter,
        description="Federated learning of Networked Mixture-of-Experts on Flower.",
    )
    parser.add_argument("--version", action="version", version=f"nmoe-flower {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)
    for module in _COMMANDS:
        name = module.__name__.rpartition(".")[2]
        module.add_arguments(options.add_command(commands, name, module.ABOUT))
    return parser


def _spelled_out(words: Sequence[str], *, verbs: Collection[str]) -> list[str]:
    """The words of a command line in the form that the parser knows.

    Args:
        words: The command line as typed, without the program's name.
        verbs: What may follow ``nmoe deploy``; without one, ``write`` or ``demo`` is meant.

    >>> verbs = ("write", "check", "demo")
    >>> _spelled_out(["deploy", "lab", "--nodes", "3"], verbs=verbs)
    ['deploy', 'write', 'lab', '--nodes', '3']
    >>> _spelled_out(["deploy", "--demo", "3"], verbs=verbs)
    ['deploy', 'demo', '--demo', '3']
    >>> _spelled_out(["infer", "a.png", "--node", "node-0"], verbs=verbs)
    ['infer', 'node-0', 'a.png', '--node', 'node-0']
    >>> _spelled_out(["deploy", "chek", "lab"], verbs=verbs)
    ['deploy', 'chek', 'lab']
    """
    given = list(words)
    if given[:1] == ["deploy"] and given[1:] and given[1] not in (*verbs, "-h", "--help"):
        demo = any(word.partition("=")[0] == "--demo" for word in given)
        if not (demo or "--nodes" in given) and did_you_mean(given[1], verbs):
            return given  # a misspelt verb, and no folder of a new federation
        return ["deploy", "demo" if demo and "--nodes" not in given else "write", *given[1:]]
    if given[:1] == ["infer"] and (node := _value(given, "--node")):
        return ["infer", node, *given[1:]]  # it takes the place of the bundle
    return given


def _value(words: Sequence[str], option: str) -> str:
    """What an option is set to; empty if it is not."""
    for at, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option:
            return next(iter(words[at + 1 :]), "")
    return ""
