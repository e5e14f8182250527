"""How experts are found in a network of N devices that come and go: routing only, simulated.

Four ways of knowing who is there: everybody holds the whole list (from a server, or by gossip); a
distributed table (Kademlia) of cells of embeddings; regions with coordinators. Queries ask the best
experts they know of; some are gone already, and some that would be better are not known yet.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.yardstick import columns, told, write_rows
from nmoe_flower.arguments import SEED, Number, OutputFile, Parser, Whole
from nmoe_flower.errors import NMoEError
from nmoe_flower.installation import install_hint
from nmoe_flower.nearest import topk
from nmoe_flower.provenance import provenance

__all__ = ["main"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Times = npt.NDArray[np.float64]

DIM = 64
ENTRY = 512  # bytes of a signed manifest: name, address, versions, embedding, key, signature
CONTACT, HEADER = 40, 100  # bytes of an id with its address; of a message around its content
ASKED, TRIES = 2, 3  # experts asked at once, and how often others are asked if none answers
CANDIDATES = 64  # of which every way shows some to a query
REFRESH, LEASE = 600.0, 120.0  # seconds: of lists; until a silent device counts as gone
BEAT = 60.0  # seconds between two signs of life to a coordinator or to the table
EXPIRY = 300.0  # seconds that the table keeps an entry, as Hivemind's default
GOSSIP = 30.0  # seconds between two exchanges of one device
CELL, REGION_CELLS, TABLE_CELLS = 32, 8, 8  # experts per cell; what a query visits
BUCKET, PARALLEL, REPLICAS = 20, 3, 3
_MOST_ROUNDS = 64


@dataclass(frozen=True)
class World:
    """Devices at one moment, and who was in their places before.

    Attributes:
        embeddings: Unit vectors; the devices there first, then some that left lately, [M, 64].
        since: Seconds since each of those there joined, or since the one that left did, [M].
        devices: How many are there, N; the rows from N on are gone.
        queries: Latents that want an expert, [Q, 64].
        ranked: For each query the best rows of ``embeddings``, best first, [Q, candidates].
        leaving: Devices that leave per device and second.
    """

    embeddings: Floats
    since: Times
    devices: int
    queries: Floats
    ranked: Ints
    leaving: float


@dataclass(frozen=True)
class Found:
    """What one way of finding experts gives and costs.

    Attributes:
        way: How experts were found: list, gossip, table or regions.
        devices: How many there were, N.
        hops: Messages one after the other until an expert's answer, the mean.
        late_hops: The same, exceeded by one query of a hundred.
        query_bytes: Bytes that finding the experts of a query moves, the mean; asking them apart.
        kept_bytes: What each device sends and receives an hour to know who is there.
        joining_bytes: What a device must receive before its first query.
        stale: Share of the experts asked first that are gone.
        best: Share of the queries that asked the best expert of all there are.
        first: Share of the queries that an expert of the first try answered.
        answered: Share of the queries that one of the best experts, `CANDIDATES` of them, answered.
    """

    way: str
    devices: int
    hops: float
    late_hops: float
    query_bytes: float
    kept_bytes: float
    joining_bytes: float
    stale: float
    best: float
    first: float
    answered: float


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print, and draw if asked."""
    args = _parser().parse_args(argv)
    found: list[Found] = []
    for devices in args.devices:
        began = time.monotonic()
        rng = np.random.default_rng(args.seed)
        world = build_world(devices, args.queries, args.churn, rng)
        rows = [way(world, rng) for way in (whole_list, gossip, table_of_cells, regions)]
        found += rows
        print(f"{devices:,} devices, {args.churn:.0%} an hour leave and others join")
        print(_table(rows))
        print(f"simulated in {time.monotonic() - began:.0f} s\n", flush=True)
    if args.json is not None:
        content = {
            "ways": [asdict(one) for one in found],
            "churn": args.churn,
            "queries": args.queries,
            "source": provenance(args.seed),
        }
        write_rows(args.json, content)
    if args.plot is not None:
        _draw(found, args.plot)
        print(f"drawn to {args.plot}")
    return 0


def build_world(devices: int, queries: int, churn: float, rng: np.random.Generator) -> World:
    """Embeddings around domains; each device stays an exponential time and is replaced at once."""
    leaving = -math.log(1 - churn) / 3600
    domains = rng.standard_normal((max(10, devices // 50), DIM), dtype=np.float32)

    def drawn(count: int) -> Floats:
        near = domains[rng.integers(0, len(domains), count)]
        return _unit(near + 0.5 * rng.standard_normal((count, DIM), dtype=np.float32))

    since = rng.exponential(1 / leaving, devices) if leaving else np.full(devices, np.inf)
    longest = REFRESH + EXPIRY + _MOST_ROUNDS * GOSSIP  # nobody is listed longer
    left = since[since < longest]
    embeddings = np.concatenate([drawn(devices), drawn(len(left))])
    asked = drawn(queries)  # of a domain, not of a device that is there for sure
    ranked, _ = topk(asked, embeddings, min(CANDIDATES, devices))
    return World(embeddings, np.concatenate([since, left]), devices, asked, ranked, leaving)


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


# --- four ways ---


def whole_list(world: World, rng: np.random.Generator) -> Found:
    """A server keeps the list, and every device fetches what changed every ten minutes."""
    age = rng.uniform(0, REFRESH, (len(world.queries), 1))
    changes = 2 * world.devices * world.leaving * 3600
    return _outcome(
        "list", world, seen=_seen(world, age, age + LEASE), hops=0,
        query_bytes=0, kept_bytes=changes / 2 * (ENTRY + 16) + 3600 / REFRESH * HEADER,
        joining_bytes=world.devices * ENTRY,
    )  # fmt: skip


def gossip(world: World, rng: np.random.Generator) -> Found:
    """Every device tells another one at random what is new, and is told, every 30 seconds."""
    informed, sent = spread(world.devices, rng)
    late = rng.choice(len(informed), p=informed, size=world.ranked.shape)
    delay: Times = GOSSIP * late.astype(np.float64)
    changes = world.devices * world.leaving * 3600
    return _outcome(
        "gossip", world, seen=_seen(world, delay, delay + LEASE), hops=0,
        query_bytes=0,
        kept_bytes=2 * sent * changes * (ENTRY + 16) + 2 * 3600 / GOSSIP * HEADER,
        joining_bytes=world.devices * ENTRY,
    )  # fmt: skip


def table_of_cells(world: World, rng: np.random.Generator) -> Found:
    """Entries lie under their cell in a Kademlia table; a query looks the nearest cells up."""
    cells = max(1, world.devices // CELL)
    within, held, centres = _cells(world, cells, min(TABLE_CELLS, cells), rng)
    lookups = [_lookup(world, rng) for _ in range(min(400, len(world.queries)))]
    steps, messages = (np.array(column) for column in zip(*lookups, strict=True))
    gone = rng.uniform(EXPIRY - BEAT, EXPIRY, world.ranked.shape)
    seen = _seen(world, np.ones_like(gone), gone) & within
    message = HEADER + BUCKET * CONTACT
    looked = min(TABLE_CELLS, cells)
    return _outcome(
        "table", world, seen=seen,
        hops=rng.choice(steps, (len(world.queries), looked)).max(axis=1),
        query_bytes=looked * messages.mean() * message + held * ENTRY,
        kept_bytes=2 * (3600 / BEAT * REPLICAS * (ENTRY + HEADER)
                        + math.log2(world.devices) * messages.mean() * message),
        joining_bytes=centres * DIM * 4,
    )  # fmt: skip


def regions(world: World, rng: np.random.Generator) -> Found:
    """Three coordinators per region of about sqrt(N) devices rank their members for a query."""
    count = max(1, round(math.sqrt(world.devices)))
    visited = min(REGION_CELLS, count)
    within, _, centres = _cells(world, count, visited, rng)
    gone = rng.uniform(BEAT, 2 * BEAT, world.ranked.shape)
    dead = 1 - np.exp(-world.leaving * rng.uniform(0, REFRESH, (len(world.queries), visited)))
    first, second, third = (rng.random(dead.shape) < dead for _ in range(3))
    reached = ~(first & second & third)
    waits = first * (1 + second)  # other coordinators that were tried
    which = within.reshape(len(dead), -1)
    seen = _seen(world, np.ones_like(gone), gone) & which & reached.any(axis=1, keepdims=True)
    change = count * REPLICAS * world.leaving * 3600 * (CONTACT + 32)
    return _outcome(
        "regions", world, seen=seen, hops=1 + waits.max(axis=1),
        query_bytes=visited * (2 * HEADER + DIM * 4 + 16 * (CONTACT + 4)),
        kept_bytes=3600 / BEAT * REPLICAS * HEADER + change,
        joining_bytes=centres * (DIM * 4 + REPLICAS * (CONTACT + 32)),
    )  # fmt: skip


# --- what they share ---


def _seen(world: World, new: Times, gone: Times) -> Bools:
    """Whether the best rows are in a query's view: known already, or not yet known to be gone.

    ``new`` and ``gone`` are the seconds that either takes to be known, [Q, 1 or candidates].
    """
    since = world.since[world.ranked]
    return np.where(world.ranked < world.devices, since >= new, since < gone)


def _outcome(
    way: str,
    world: World,
    *,
    seen: Bools,
    hops: "Ints | int",
    query_bytes: float,
    kept_bytes: float,
    joining_bytes: float,
) -> Found:
    place = np.cumsum(seen, axis=1) - 1  # among those that the query knows of
    turn = np.where(seen, place // ASKED, TRIES)
    alive = world.ranked < world.devices
    asked = turn < TRIES
    answering = np.where(asked & alive, turn, TRIES).min(axis=1)
    answered = answering < TRIES
    now = turn == 0
    best = np.argmax(alive, axis=1)[:, None]
    took = np.asarray(hops) + 1 + np.minimum(answering, TRIES - 1)
    took = np.broadcast_to(took, answered.shape)
    return Found(
        way=way,
        devices=world.devices,
        hops=float(took.mean()),
        late_hops=float(np.quantile(took, 0.99)),
        query_bytes=float(query_bytes),
        kept_bytes=float(kept_bytes),
        joining_bytes=float(joining_bytes),
        stale=float((now & ~alive).sum() / max(now.sum(), 1)),
        best=float(np.take_along_axis(now, best, axis=1).mean()),
        first=float((answering == 0).mean()),
        answered=float(answered.mean()),
    )


def spread(devices: int, rng: np.random.Generator) -> tuple[Times, float]:
    """Push and pull: shares of the devices by the round that news reach them, and copies sent each.

    Of an exchange in which one side knows the news and the other does not, one copy is sent.
    """
    knows = np.zeros(devices, dtype=bool)
    knows[0] = True
    shares, copies = [1 / devices], 0
    while not knows.all() and len(shares) < _MOST_ROUNDS:
        partner = rng.integers(0, devices, devices)
        told_now = knows.copy()
        told_now[partner[knows]] = True
        told_now |= knows[partner]
        copies += int((knows != knows[partner]).sum())
        shares.append(float((told_now & ~knows).mean()))
        knows = told_now
    found = np.array(shares)
    return found / found.sum(), copies / devices


def _cells(
    world: World, count: int, visited: int, rng: np.random.Generator
) -> tuple[Bools, float, int]:
    """Whether the best rows lie in the cells that a query visits; entries there; how many cells."""
    chosen = rng.choice(world.devices, count, replace=False)
    centres = world.embeddings[chosen]
    for _ in range(3):  # Lloyd, on the sphere
        own = topk(world.embeddings, centres, 1)[0][:, 0]
        sums = np.zeros_like(centres)
        np.add.at(sums, own, world.embeddings)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / np.maximum(norms, 1e-9), centres).astype(np.float32)
    own = topk(world.embeddings, centres, 1)[0][:, 0]
    visits = topk(world.queries, centres, visited)[0]
    within = (own[world.ranked][:, :, None] == visits[:, None, :]).any(axis=2)
    sizes = np.bincount(own[: world.devices], minlength=count)
    return within, float(sizes[visits].sum(axis=1).mean()), count


def _lookup(world: World, rng: np.random.Generator) -> tuple[int, int]:
    """Steps and messages of one Kademlia lookup.

    A device knows up to `BUCKET` devices, by lot, of every part of the ids that it is not in; some
    have left since the bucket was refreshed, within an hour. The nearest of them leads on. At each
    step `PARALLEL` devices are asked, which answer alike; if all of them have left, it is lost.
    """
    left, steps, messages = world.devices / 2, 0, 0
    while True:
        steps += 1
        messages += 2 * PARALLEL
        gone = 1 - math.exp(-world.leaving * rng.uniform(0, 3600))
        if rng.random() < gone**PARALLEL:
            continue  # all that were asked have left: a step is lost
        if left <= BUCKET:
            return steps, messages
        known = rng.binomial(BUCKET, 1 - gone) or 1
        left *= rng.random(known).min()  # ids are uniform: the nearest of those that are known


# --- told and drawn ---


def _table(rows: Sequence[Found]) -> str:
    head = ("way", "hops", "99 %", "B/query", "kB/h", "kB to join", "stale", "best", "1st", "all")
    return columns(
        [head, *(
            (one.way, f"{one.hops:.2f}", f"{one.late_hops:.0f}", f"{one.query_bytes:,.0f}",
             f"{one.kept_bytes / 1e3:,.0f}", f"{one.joining_bytes / 1e3:,.0f}",
             f"{one.stale:.2%}", f"{one.best:.1%}", f"{one.first:.2%}", f"{one.answered:.3%}")
            for one in rows
        )],
        left=(0,),
    )  # fmt: skip


def _draw(found: Sequence[Found], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NMoEError(f"the plot needs matplotlib: {install_hint('report')}") from error
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    shown: tuple[tuple[str, Callable[[Found], float]], ...] = (
        ("kB per device and hour", lambda one: one.kept_bytes / 1e3),
        ("hops of a query", lambda one: one.hops),
        ("share that asks the best expert", lambda one: one.best),
    )
    for panel, (title, value) in zip(panels, shown, strict=True):
        for way in dict.fromkeys(one.way for one in found):
            rows = [one for one in found if one.way == way]
            panel.plot(
                [one.devices for one in rows], [value(one) for one in rows],
                marker="o", ms=4, label=way,
            )  # fmt: skip
        panel.set(xscale="log", xlabel="devices")
        panel.set_title(title, fontsize=9)
        panel.grid(alpha=0.3)
    panels[0].set_yscale("log")
    panels[1].set_ylim(bottom=0)
    panels[2].set_ylim(0, 1.02)
    panels[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.network",
        description="How experts are found among N devices that come and go, simulated.",
    )
    parser.add_argument(
        "--devices", type=_counts, default=[1_000, 10_000, 100_000], metavar="N,N",
        help="numbers of devices (1000,10000,100000)",
    )  # fmt: skip
    parser.add_argument("--queries", type=Whole(1, 10**6), default=5_000, help="(5000)")
    parser.add_argument(
        "--churn",
        type=Number(0, 1, below=True),
        default=0.1,
        help="share that leaves an hour (0.1)",
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--plot", type=OutputFile((".png", ".pdf", ".svg")), metavar="FILE.png", help="draw them"
    )
    return parser


def _counts(text: str) -> list[int]:
    return [Whole(10, 10**7)(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(told(main))
