"""The machine this process runs on, without anything heavy imported to find it out."""

import os
import platform
from functools import lru_cache
from pathlib import Path

__all__ = ["cpu_model", "memory_gib", "usable_cores"]


def usable_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float | None:
    """Memory in GiB, to a tenth; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """What the processor is called; only its architecture where the system says no more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
