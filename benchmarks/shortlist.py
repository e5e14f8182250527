"""What stage 3 and the evaluation cost a client, against the number of clients.

The digits, as rows of 64 numbers: every client holds as many, drawn with replacement and with a
little noise, so that there are enough for any number of clients. Bytes are of the arrays, both
ways; seconds are all of the run's processor time after the experts are there, over the clients.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.yardstick import columns, machine_line, told, write_rows
from nmoe_flower.arguments import OutputFile, Parser, Whole
from nmoe_flower.provenance import provenance
from nmoe_flower.running import run

__all__ = ["main"]

_STAGES = ("answer", "answers", "gate/federated", "choices", "chosen", "evaluation")
_TRAIN, _TEST = 20, 8
_SETTINGS: dict[str, Any] = {
    "data.kind": "features",
    "data.label-column": "label",
    "data.train-per-client": _TRAIN,
    "data.test-per-client": _TEST,
    "extractor.backbone": "linear",
    "extractor.rounds": 0,
    "expert.epochs": 1,
    "gate.methods": "federated,local",
    "gate.rounds": 3,
    "run.controls": "",
    "run.checkpoint-every": 1000,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a row per run; returns the exit code."""
    args = _parser().parse_args(argv)
    return told(lambda: _main(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks.shortlist", description=__doc__)
    parser.add_argument(
        "--clients", type=Whole(4, 5000), nargs="+", default=[50, 100, 200, 500, 1000]
    )
    parser.add_argument("--shortlist", type=Whole(1, 5000), default=16, help="(%(default)s)")
    parser.add_argument(
        "--all-up-to",
        type=Whole(0, 5000),
        default=100,
        help="measure the exchange with everybody, too, up to so many clients (%(default)s)",
    )
    parser.add_argument("--form", choices=("linear", "metric"), default="metric")
    parser.add_argument("--sharing", choices=("weights", "latents"), default="weights")
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--plot", type=OutputFile((".png", ".pdf", ".svg")), metavar="FILE", help="draw them there"
    )
    return parser


def _main(args: argparse.Namespace) -> int:
    rows = []
    for count in args.clients:
        for shortlist in (args.shortlist, 0):
            if shortlist or count <= args.all_up_to:
                rows.append(_measured(args, count, shortlist))
                print(_table(rows[-1:], headings=len(rows) == 1), flush=True)
    if args.json is not None:
        settings = {name: getattr(args, name) for name in ("form", "sharing")}
        source = provenance(0)
        write_rows(
            args.json, {"machine": machine_line(source, 1), "settings": settings, "rows": rows}
        )
    if args.plot is not None:
        _draw(rows, args.plot)
    return 0


def _measured(args: argparse.Namespace, count: int, shortlist: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        _write_digits(data, count)
        values = _SETTINGS | {
            "data.dataset": str(data),
            "data.cache-dir": str(Path(folder) / "cache"),
            "data.num-clients": count,
            "expert.sharing": args.sharing,
            "gate.form": args.form,
            "gate.shortlist": shortlist,
        }
        clock = _Clock()
        result = run(values, out=folder, name="run", workers=0, progress=clock, figures=False)
        stages = result["stages"]
    moved = {
        stage: (stages[stage]["bytes_up"] + stages[stage]["bytes_down"]) / count
        for stage in _STAGES
        if stage in stages
    }
    seconds = clock.ended["evaluation"] - clock.ended["experts"]
    return {
        "clients": count,
        "shortlist": shortlist,
        "bytes": sum(moved.values()),
        "bytes_by_stage": moved,
        "seconds": seconds / count,
    }


class _Clock:
    """Notes the processor time of this process at the end of every stage."""

    def __init__(self) -> None:
        self.ended: dict[str, float] = {}

    def update(self, record: Mapping[str, Any]) -> None:
        self.ended[record["stage"]] = time.process_time()

    def answered(self, stage: str, count: int, clients: int) -> None:
        """Not needed here."""

    def message(self, text: str) -> None:
        """Not needed here."""

    def close(self) -> None:
        """Nothing is open."""


def _write_digits(folder: Path, clients: int) -> None:
    """Tables of as many samples as all clients need, a fifth more of each class to choose from."""
    from sklearn.datasets import load_digits

    digits, rng = load_digits(), np.random.default_rng(0)
    folder.mkdir()
    for split, each in (("train", _TRAIN), ("test", 2 * _TEST)):
        size = max(2 * each * clients, 1000)
        drawn = rng.permutation(np.arange(size) % len(digits.data))
        rows = digits.data[drawn] + rng.normal(scale=0.5, size=(size, 64))
        named = {f"pixel-{place}": column for place, column in enumerate(rows.T)}
        np.savez(folder / f"{split}.npz", label=digits.target[drawn], **named)


def _table(rows: Sequence[Mapping[str, Any]], *, headings: bool) -> str:
    cells = [("clients", "experts known", "kB per client", "ms per client")]
    cells += [
        (
            str(row["clients"]),
            str(row["shortlist"] or "all"),
            f"{row['bytes'] / 1e3:.0f}",
            f"{1e3 * row['seconds']:.0f}",
        )
        for row in rows
    ]
    lines = columns(cells).splitlines()
    return "\n".join(lines if headings else lines[1:])


def _draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bytes and seconds per client against the number of clients, on logarithmic axes."""
    from nmoe_flower.report import canvas

    figure = canvas.new(6.4, 2.8)
    known = next((row["shortlist"] for row in rows if row["shortlist"]), 0)
    for place, (key, scale, label) in enumerate(
        (("bytes", 1e6, "MB per client"), ("seconds", 1.0, "processor seconds per client"))
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        for shortlist, colour, name in (
            (known, canvas.BLUE, f"{known} experts known"),
            (0, canvas.ORANGE, "all experts known"),
        ):
            found = [row for row in rows if row["shortlist"] == shortlist]
            axes.plot(
                [row["clients"] for row in found],
                [row[key] / scale for row in found],
                "o-", color=colour, label=name, markersize=3,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("clients")
        axes.set_ylabel(label)
    axes.legend(frameon=False)
    canvas.save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
