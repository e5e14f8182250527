"""Finding the best of N embeddings: a plain product, `nmoe_flower.nearest`, and three libraries."""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.yardstick import columns, told, write_rows
from nmoe_flower.arguments import SEED, NameList, OutputFile, Parser, Whole
from nmoe_flower.errors import NMoEError
from nmoe_flower.installation import install_hint
from nmoe_flower.nearest import Index
from nmoe_flower.provenance import provenance

__all__ = ["main"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Search = Callable[[Floats, int], Ints]

K = 8
_TOGETHER, _ALONE = 200, 50  # queries of a batch, and queries that are asked one by one
_GRAPH = {"links": 16, "while building": 100, "while searching": 64}
_LONG = 100_000  # above, graphs take many minutes to build, and are left out unless asked for


@dataclass(frozen=True)
class Timing:
    """One way at one size.

    Attributes:
        way: One of the names in `WAYS`.
        embeddings: How many there are, N.
        build_seconds: CPU time to make ready.
        alone: CPU milliseconds of a query that comes alone.
        together: CPU milliseconds per query of a batch.
        recall: Share of the true best that it found.
    """

    way: str
    embeddings: int
    build_seconds: float
    alone: float
    together: float
    recall: float


def _plain(embeddings: Floats) -> Search:
    def search(queries: Floats, k: int) -> Ints:
        scores = queries @ embeddings.T
        return np.argpartition(scores, -k, axis=1)[:, -k:]

    return search


def _ours(method: str) -> Callable[[Floats], Search]:
    def build(embeddings: Floats) -> Search:
        index = Index(embeddings, method=method)
        return lambda queries, k: index.topk(queries, k)[0]

    return build


def _hnswlib(embeddings: Floats) -> Search:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=embeddings.shape[1])
    index.init_index(len(embeddings), M=_GRAPH["links"], ef_construction=_GRAPH["while building"])
    index.add_items(embeddings, num_threads=1)
    index.set_ef(_GRAPH["while searching"])
    return lambda queries, k: index.knn_query(queries, k, num_threads=1)[0].astype(np.int64)


def _faiss_graph(embeddings: Floats) -> Search:
    import faiss

    index = faiss.IndexHNSWFlat(
        embeddings.shape[1], _GRAPH["links"], faiss.METRIC_INNER_PRODUCT
    )  # fmt: skip
    index.hnsw.efConstruction = _GRAPH["while building"]
    index.hnsw.efSearch = _GRAPH["while searching"]
    index.add(embeddings)
    return lambda queries, k: index.search(queries, k)[1]


def _usearch(embeddings: Floats) -> Search:
    from usearch.index import Index as Graph

    index = Graph(
        ndim=embeddings.shape[1], metric="ip", dtype="f32", connectivity=_GRAPH["links"],
        expansion_add=_GRAPH["while building"], expansion_search=_GRAPH["while searching"],
    )  # fmt: skip
    index.add(np.arange(len(embeddings)), embeddings, threads=1)

    def search(queries: Floats, k: int) -> Ints:
        found = index.search(queries, k, threads=1)
        return np.asarray(found.keys).reshape(len(queries), -1).astype(np.int64)

    return search


# By name: what makes it ready, the module it needs, whether it builds a graph.
WAYS: dict[str, tuple[Callable[[Floats], Search], str, bool]] = {
    "plain": (_plain, "numpy", False),
    "exact": (_ours("exact"), "numpy", False),
    "cells": (_ours("cells"), "faiss", False),
    "hnswlib": (_hnswlib, "hnswlib", True),
    "faiss-hnsw": (_faiss_graph, "faiss", True),
    "usearch": (_usearch, "usearch", True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and draw if asked."""
    args = _parser().parse_args(argv)
    found: list[Timing] = []
    for size in args.size:
        embeddings, queries = _problem(size, args.dim, args.kind, args.seed)
        true = Index(embeddings, method="exact").topk(queries, min(K, size))[0]
        for name in args.way:
            build, module, graph = WAYS[name]
            if importlib.util.find_spec(module) is None:
                print(f"{name} is left out: {module} is not installed", file=sys.stderr)
            elif not graph or size <= _LONG or args.all:
                found.append(_timed(name, build, embeddings, queries, true))
        rows = [one for one in found if one.embeddings == size]
        print(f"{size:,} embeddings of {args.dim}, {args.kind}, the best {K}; CPU time, one thread")
        print(_table(rows), end="\n\n", flush=True)
    if args.json is not None:
        content = {"timings": [asdict(one) for one in found], "dim": args.dim, "k": K}
        write_rows(args.json, {**content, "kind": args.kind, "source": provenance(args.seed)})
    if args.plot is not None:
        _draw(found, args.plot)
        print(f"drawn to {args.plot}")
    return 0


def _problem(size: int, dim: int, kind: str, seed: int) -> tuple[Floats, Floats]:
    """Embeddings, and queries near some of them."""
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((size, dim), dtype=np.float32)
    if kind == "domains":
        domains = rng.standard_normal((max(10, size // 50), dim), dtype=np.float32)
        embeddings = domains[rng.integers(0, len(domains), size)] + np.float32(0.5) * embeddings
    near = embeddings[rng.integers(0, size, _TOGETHER)]
    return embeddings, near + 0.5 * rng.standard_normal(near.shape, dtype=np.float32)


def _timed(
    name: str, build: Callable[[Floats], Search], embeddings: Floats, queries: Floats, true: Ints
) -> Timing:
    k = true.shape[1]
    began = time.process_time()
    search = build(embeddings)
    built = time.process_time() - began
    began = time.process_time()
    found = search(queries, k)
    together = time.process_time() - began
    began = time.process_time()
    for row in range(_ALONE):
        search(queries[row : row + 1], k)
    alone = time.process_time() - began
    hit = float((found[:, :, None] == true[:, None, :]).any(axis=2).mean())
    return Timing(
        name, len(embeddings), built, 1000 * alone / _ALONE, 1000 * together / len(queries), hit
    )


def _table(rows: Sequence[Timing]) -> str:
    head = ("way", "build s", "ms alone", "ms in a batch", "recall")
    return columns(
        [head, *(
            (one.way, f"{one.build_seconds:.2f}", f"{one.alone:.3f}", f"{one.together:.3f}",
             f"{one.recall:.4f}")
            for one in rows
        )],
        left=(0,),
    )  # fmt: skip


def _draw(found: Sequence[Timing], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NMoEError(f"the plot needs matplotlib: {install_hint('report')}") from error
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    shown: tuple[tuple[str, Callable[[Timing], float], str], ...] = (
        ("milliseconds of a query alone", lambda one: one.alone, "log"),
        ("seconds to build", lambda one: max(one.build_seconds, 1e-3), "log"),
        ("recall of the best 8", lambda one: one.recall, "linear"),
    )
    for panel, (title, value, scale) in zip(panels, shown, strict=True):
        for way in dict.fromkeys(one.way for one in found):
            rows = [one for one in found if one.way == way]
            panel.plot(
                [one.embeddings for one in rows], [value(one) for one in rows],
                marker="o", ms=4, label=way,
            )  # fmt: skip
        panel.set(xscale="log", yscale=scale, xlabel="embeddings")
        panel.set_title(title, fontsize=9)
        panel.grid(alpha=0.3)
    panels[2].set_ylim(0.9, 1.005)
    panels[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks.nearest", description=__doc__)
    parser.add_argument(
        "--size", type=_sizes, default=[1_000, 10_000, 100_000], metavar="N,N",
        help="numbers of embeddings (1000,10000,100000)",
    )  # fmt: skip
    parser.add_argument("--way", type=NameList(tuple(WAYS)), default=list(WAYS), metavar="A,B")
    parser.add_argument("--dim", type=Whole(1, 4096), default=64, help="of an embedding (64)")
    parser.add_argument("--kind", choices=("domains", "noise"), default="domains")
    parser.add_argument("--all", action="store_true", help=f"graphs beyond {_LONG:,} too: minutes")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--plot", type=OutputFile((".png", ".pdf", ".svg")), metavar="FILE.png", help="draw them"
    )
    return parser


def _sizes(text: str) -> list[int]:
    return [Whole(1, 10**7)(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(told(main))
