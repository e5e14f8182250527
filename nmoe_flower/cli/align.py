"""``nmoe align``: assign experts to clients from a CSV or JSON file, without any training."""

import argparse
import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmoe_flower.arguments import SEED, Number, OutputFile, Whole
from nmoe_flower.catalogue import POLICIES
from nmoe_flower.plurals import how_many

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from nmoe_flower.cli.align_table import AlignTable

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "assign experts to clients, no training"

_POLICIES = tuple(name for name, row in POLICIES.items() if not row.truth)
_BOUNDED = tuple(name for name in _POLICIES if POLICIES[name].bounds)
_SHOWN = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe align``."""
    parser.add_argument(
        "clients",
        type=Path,
        metavar="CLIENTS.csv|json",
        help="capacity, and fitness of each expert",
    )
    parser.add_argument("--experts", type=Path, metavar="EXPERTS.csv", help="usage, lo, hi of each")
    parser.add_argument("--policy", choices=_POLICIES, default="joint", help="(%(default)s)")
    parser.add_argument("--lo", type=Whole(), metavar="N", help="least clients per expert (joint)")
    parser.add_argument("--hi", type=Whole(), metavar="N", help="most clients per expert (joint)")
    parser.add_argument(
        "--usage-weight",
        type=Number(0, 1e6),
        default=1.0,
        metavar="W",
        help="of experts that were trained less than others, beside the fitness (%(default)s)",
    )
    parser.add_argument("--scale", choices=("z", "rank", "none"), default="z", help="of fitness")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="of the ties (0)")
    parser.add_argument(
        "--out", type=OutputFile((".csv", ".json")), metavar="FILE.csv|json", help="write it, too"
    )

    def command(args: argparse.Namespace) -> int:
        for name in ("lo", "hi"):
            if getattr(args, name) is not None and args.policy not in _BOUNDED:
                parser.error(f"--{name} is for --policy {' or '.join(_BOUNDED)}")
        return _run(args)

    parser.set_defaults(command=command)


def _run(args: argparse.Namespace) -> int:
    """Read, assign, print, and write if asked."""
    import numpy as np

    from nmoe_flower.alignment import InfeasibleBoundsError, align, desirability
    from nmoe_flower.cli.align_table import read_align_table, read_experts

    table = read_align_table(args.clients)
    if args.experts is not None:
        read_experts(args.experts, table)
    fitness = np.array(table.fitness, dtype=float)
    barred = np.isnan(fitness)
    known = np.where(barred, 0.0, fitness).sum(axis=1) / np.maximum((~barred).sum(axis=1), 1)
    scores = np.where(barred, known[:, None], fitness)
    used = np.array([table.usage.get(name, 0.0) for name in table.experts])
    relative = np.clip(used / used.mean() - 1, -1, 2) if used.any() else used
    wanted = desirability(scores, relative, usage_weight=args.usage_weight, scale=args.scale)
    wanted[barred] = -np.inf
    bounds = _bounds(table, args.lo, args.hi) if args.policy in _BOUNDED else {}
    try:
        chosen = align(
            wanted,
            np.array(table.capacity),
            policy=args.policy,
            rng=np.random.default_rng(args.seed),
            clients=table.clients,
            fitness=np.where(barred, -np.inf, fitness),
            **bounds,
        )
    except InfeasibleBoundsError as error:
        raise error.named(table.experts, table.clients) from None
    print(_text(table, chosen))
    if args.out is not None:
        _write(args.out, table, chosen, args.policy)
        print(f"written to {args.out}")
    return 0


def _bounds(table: "AlignTable", lo: int | None, hi: int | None) -> dict[str, Any]:
    """Bounds of the file first, then those of the command line, then the default.

    The default is an even share of all slots (None); where the file bounds some experts, it is no
    bound for the others.
    """
    slots, experts = sum(table.capacity), len(table.experts)
    found: dict[str, Any] = {"lo": lo, "hi": hi}
    if table.lo:
        found["lo"] = [table.lo.get(name, lo or 0) for name in table.experts]
    if table.hi:
        free = max(slots // experts + 1, *table.hi.values()) if hi is None else hi
        found["hi"] = [table.hi.get(name, free) for name in table.experts]
    return found


def _text(table: "AlignTable", chosen: "npt.NDArray[np.bool_]") -> str:
    from nmoe_flower.alignment import load_variation
    from nmoe_flower.summary import padded

    rows = [["client", "capacity", "experts"]]
    for at, name in enumerate(table.clients[:_SHOWN]):
        rows.append([name, str(table.capacity[at]), " ".join(_held(table, chosen[at])) or "-"])
    lines = [padded(rows)]
    if len(table.clients) > _SHOWN:
        lines.append(
            f"... and {how_many(len(table.clients) - _SHOWN, 'more client')} (--out writes all)"
        )
    loads = chosen.sum(axis=0)
    load_rows = [["expert", "clients"]]
    load_rows += [[name, str(load)] for name, load in zip(table.experts, loads, strict=True)]
    lines += ["", padded(load_rows), "", f"load CV {load_variation(loads):.3f}"]
    return "\n".join(lines)


def _held(table: "AlignTable", row: "npt.NDArray[np.bool_]") -> list[str]:
    return [table.experts[at] for at in row.nonzero()[0]]


def _write(path: Path, table: "AlignTable", chosen: "npt.NDArray[np.bool_]", policy: str) -> None:
    from nmoe_flower.files import write_json, write_text

    held = [_held(table, row) for row in chosen]
    if path.suffix.lower() == ".json":
        loads = dict(zip(table.experts, chosen.sum(axis=0), strict=True))
        assignment = dict(zip(table.clients, held, strict=True))
        write_json(path, {"policy": policy, "assignment": assignment, "loads": loads})
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["client", "expert"])
    for name, some in zip(table.clients, held, strict=True):
        writer.writerows([name, expert] for expert in some)
    write_text(path, text.getvalue())
