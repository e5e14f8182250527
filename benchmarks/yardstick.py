"""What all benchmarks share: the quotient to a yardstick, plain tables, child processes, errors."""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nmoe_flower.arguments import OutputFile, Whole
from nmoe_flower.engine.spawn import WORKER_ENVIRONMENT
from nmoe_flower.errors import NMoEError
from nmoe_flower.files import lines_of_json, rounded, to_json, write_text
from nmoe_flower.installation import install_hint
from nmoe_flower.provenance import provenance

__all__ = [
    "DIGITS",
    "Blocks",
    "columns",
    "cpu_seconds",
    "importing",
    "json_option",
    "language_options",
    "machine_line",
    "proportional_bytes",
    "quotients",
    "ratio",
    "say",
    "start_as_workers",
    "told",
    "write_figures",
    "write_rows",
]

Blocks = list[list[float]]
"""Seconds of rounds, those of one turn in a row."""

_ROOT = str(Path(__file__).resolve().parent.parent)
_INTERRUPTED = 130
DIGITS = 6
"""Significant digits of what is published."""


def quotients(blocks: Blocks, bare: Blocks) -> list[float]:
    """The quotient of the median rounds of each two neighbouring blocks.

    Both blocks of a pair ran within moments, so what else the machine did hit both.
    """
    pairs = zip(blocks, bare, strict=True)
    return [statistics.median(a) / statistics.median(b) for a, b in pairs]


def ratio(blocks: Blocks, bare: Blocks) -> float:
    """The median of `quotients`.

    >>> ratio([[3.0, 3.0], [60.0, 60.0], [3.3, 3.3]], [[2.0, 2.0], [40.0, 40.0], [2.0, 2.0]])
    1.5
    """
    return statistics.median(quotients(blocks, bare))


def columns(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    """A table in plain text, two blanks between columns, numbers to the right.

    Args:
        rows: Cells, the headings first; all rows of one length.
        left: Numbers of the columns that are set to the left.

    >>> print(columns([("name", "s"), ("a", "10")], left=(0,)))
    name   s
    a     10
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def machine_line(source: Mapping[str, Any], workers: int) -> str:
    """Where, when and with what this was measured; ``source`` is a provenance."""
    machine = source["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in source["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {workers} workers; {versions}; "
        f"{source['started']}; seed {source['seed']}"
    )


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU time of a process so far, from ``/proc``.

    Raises:
        OSError: There is no such process, or no ``/proc``.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_bytes(pid: int) -> int:
    """Proportional set size of a process: pages shared by n processes count a n-th for each.

    Raises:
        OSError: There is no such process, or the system does not tell.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def importing(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, in which a Python finds this package wherever it starts: none installs it.

    >>> importing({"PYTHONPATH": "/own", "HOME": "/root"})["PYTHONPATH"].endswith(":/own")
    True
    """
    path = [_ROOT, *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}


def json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json FILE``, where `write_figures` writes."""
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")


def language_options(parser: argparse.ArgumentParser, *, batch: int, batch_of: str) -> None:
    """Add which language model is measured, with which adapters and how many windows at once."""
    parser.add_argument(
        "--backbone", default="small-lm", help="small-lm, smollm2-135m or transformers:NAME"
    )
    parser.add_argument("--rank", type=Whole(1, 4096), default=8, help="of an adapter (8)")
    parser.add_argument(
        "--batch", type=Whole(1, 1024), default=batch, help=f"windows {batch_of} ({batch})"
    )


def write_figures(file: Path | None, figures: Mapping[str, Any]) -> None:
    """Write what was measured in six digits, and where and with what, if a file is asked for."""
    if file is not None:
        write_rows(file, {**rounded(dict(figures), DIGITS), "source": provenance(0)})


def write_rows(file: Path, content: Mapping[str, Any]) -> None:
    """Write what was measured as JSON, a line for each row: what is published stays small."""
    write_text(file, lines_of_json(json.loads(to_json(content))))


def say(text: str) -> None:
    """A line about what is under way, apart from what is measured."""
    print(text, file=sys.stderr, flush=True)


def start_as_workers() -> None:
    """Begin this command again in the environment of workers, unless it has it already.

    A process that gives memory back and takes it anew is slower than they are by up to a fifth,
    and glibc reads what it is to keep only as a process starts.
    """
    if not WORKER_ENVIRONMENT.items() <= os.environ.items():
        words = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, words, {**os.environ, **WORKER_ENVIRONMENT})


def told(main: Callable[[], int]) -> int:
    """Run a benchmark; returns its exit code, or 1 after a line that says what went wrong."""
    try:
        return main()
    except NMoEError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        needed = f"needs {error.name}: {install_hint('dev')}"
        print(f"benchmarks: error: {needed}", file=sys.stderr)
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 1
