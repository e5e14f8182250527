"""Start worker processes cleanly, and say how one ended."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["WORKER_ENVIRONMENT", "cause_of_death", "spawning"]

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "67108864",
}


def cause_of_death(code: int | None) -> str:
    """A process's exit code in words.

    >>> cause_of_death(7)
    'exit code 7'
    >>> cause_of_death(-11)
    'killed by SIGSEGV'
    """
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", often for want of memory" if name == "SIGKILL" else "")
    return f"exit code {code}"


@contextmanager
def spawning() -> Iterator[None]:
    """Set what must be known before a worker's Python starts, and hide this program's main module.

    ``spawn`` would run the main module again in every worker: slow, and a fork bomb for a script
    without a main guard. Workers do not need it, since the ClientApp is named by its module.
    """
    old = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    main = sys.modules["__main__"]
    os.environ.update(WORKER_ENVIRONMENT)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
