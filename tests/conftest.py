"""Shared by all tests: one thread each, the same examples in every run, and a certain end."""

import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

# As in the workers. Two threads crash oneDNN's backward pass of an 8-to-16 channel 1x1
# convolution with stride 2 on some AVX-512 machines (torch 2.14), and two tests slow each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from nmoe_flower.data import load_images

settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")

_EXIT_SECONDS = 120.0


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end: no garbage is looked for in it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """A thread that never ends would keep this process, and all that is to be said, for ever."""
    faulthandler.dump_traceback_later(_EXIT_SECONDS, exit=True, file=sys.__stderr__)


def pytest_make_parametrize_id(val: Any) -> str | None:
    """Two test processes must give a test one name: no addresses of objects in it."""
    return type(val).__name__ if " at 0x" in repr(val) else None


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts this process: one that was begun in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data cache with the digits in it, so that no test says or waits that it decodes them."""
    cache = tmp_path_factory.mktemp("warm") / "cache"
    load_images("digits", cache_dir=cache)
    return cache


@pytest.fixture
def two_raylets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes with a core each, all of them processes of this machine."""
    import ray
    from ray.cluster_utils import Cluster as Raylets

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
    raylets = Raylets(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick},
    )
    raylets.add_node(num_cpus=1)
    try:
        yield raylets
    finally:
        ray.shutdown()
        raylets.shutdown()
