"""Unwind on every signal that means "stop", and finish taking down before heeding another."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["interruptible", "uninterrupted"]

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handlers({signal.SIGTERM: leave, signal.SIGHUP: leave}):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals off for the few seconds a take-down needs."""
    ignored = signal.SIG_IGN
    with _handlers({signal.SIGINT: ignored, signal.SIGTERM: ignored, signal.SIGHUP: ignored}):
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
