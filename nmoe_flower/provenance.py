"""Where a result comes from: package versions, source revision, machine, time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from nmoe_flower.machine import cpu_model, memory_gib, usable_cores

__all__ = ["provenance"]


def provenance(seed: int) -> dict[str, Any]:
    """What a result depends on beside its configuration: versions, revision, machine, time.

    Nothing heavy is imported to find it out; what cannot be found is None.

    >>> sorted(provenance(seed=3))
    ['git', 'machine', 'seed', 'started', 'versions']
    """
    packages = ("torch", "flwr", "ray", "numpy", "nmoe-flower")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in packages},
        },
        "git": _git(Path(__file__).resolve().parents[1]),
        "machine": _machine(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path) -> dict[str, Any] | None:
    """Revision of the source tree, and whether its code was changed; None if it is no checkout.

    New files count where the package is: reports, data and notes beside it compute nothing.
    """
    if not (root / ".git").exists():
        return None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    answers = []
    for command in (
        ["rev-parse", "HEAD"],
        ["status", "--porcelain", "--untracked-files=no"],
        ["ls-files", "--others", "--exclude-standard", "--", Path(__file__).parent.name],
    ):
        try:
            answer = subprocess.run(
                ["git", "-C", str(root), *command],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
                env=environment,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(answer.stdout.strip())
    return {"revision": answers[0], "dirty": bool(answers[1] or answers[2])}


def _machine() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory-gib": memory_gib(),
        "os": platform.platform(),
    }
