"""An exception in one line, whatever its text does."""

from nmoe_flower.engine.signals import StopSignal

__all__ = ["describe"]

_LONGEST_TEXT = 1000


def describe(error: BaseException) -> str:
    """Type and text of an exception in one line: ``ValueError: bad shape``.

    An exception whose text cannot be made is known by its type alone.

    >>> class Mute(Exception):
    ...     def __str__(self):
    ...         raise RuntimeError("no text")
    >>> describe(Mute())
    'Mute (its text cannot be made: RuntimeError)'
    """
    name = type(error).__name__
    try:
        text = str(error)
    except (StopSignal, KeyboardInterrupt):
        raise
    except BaseException as failure:
        return f"{name} (its text cannot be made: {type(failure).__name__})"
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return f"{name}: {line[:_LONGEST_TEXT]}" if line else name
