"""How long a look at a study of many runs takes: ``nmoe study plan`` in a process of its own."""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.yardstick import json_option, told, write_figures
from nmoe_flower.arguments import Parser, Whole
from nmoe_flower.checkpoint import Checkpoints
from nmoe_flower.files import write_json, write_text
from nmoe_flower.results import RunFolder, placed
from nmoe_flower.study import Study

__all__ = ["main"]

_GOAL = 1.0  # seconds for 200 runs
_SEEDS = 10
_PLAN = 'import sys; from nmoe_flower.cli import main; sys.exit(main(["study", "plan", "STUDY"]))'


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it measured, whatever the figures are."""
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nmoe-study-") as name:
        folder = Path(name)
        runs = _make(folder, args.runs)
        rows = [_measure(folder) for _ in range(args.repeat)]
    seconds = min(seconds for seconds, _ in rows)
    cpu = min(cpu for _, cpu in rows)
    print(f"nmoe study plan, {runs} runs, half of them finished: {seconds:.2f} s, CPU {cpu:.2f} s")
    if args.json:
        found = {"runs": runs, "seconds": seconds, "cpu_seconds": cpu, "goal": _GOAL}
        write_figures(args.json, found)
    return 0


def _make(folder: Path, count: int) -> int:
    """A study of about so many runs, half of them finished and some stopped half-way."""
    values = [round(0.01 * (number + 1), 2) for number in range(max(1, count // _SEEDS))]
    write_text(
        folder / "STUDY",
        f'title = "Many"\nseeds = {list(range(min(count, _SEEDS)))}\n[axes]\ndata.tau = {values}\n',
    )
    path = folder / "many.toml"
    (folder / "STUDY").rename(path)
    study = Study.load(path)
    like = json.loads(_results().read_text(encoding="utf-8"))
    for number, run in enumerate(study.runs):
        if number % 4 == 3:
            continue
        place = folder / "runs" / run.place
        config = placed(run.config, place)
        write_json(place / "provenance.json", {"format-version": 1})
        write_text(place / "config.toml", config.to_toml())
        made = RunFolder(place, config)
        if number % 4 == 2:
            Checkpoints(place / "checkpoints").save(1, {}, {"stage": "extractor", "round": 5})
        else:
            made.write_results(like)
    return len(study.runs)


def _results() -> Path:
    return Path(__file__).parents[1] / "results/digits/defaults/seed-0/results.json"


def _measure(folder: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one look, interpreter and imports included."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    program = _PLAN.replace("STUDY", "many.toml")
    subprocess.run(
        [sys.executable, "-c", program], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--runs", type=Whole(1, 100_000), default=200, metavar="N")
    parser.add_argument("--repeat", type=Whole(1, 100), default=5, metavar="N")
    json_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(told(main))
