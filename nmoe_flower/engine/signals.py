"""Unwind on every signal that means "stop", and finish taking down before heeding another."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["StopSignal", "interruptible", "uninterrupted"]

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_STOPS = tuple(number for number in signal.Signals if number.name in _NAMES)


class StopSignal(SystemExit):
    """A signal asked this process to stop; ``code`` is the one a shell expects, 128 + signal."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does; what nohup ignores stays ignored."""

    def leave(number: int, _: FrameType | None) -> None:
        raise StopSignal(128 + number)

    heeded = [
        number
        for number in _STOPS
        if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN
    ]
    with _handlers(dict.fromkeys(heeded, leave)):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals off for the few seconds a take-down needs."""
    with _handlers(dict.fromkeys(_STOPS, signal.SIG_IGN)):
        yield


@contextlib.contextmanager
def _handlers(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Set signal handlers and put the old ones back; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
