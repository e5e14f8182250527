"""What a run costs per client as clients become more: seconds, bytes, memory, by stage."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.yardstick import columns, importing, proportional_bytes, told, write_rows
from nmoe_flower.arguments import SEED, NameList, Number, OutputFile, Parser, Whole
from nmoe_flower.errors import EngineError, NMoEError
from nmoe_flower.installation import install_hint
from nmoe_flower.provenance import provenance

__all__ = ["main"]

SYSTEMS = ("networked", "aligned")
_SECOND = 0.5  # between two looks at the memory
_DRAWN = {
    "networked": (
        *("describe", "extractor", "experts", "answers"),
        *("gate/federated", "gate/rolling", "choices", "evaluation"),
    ),
    "aligned": ("alignment", "whole"),
}
# What every run is told: small nets, so that it is the number of clients that costs.
_SETTINGS = (
    *("data.scheme=dominant", "data.tau=0.2", "data.crop-padding=2", "extractor.backbone=narrow"),
    *("extractor.widths=8,16,32", "extractor.local-steps=1", "extractor.batch-size=50"),
    *("extractor.learning-rate=0.1", "expert.hidden=", "expert.epochs=1", "run.controls="),
    *("gate.methods=random,local,prototype,federated,rolling", "gate.rolling=federated"),
    *("gate.rounds=5", "gate.shortlist=16"),
    *("alignment.experts=10", "alignment.local-steps=2", "alignment.extractor=stage-1"),
)


@dataclass
class StageCost:
    """What one stage took, all its exchanges together.

    Attributes:
        answers: Replies of clients, a client counted once per exchange.
        seconds: Wall-clock time, of the server.
        bytes: Numbers that went up and down, in bytes.
        peak_bytes: The most that all processes held together meanwhile; 0: it was over too soon to
            be looked at.
    """

    answers: int = 0
    seconds: float = 0.0
    bytes: int = 0
    peak_bytes: int = 0


@dataclass
class Growth:
    """One run.

    Attributes:
        system: Which system ran, ``networked`` or ``aligned``.
        clients: How many clients there were.
        stages: Costs by stage.
        seconds: From the start of the process to its end.
        peak_bytes: The most that all processes held together; shared pages counted once.
        early_bytes: What they held after a fifth of stage 1's rounds.
        late_bytes: What they held at the end of stage 1.
        record_bytes: Size of rounds.jsonl and results.json.
    """

    system: str
    clients: int
    stages: dict[str, StageCost] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0
    early_bytes: int = 0
    late_bytes: int = 0
    record_bytes: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and draw if asked."""
    args = _parser().parse_args(argv)
    found: list[Growth] = []
    for system in args.system:
        for clients in args.clients:
            if system == "networked" and clients > args.networked_up_to:
                continue
            one = _measured(system, clients, args)
            found.append(one)
            print(_table(one), end="\n\n", flush=True)
    print(page_tables(found))
    if args.json is not None:
        content = {
            "runs": [asdict(one) for one in found],
            "rounds": args.rounds,
            "share": args.share,
            "source": provenance(args.seed),
        }
        write_rows(args.json, content)
    if args.plot is not None:
        draw(found, args.plot)
        print(f"drawn to {args.plot}")
    return 0


def _measured(system: str, clients: int, args: argparse.Namespace) -> Growth:
    settings = [
        *_SETTINGS,
        f"data.dataset={args.dataset}",
        f"data.num-clients={clients}",
        f"data.train-per-client={min(50, 50_000 // clients)}",
        f"data.test-per-client={max(1, min(10, 10_000 // clients))}",
        f"extractor.rounds={args.rounds}",
        f"extractor.fraction-train={args.share}",
        f"gate.fraction-train={args.share}",
        f"alignment.fraction-train={args.share}",
        f"alignment.rounds={args.rounds}",
        f"alignment.evaluate-every={args.rounds}",
        f"run.evaluate-every={args.rounds}",
        f"run.seed={args.seed}",
        f"run.system={system}",
    ]
    found = Growth(system, clients)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(
                sys.executable,
                "-c",
                "import sys; from nmoe_flower.cli import main; sys.exit(main())",
            ),
            *("run", "--engine", "inprocess", "--workers", str(args.workers), "--no-figures"),
            *("--out", folder, "--name", "run", "--set", *settings),
        ]
        output, records = Path(folder) / "output.txt", Path(folder) / "run" / "rounds.jsonl"
        began = time.monotonic()
        with output.open("w") as told_to:
            process = subprocess.Popen(
                command, stdout=told_to, stderr=told_to, env=importing(os.environ)
            )
        try:
            held = _watch(process, records, found, args.rounds)
        finally:
            process.kill()
            process.wait()
        found.seconds = time.monotonic() - began
        if process.returncode:
            last = output.read_text(errors="replace").splitlines()[-1:] or ["it said nothing"]
            raise EngineError(f"the run of {clients} clients failed: {last[0]}")
        found.stages = stage_costs(records.read_text(encoding="utf-8").splitlines())
        for stage, peak in held.items():
            if stage in found.stages:
                found.stages[stage].peak_bytes = peak
        found.record_bytes = sum(
            (records.parent / name).stat().st_size for name in ("rounds.jsonl", "results.json")
        )
    return found


def _watch(
    process: "subprocess.Popen[bytes]", records: Path, found: Growth, rounds: int
) -> dict[str, int]:
    """Note what all processes hold until the run has ended; the most within each stage."""
    peaks: dict[str, int] = {}
    seen, pending = 0, 0
    while process.poll() is None:
        held = sum(map(held_bytes, _family(process.pid)))
        found.peak_bytes = max(found.peak_bytes, held)
        pending = max(pending, held)
        stages = stages_after(records, seen)
        for stage in stages:  # what was held before a line belongs to the work that it tells of
            peaks[stage] = max(peaks.get(stage, 0), pending)
        if stages:
            seen, pending = seen + len(stages), 0
        current = round_of(records)
        if current >= rounds / 5 and not found.early_bytes:
            found.early_bytes = held
        if current < rounds or not found.late_bytes:
            found.late_bytes = held
        time.sleep(_SECOND)
    return peaks


def stages_after(records: Path, lines: int) -> list[str]:
    """The stages of whole lines of a rounds.jsonl after the first ``lines``."""
    try:
        text = records.read_text(encoding="utf-8")
    except OSError:
        return []
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [json.loads(line)["stage"] for line in whole[lines:]]


def round_of(records: Path) -> float:
    """The last round of stage 1 that is recorded; endless once another stage has begun."""
    try:
        lines = [json.loads(line) for line in records.read_text().splitlines()[-2:]]
    except (OSError, ValueError):  # not there yet, or half a line
        return 0
    last = [line for line in lines if line["stage"] not in ("describe", "initial")]
    if not last:
        return 0
    return float(last[-1]["round"]) if last[-1]["stage"].startswith("extractor") else float("inf")


def _family(pid: int) -> list[int]:
    """A process and all that it started, and those started."""
    try:
        text = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return []
    return [pid, *(one for child in text.split() for one in _family(int(child)))]


def held_bytes(pid: int) -> int:
    """Bytes a process holds, shared pages counted in part; 0 if it has ended."""
    with suppress(OSError):
        return proportional_bytes(pid)
    return 0


def stage_costs(lines: Sequence[str]) -> dict[str, StageCost]:
    """Costs by stage from the lines of a rounds.jsonl.

    >>> line = '{"stage": "a", "clients": [0, 1], "seconds": 2, "bytes_up": 3, "bytes_down": 4}'
    >>> stage_costs([line, line])
    {'a': StageCost(answers=4, seconds=4.0, bytes=14, peak_bytes=0)}
    """
    found: dict[str, StageCost] = defaultdict(StageCost)
    for line in lines:
        record = json.loads(line)
        cost = found[record["stage"]]
        cost.answers += len(record["clients"])
        cost.seconds += record["seconds"]
        cost.bytes += record["bytes_up"] + record["bytes_down"]
    return dict(found)


def _table(one: Growth) -> str:
    rows = [("stage", "answers", "seconds", "ms/answer", "kB/answer")]
    for name, cost in one.stages.items():
        answers = max(cost.answers, 1)
        rows.append((
            name, f"{cost.answers:,}", f"{cost.seconds:.2f}",
            f"{1000 * cost.seconds / answers:.1f}", f"{cost.bytes / 1000 / answers:.1f}",
        ))  # fmt: skip
    held = f"{one.early_bytes / 1e6:.0f} MB early in stage 1, {one.late_bytes / 1e6:.0f} late"
    return (
        f"{one.system}, {one.clients:,} clients: {one.seconds:.1f} s, at most "
        f"{one.peak_bytes / 1e6:.0f} MB ({held}), records {one.record_bytes / 1e6:.2f} MB\n"
        + columns(rows, left=(0,))
    )


def page_tables(found: Sequence[Growth]) -> str:
    """Milliseconds and kB per answer and MB held by stage, and a line per run, as Markdown."""
    counts = sorted({one.clients for one in found})
    stages = dict.fromkeys(name for one in found for name in one.stages)
    heads = [f"{count:,}" for count in counts]
    titles = ("ms per answer", "kB per answer", "MB held")
    cells = [
        "stage",
        *(
            f"{title}: {head}" if not i else head
            for title in titles
            for i, head in enumerate(heads)
        ),
    ]
    lines = [_row(cells), _row(["---"] * len(cells))]
    for stage in stages:
        costs = {one.clients: one.stages[stage] for one in found if stage in one.stages}
        row = [costs.get(count) for count in counts]
        values = [
            *(f"{1000 * c.seconds / max(c.answers, 1):.1f}" if c else "" for c in row),
            *(f"{c.bytes / 1000 / max(c.answers, 1):.1f}" if c else "" for c in row),
            *(f"{c.peak_bytes / 1e6:,.0f}" if c and c.peak_bytes else "" for c in row),
        ]
        lines.append(_row([f"`{stage}`", *values]))
    heading = (
        *("run", "clients", "seconds", "MB at most", "MB early in stage 1", "at its end"),
        *("kB at most per client", "records, MB"),
    )
    lines += ["", _row(heading), _row(["---"] * len(heading))]
    lines += [
        _row([
            one.system, f"{one.clients:,}", f"{one.seconds:,.0f}", f"{one.peak_bytes / 1e6:,.0f}",
            f"{one.early_bytes / 1e6:,.0f}", f"{one.late_bytes / 1e6:,.0f}",
            f"{one.peak_bytes / 1e3 / one.clients:,.0f}", f"{one.record_bytes / 1e6:.2f}",
        ])
        for one in found
    ]  # fmt: skip
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(found: Sequence[Growth], path: Path) -> None:
    """Seconds, bytes and memory per client against the number of clients, by stage."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NMoEError(f"the plot needs matplotlib: {install_hint('report')}") from error
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    series: dict[str, list[tuple[int, StageCost]]] = defaultdict(list)
    for one in found:
        for name, cost in one.stages.items():
            if name in _DRAWN[one.system]:
                series[name].append((one.clients, cost))
    for name, points in series.items():
        clients = [count for count, _ in points]
        seconds = [1000 * cost.seconds / max(cost.answers, 1) for _, cost in points]
        moved = [cost.bytes / 1000 / max(cost.answers, 1) for _, cost in points]
        panels[0].plot(clients, seconds, marker="o", ms=3, label=name)
        panels[1].plot(clients, moved, marker="o", ms=3, label=name)
    for system in dict.fromkeys(one.system for one in found):
        runs = [one for one in found if one.system == system]
        panels[2].plot(
            [one.clients for one in runs], [one.peak_bytes / 1e6 for one in runs],
            marker="o", ms=3, label=system,
        )  # fmt: skip
    titles = ("milliseconds per answer", "kB per answer", "MB, all processes")
    for panel, title in zip(panels, titles, strict=True):
        panel.set(xscale="log", yscale="symlog" if title.startswith("kB") else "log")
        panel.set_xlabel("clients")
        panel.set_title(title, fontsize=9)
        panel.grid(alpha=0.3)
    panels[2].set_ylim(bottom=100)
    panels[2].legend(fontsize=7)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument(
        "--clients", type=_counts, default=[10, 100], metavar="N,N",
        help="numbers of clients (10,100); 50 images each, fewer where there are not enough",
    )  # fmt: skip
    parser.add_argument(
        "--networked-up-to", type=Whole(0, 10_000), default=1000, metavar="N",
        help="leave the networked system out beyond so many clients (1000); the aligned one has "
        "stage 1, too",
    )  # fmt: skip
    parser.add_argument("--system", type=NameList(SYSTEMS), default=list(SYSTEMS), metavar="A,B")
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="its name, or its folder")
    parser.add_argument("--rounds", type=Whole(2, 10**6), default=20, help="of stage 1 (20)")
    parser.add_argument(
        "--share", type=Number(0, 1, open=True), default=0.05, help="of the clients a round (0.05)"
    )
    parser.add_argument("--workers", type=Whole(0, 1024), default=2, help="processes (2)")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--plot", type=OutputFile((".png", ".pdf", ".svg")), metavar="FILE.png", help="draw them"
    )
    return parser


def _counts(text: str) -> list[int]:
    counts = [Whole(2, 10_000)(part) for part in text.split(",")]
    if sorted(set(counts)) != counts:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: rising numbers, each once")
    return counts


if __name__ == "__main__":
    sys.exit(told(main))
