"""Every error this package raises on purpose.

NMoEError
├── ConfigError       a key is unknown, a value has the wrong type or is out of range
├── DataError         a data set is missing, empty, unreadable or too small for the split
├── ReplyError        one client's reply is unusable (never fatal by itself: the reply is dropped)
├── RoundError        too few usable replies, or nodes that never came: the run cannot go on
├── CheckpointError   nothing to resume from, or the folder belongs to another configuration
├── LockedError       another process works in the run folder
├── EngineError       a SuperLink, a simulation or a worker process failed
├── BudgetError       a client has spent its privacy budget: nothing more is released
├── CertificateError  a certificate or key is missing, wrong, out of date or of another federation
├── BundleError       what a device serves is missing, damaged or does not fit together
└── WireError         a message of a peer cannot be used: it is refused, and counted

The text names the offending thing and its value; the command line prints it and exits with 1.
"""

import difflib
from collections import abc
from contextlib import contextmanager


class NMoEError(Exception):
    """Base of all errors raised by nmoe-flower."""


class ConfigError(NMoEError, ValueError):
    """A configuration key is unknown, or its value is not allowed."""


class DataError(NMoEError, ValueError):
    """A data set cannot be read, or cannot be split as asked."""


class ReplyError(NMoEError, ValueError):
    """A client's reply cannot be used; the reason is recorded and the reply dropped."""


class RoundError(NMoEError, RuntimeError):
    """A round did not gather enough usable replies within its deadline."""


class CheckpointError(NMoEError, RuntimeError):
    """A run folder cannot be resumed."""


class LockedError(NMoEError, RuntimeError):
    """Another process works in the run folder."""


class EngineError(NMoEError, RuntimeError):
    """The process, SuperLink or simulation that runs the clients failed."""


class BudgetError(NMoEError, RuntimeError):
    """A release was refused: the client's privacy budget does not cover it."""


class CertificateError(NMoEError, RuntimeError):
    """A certificate or a key cannot be used."""


class BundleError(NMoEError, RuntimeError):
    """The bundle that a device serves is missing, damaged, or does not fit together."""


class WireError(NMoEError, ValueError):
    """A message of a peer cannot be used; ``reason`` is one word for the counters."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@contextmanager
def within(place: str) -> abc.Iterator[None]:
    """Let errors that are raised inside begin with what they are about.

    Args:
        place: A key, a place in a file or a few words; each line of an error begins with it.

    >>> with within("data.tau"):
    ...     raise ConfigError("must be above 0")
    Traceback (most recent call last):
        ...
    nmoe_flower.errors.ConfigError: data.tau: must be above 0
    """
    try:
        yield
    except (ConfigError, DataError) as error:
        lines = str(error).split("\n")
        raise type(error)("\n".join(f"{place}: {line}" for line in lines)) from None


def did_you_mean(name: str, known: abc.Iterable[str], *, prefix: str = "") -> str:
    """The end of an error about a misspelt name: the one that was probably meant, in any case.

    Args:
        name: What was given.
        known: Names that would do.
        prefix: What all begin with, which makes none of them alike.

    Returns:
        A question after a semicolon; empty if none of the names is close.

    >>> did_you_mean("cifar10-quik", ["cifar10", "cifar10-quick"])
    '; did you mean cifar10-quick?'
    >>> did_you_mean("FedEM", ["fedavg", "fedem"])
    '; did you mean fedem?'
    >>> did_you_mean("lab", ["check", "add"])
    ''
    >>> did_you_mean("--images", ["--dim"], prefix="--")
    ''
    """
    names = {one.removeprefix(prefix).casefold(): one for one in known}
    given = name.removeprefix(prefix).casefold()
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    return f"; did you mean {names[close[0]]}?" if close else ""
