"""The program that makes runs of a study: ``python -m nmoe_flower.study.program``.

It takes tasks as lines of JSON on standard input, one after the other, and tells their rounds as
lines of JSON. When that input ends it stops, with the last finished round saved: it ends with
whoever started it.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nmoe_flower.errors import NMoEError
from nmoe_flower.progress import make_progress
from nmoe_flower.study.hosts import INTERRUPTED
from nmoe_flower.study.one import StudyTask, carry_out, is_hopeless, told

__all__ = ["main"]


def main() -> int:
    """Carry out the tasks on standard input until one fails; returns the exit code."""
    tasks: queue.Queue[bytes | None] = queue.Queue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(tasks, busy), daemon=True).start()
    view = make_progress("json")
    while (line := tasks.get()) is not None:
        busy.set()
        try:
            carry_out(StudyTask(**json.loads(line)), view)
        except (KeyboardInterrupt, SystemExit, BrokenPipeError):
            sys.stdout = None  # perhaps nobody reads it any more
            return INTERRUPTED
        except Exception as error:
            if not isinstance(error, NMoEError):
                import traceback

                traceback.print_exc()
            _say({"failed": told(error), "hopeless": is_hopeless(error)})
            return 1
        busy.clear()
        _say({"done": True})
    return 0


def _say(values: Mapping[str, Any]) -> None:
    with suppress(OSError):
        print(json.dumps(values), flush=True)


def _read(tasks: "queue.Queue[bytes | None]", busy: threading.Event) -> None:
    """Take in tasks, and at the end of the input stop the one that is being carried out.

    Python's own buffer is left out, because a thread that waits there would hold it at exit.
    """
    kept = b""
    while more := os.read(0, 65536):
        *lines, kept = (kept + more).split(b"\n")
        for line in lines:
            tasks.put(line)
    tasks.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
