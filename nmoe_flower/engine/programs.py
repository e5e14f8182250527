"""Flower's command-line programs: where they are, how one starts, how to read what it prints."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nmoe_flower.engine import flower
from nmoe_flower.errors import EngineError
from nmoe_flower.installation import install_hint

__all__ = ["excerpt", "parse_output", "require_ray", "start_program"]


def require_ray() -> None:
    """Refuse to start where Ray, Flower or one of its programs is missing."""
    if sys.platform == "win32":
        raise EngineError("the ray engine needs Linux or macOS; use the inprocess engine")
    missing = [name for name in ("ray", "flwr") if importlib.util.find_spec(name) is None]
    missing += [name for name in flower.programs if not Path(_program(name)).exists()]
    if missing:
        raise EngineError(
            f"the ray engine needs {missing[0]}, which is not installed here: "
            f"{install_hint('simulation')}"
        )


def start_program(
    command: Sequence[str], environment: Mapping[str, str], *, home: Path, out: int, err: int
) -> "subprocess.Popen[str]":
    """Start one of Flower's programs with ``home`` as its folder, in a session of its own."""
    own = os.environ | flower.ENVIRONMENT | dict(environment)
    own |= {flower.HOME: str(home), "RAY_TMPDIR": str(home)}
    programs = str(Path(sys.executable).parent)
    own["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
    return subprocess.Popen(
        [_program(command[0]), *command[1:]],
        cwd=home,  # a folder named like the connection would be taken for an app
        env=own,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _program(name: str) -> str:
    """The program of this Python's environment, whatever is on PATH."""
    return str(Path(sys.executable).parent / name)


def parse_output(text: str) -> dict[str, object]:
    """The JSON object in a command's output; empty if there is none."""
    start, stop = text.find("{"), text.rfind("}")
    try:
        answer = json.loads(text[start : stop + 1])
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def excerpt(lines: Iterable[str], *signs: str) -> str:
    """The log from the last of ``signs``, else of a traceback, else of an error on."""
    kept = [line for line in list(lines) if line.strip()]
    for sign in (*signs, "Traceback (most recent call last)", "ERROR"):
        starts = [number for number, line in enumerate(kept) if sign in line]
        if starts:
            return "\n".join(kept[starts[-1] :][:40])
    return "\n".join(kept[-10:])
