"""How fast the policies assign, how good the result is, how both grow."""

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.yardstick import told, write_rows
from nmoe_flower.alignment import Fitness, Standing, align, load_variation, price_bound
from nmoe_flower.arguments import SEED, NameList, Number, OutputFile, Parser, Whole
from nmoe_flower.catalogue import POLICIES
from nmoe_flower.errors import NMoEError
from nmoe_flower.installation import install_hint

__all__ = ["main"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# (clients, experts, policy): seconds on one core
_GOALS = {
    (100_000, 256, "balanced"): 2.0,
    (1_000, 64, "joint"): 1.0,
    (100_000, 256, "joint"): 30.0,
    (1_000_000, 256, "joint"): 60.0,
    (1_000_000, 256, "mended"): 6.0,
}
_HEAD = (
    *("clients", "experts", "policy", "seconds", "cpu s"),
    *("optimum", "gap", "load CV", "GB", "goal"),
)
_LP_CELLS = 100_000  # above, HiGHS takes minutes
_SLOW_CELLS = 1_000_000  # above, sequential is left out unless asked for


@dataclass(frozen=True)
class _Row:
    clients: int
    experts: int
    policy: str
    seconds: float
    cpu_seconds: float
    value: float
    optimum: float
    load_variation: float
    goal: float | None
    gap: float | None  # to what the prices prove, as a share of it
    peak_bytes: int  # of the process so far, the matrix included


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and draw if asked; 0 if it measured, whatever the figures are."""
    args = _parser().parse_args(argv)
    rows: list[_Row] = []
    print(_line(_HEAD))
    for clients, experts in args.size:
        wanted, capacity = _problem(clients, experts, args.kind, args.seed)
        bound = _optimum(wanted, capacity)
        for policy in args.policy:
            if policy == "sequential" and wanted.size > _SLOW_CELLS and not args.all:
                continue
            found = _measure(wanted, capacity, policy, args.seed, bound, args.changed)
            for row in found:
                print(_line(_cells(row)), flush=True)
            rows += found
        if not args.no_update:
            print(f"{_update_seconds(clients, experts):.3f} cpu s to update fitness, all clients")
    peak = _peak()
    print(f"peak memory {peak / 1e9:.2f} GB; the largest matrix has {_largest(args.size):.2f} GB")
    if args.json is not None:
        write_rows(args.json, {"rows": [asdict(row) for row in rows], "peak-bytes": peak})
    if args.plot is not None:
        _draw(rows, args.plot)
        print(f"drawn to {args.plot}")
    return 0


def _problem(clients: int, experts: int, kind: str, seed: int) -> tuple[Floats, Ints]:
    """Desirability with some structure, and capacities 1 to 4 (no more than experts)."""
    rng = np.random.default_rng(seed)
    capacity = rng.integers(1, min(4, experts) + 1, clients)
    wanted = rng.random((clients, experts), dtype=np.float32)
    if kind == "popular":
        wanted += 2 * rng.random(experts, dtype=np.float32)
    if kind == "classes":
        wanted = wanted[: min(10, clients)][rng.integers(0, min(10, clients), clients)]
    return wanted, capacity


def _optimum(wanted: Floats, capacity: Ints) -> float:
    """The linear program's optimum under even loads, by HiGHS; NaN if it would take too long."""
    if wanted.size > _LP_CELLS:
        return float("nan")
    import scipy.sparse as sp
    from scipy.optimize import linprog

    clients, experts = wanted.shape
    slots = int(capacity.sum())
    lo, hi = slots // experts, -(-slots // experts)
    columns = sp.kron(np.ones((1, clients)), sp.eye(experts))
    solved = linprog(
        -wanted.ravel().astype(float),
        A_eq=sp.kron(sp.eye(clients), np.ones(experts)).tocsr(),
        b_eq=capacity,
        A_ub=sp.vstack([columns, -columns]).tocsr(),
        b_ub=np.repeat([hi, -lo], experts),
        bounds=(0, 1),
        method="highs",
    )
    return float(-solved.fun)


def _measure(
    wanted: Floats, capacity: Ints, policy: str, seed: int, optimum: float, changed: float
) -> list[_Row]:
    """One row; joint has a second, ``mended``: a share of the clients is drawn again."""
    if policy != "joint":
        return [_timed(wanted, capacity, policy, policy, seed, optimum, {})]
    standing = Standing()
    first = _timed(wanted, capacity, policy, policy, seed, optimum, {"standing": standing})
    if not changed:
        return [first]
    rng = np.random.default_rng(seed + 1)
    anew = rng.random(len(wanted)) < changed
    kept, slots = wanted[anew], capacity.copy()
    wanted[anew] = kept[rng.permutation(len(kept))]
    slots[anew] = rng.integers(1, min(4, wanted.shape[1]) + 1, len(kept))
    more = {"standing": standing, "changed": anew}
    second = _timed(wanted, slots, "mended", policy, seed, float("nan"), more)
    wanted[anew] = kept
    return [first, second]


def _timed(
    wanted: Floats,
    capacity: Ints,
    name: str,
    policy: str,
    seed: int,
    optimum: float,
    more: dict[str, Any],
) -> _Row:
    rng = np.random.default_rng(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    chosen = align(wanted, capacity, policy=policy, rng=rng, **more)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = _peak()
    value = float(wanted[chosen].sum(dtype=float))
    gap = None
    if more:
        bound = price_bound(wanted, capacity, more["standing"].prices)
        gap = (bound - value) / abs(bound)
    clients, experts = wanted.shape
    variation, goal = load_variation(chosen.sum(axis=0)), _GOALS.get((clients, experts, name))
    return _Row(clients, experts, name, wall, cpu, value, optimum, variation, goal, gap, peak)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _update_seconds(clients: int, experts: int) -> float:
    fitness = Fitness(clients, experts)
    rng = np.random.default_rng(0)
    who, what = np.arange(clients), rng.integers(0, experts, clients)
    began = time.process_time()
    fitness.update(who, what, rng.random(clients))
    return time.process_time() - began


def _cells(row: _Row) -> tuple[str, ...]:
    ratio = "-" if np.isnan(row.optimum) else f"{row.value / row.optimum:.6f}"
    goal = ""
    if row.goal is not None:
        goal = f"<= {row.goal:g} s {'met' if row.cpu_seconds <= row.goal else 'missed'}"
    times = f"{row.seconds:.3f}", f"{row.cpu_seconds:.3f}"
    head = f"{row.clients:,}", str(row.experts), row.policy
    gap = "-" if row.gap is None else f"{row.gap:.1e}"
    memory = f"{row.peak_bytes / 1e9:.2f}"
    return (*head, *times, ratio, gap, f"{row.load_variation:.3f}", memory, goal)


def _line(cells: Sequence[str]) -> str:
    widths = (9, 8, 11, 9, 9, 9, 8, 8, 6, 0)
    texts = [
        cell.ljust(width) if column in (2, 9) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(texts).rstrip()


def _largest(sizes: Sequence[tuple[int, int]]) -> float:
    return max(4 * clients * experts for clients, experts in sizes) / 1e9


def _draw(rows: Sequence[_Row], path: Path) -> None:
    """Seconds against the cells of the matrix, both axes logarithmic."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NMoEError(f"the plot needs matplotlib: {install_hint('report')}") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.add_subplot(
        xscale="log", yscale="log", xlabel="clients x experts", ylabel="CPU seconds"
    )
    for policy in dict.fromkeys(row.policy for row in rows):
        points = sorted(
            (row.clients * row.experts, row.cpu_seconds) for row in rows if row.policy == policy
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=policy)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.align",
        description="Seconds per assignment, value against the linear program, growth.",
    )
    parser.add_argument(
        "--size",
        type=_sizes,
        default=[(1_000, 64), (10_000, 128), (100_000, 256)],
        metavar="NxE,NxE",
        help="clients x experts",
    )
    known = tuple(policy for policy in POLICIES if policy != "oracle")
    parser.add_argument("--policy", type=NameList(known), default=list(known), metavar="A,B")
    parser.add_argument("--kind", choices=("noise", "popular", "classes"), default="popular")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument(
        "--changed",
        type=Number(0, 1),
        default=0.01,
        metavar="SHARE",
        help="share of the clients that change before joint is mended; 0: it is not",
    )
    parser.add_argument("--all", action="store_true", help="also sequential on large problems")
    parser.add_argument("--no-update", action="store_true", help="leave out the feedback update")
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--plot",
        type=OutputFile((".png", ".pdf", ".svg")),
        metavar="FILE.png",
        help="draw the growth",
    )
    return parser


def _sizes(text: str) -> list[tuple[int, int]]:
    sizes = []
    for part in text.split(","):
        clients, _, experts = part.partition("x")
        try:
            size = Whole(1, 10**7)(clients), Whole(1, 10**5)(experts)
        except argparse.ArgumentTypeError:
            size = (0, 0)
        if not size[0] >= size[1] > 0:
            raise argparse.ArgumentTypeError(
                f"{part[:40]!r}; allowed: CLIENTSxEXPERTS, as in 1000x64, at least one client per "
                "expert"
            )
        if size in sizes:
            raise argparse.ArgumentTypeError(f"{part!r} is there twice; allowed: each size once")
        sizes.append(size)
    return sizes


if __name__ == "__main__":
    sys.exit(told(main))
