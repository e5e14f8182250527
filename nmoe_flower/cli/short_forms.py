"""Short forms of commands, spelled out before ``argparse`` reads them."""

from collections.abc import Collection, Sequence

__all__ = ["spelled_out"]


def spelled_out(words: Sequence[str], *, verbs: Collection[str]) -> list[str]:
    """The words of a command line in the form that the parser knows.

    Args:
        words: As typed, without the program.
        verbs: Of ``nmoe deploy``; without one, ``write`` or ``demo`` is meant.

    >>> verbs = ("write", "check", "demo")
    >>> spelled_out(["deploy", "lab", "--nodes", "3"], verbs=verbs)
    ['deploy', 'write', 'lab', '--nodes', '3']
    >>> spelled_out(["deploy", "--demo", "3"], verbs=verbs)
    ['deploy', 'demo', '--demo', '3']
    >>> spelled_out(["infer", "a.png", "--node", "node-0"], verbs=verbs)
    ['infer', 'node-0', 'a.png', '--node', 'node-0']
    """
    given = list(words)
    if given[:1] == ["deploy"] and given[1:] and given[1] not in (*verbs, "-h", "--help"):
        demo = any(word.partition("=")[0] == "--demo" for word in given)
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
