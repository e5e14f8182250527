"""``nmoe align``: assign experts to clients from a CSV or JSON file, without any training."""

import argparse
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.alignment import InfeasibleBoundsError, align, desirability, load_variation
from nmoe_flower.cli.align_files import AlignTable, read_experts, read_table
from nmoe_flower.files import write_json, write_text
from nmoe_flower.summary import aligned

__all__ = ["run"]

_SHOWN = 40


def run(args: argparse.Namespace) -> int:
    """Read, assign, print, and write if asked."""
    table = read_table(args.clients)
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
    bounds = _bounds(table, args.lo, args.hi) if args.policy == "joint" else {}
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


def _bounds(table: AlignTable, lo: int | None, hi: int | None) -> dict[str, Any]:
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


def _text(table: AlignTable, chosen: npt.NDArray[np.bool_]) -> str:
    rows = [["client", "capacity", "experts"]]
    for at, name in enumerate(table.clients[:_SHOWN]):
        rows.append([name, str(table.capacity[at]), " ".join(_held(table, chosen[at])) or "-"])
    lines = [aligned(rows)]
    if len(table.clients) > _SHOWN:
        lines.append(f"... and {len(table.clients) - _SHOWN} more clients (--out writes all)")
    loads = chosen.sum(axis=0)
    load_rows = [["expert", "clients"]]
    load_rows += [[name, str(load)] for name, load in zip(table.experts, loads, strict=True)]
    lines += ["", aligned(load_rows), "", f"load CV {load_variation(loads):.3f}"]
    return "\n".join(lines)


def _held(table: AlignTable, row: npt.NDArray[np.bool_]) -> list[str]:
    return [table.experts[at] for at in np.flatnonzero(row)]


def _write(path: Path, table: AlignTable, chosen: npt.NDArray[np.bool_], policy: str) -> None:
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
