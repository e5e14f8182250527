"""Commands that a text tells a reader to type."""

import shlex

__all__ = ["command_line"]


def command_line(*words: object) -> str:
    """A command as it is typed into a shell: words that a shell would take apart are quoted.

    Args:
        words: The program and its arguments; paths as they are.

    >>> from pathlib import PurePosixPath
    >>> print(command_line("nmoe", "run", "--resume", PurePosixPath("my runs/digits")))
    nmoe run --resume 'my runs/digits'
    """
    return shlex.join(map(str, words))
