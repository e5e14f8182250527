"""Ctrl-C while workers start: the parent hears of it a moment later, the worker dies of nothing."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from nmoe_flower.engine.spawn import WORKER_ENVIRONMENT, spawning

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "pthread_sigmask"), reason="no signal can be held back here"
)
CHILD = """
import os, signal
from nmoe_flower.engine.spawn import ignore_interrupts
os.kill(os.getpid(), signal.SIGINT)  # as if it came during the imports
ignore_interrupts()
os.kill(os.getpid(), signal.SIGINT)
print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@pytest.mark.usefixtures("interruptible")
def test_the_parent_is_interrupted_once_the_worker_is_there() -> None:
    main, before = sys.modules["__main__"], dict(os.environ)
    reached = []

    def start() -> None:
        with spawning():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # others may not hold it back
            reached.append(WORKER_ENVIRONMENT.items() <= os.environ.items())

    with pytest.raises(KeyboardInterrupt):
        start()
    assert reached == [True]
    assert sys.modules["__main__"] is main
    assert dict(os.environ) == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_worker_outlives_an_interrupt_before_and_after_it_ignores_them() -> None:
    with spawning():
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    out, errors = child.communicate()
    assert (child.returncode, out.strip(), errors) == (0, "False", "")
