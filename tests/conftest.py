"""Shared by all tests: one thread each, the same examples in every run, no deadlines."""

import os
from typing import Any

# As in the workers. Two threads crash oneDNN's backward pass of an 8-to-16 channel 1x1
# convolution with stride 2 on some AVX-512 machines (torch 2.14), and two tests slow each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")


def pytest_make_parametrize_id(val: Any) -> str | None:
    """Two test processes must give a test one name: no addresses of objects in it."""
    return type(val).__name__ if " at 0x" in repr(val) else None
