"""Measure what a device needs: installed sizes by extra, and the memory of training.

Sizes are those of the files that the packages behind `pip install '.[extra]'` have put into this
environment.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.yardstick import told, write_rows
from nmoe_flower.arguments import OutputFile, Parser
from nmoe_flower.errors import EngineError

__all__ = ["main"]

EXTRAS = ("", "serve", "report", "data", "simulation")
CUDA = ("nvidia-", "cuda-", "triton")
TRAINED = (
    "data.num-clients=2 extractor.rounds=10 gate.rounds=5 gate.methods=federated run.controls="
)


def needed(extra: str) -> set[str]:
    """The packages that an extra brings along, this one and all it needs."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    todo: list[tuple[str, tuple[str, ...]]] = [("nmoe-flower", (extra,))]
    while todo:
        name, extras = todo.pop()
        one = (re.sub(r"[-_.]+", "-", name).lower(), extras)
        if one in seen:
            continue
        seen.add(one)
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            known = {"", *extras}
            if not wanted.marker or any(wanted.marker.evaluate({"extra": e}) for e in known):
                todo.append((wanted.name, tuple(sorted(wanted.extras))))
    return {name for name, _ in seen}


def installed(name: str) -> int:
    """Bytes of a package's files."""
    files = importlib.metadata.files(name) or ()
    return sum(Path(file.locate()).stat().st_size for file in files if Path(file.locate()).exists())


def training_peak() -> int:
    """Peak resident bytes of training two clients of the digits and their server in one process."""
    nmoe = str(Path(sys.executable).parent / "nmoe")
    command = [nmoe, "run", "--workers", "0", "--no-figures", "--set", *TRAINED.split()]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise EngineError(f"{' '.join(command)} failed")
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = _parser().parse_args(argv)
    packages = {extra or "none": needed(extra) for extra in EXTRAS}
    sizes = {name: installed(name) for name in set().union(*packages.values())}
    result = {
        "measured": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": importlib.metadata.version("torch"),
        "installed_bytes": {
            extra: {
                "all": sum(sizes[name] for name in names),
                "cuda": sum(sizes[name] for name in names if name.startswith(CUDA)),
                "torch": sizes["torch"],
            }
            for extra, names in packages.items()
        },
        "training_peak_bytes": training_peak(),
    }
    print(json.dumps(result, indent=1))
    if args.json is not None:
        write_rows(args.json, result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.sizes",
        description="Bytes that each extra installs, and the memory that training takes.",
    )
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    return parser


if __name__ == "__main__":
    sys.exit(told(main))
