"""Tables of what benchmarks measured, from the JSON that they wrote to ``results/benchmarks/``."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.growth import Growth, StageCost, page_tables
from benchmarks.rounds.kinds import KINDS
from experiments.publish.published import RESULTS, markdown

__all__ = ["TABLES", "timings"]

Rows = list[list[str]]


def timings(name: str) -> str:
    """The table of ``results/benchmarks/NAME.json``, in Markdown.

    Args:
        name: A key of ``TABLES``; behind a benchmark's name may stand ``-`` and on what it was
            measured, behind that ``.`` and a part of its figures: ``infer-cifar10.encodings``.
    """
    file, dot, part = name.partition(".")
    path = RESULTS / "benchmarks" / f"{file}.json"
    table = TABLES[file.partition("-")[0] + dot + part]
    return table(json.loads(path.read_text(encoding="utf-8")))


def _table(header: Sequence[str], rows: Rows, left: int = 1) -> str:
    """A table whose first columns are set to the left, the others to the right."""
    return "\n".join(markdown(header, rows, left=left)) + "\n"


def _filled(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]], left: int = 1) -> str:
    """A table from the format of each column, by its heading."""
    cells = [[form.format_map(row) for form in columns.values()] for row in rows]
    return _table(tuple(columns), cells, left)


def _align(found: Any) -> str:
    columns = {
        "clients x experts": "{clients:,} x {experts}",
        "policy": "{policy}",
        "seconds": "{seconds:.3f}",
        "goal, at most": "{most}",
        "share of the LP optimum": "{share}",
    }
    rows = [
        {
            **row,
            "most": "" if row["goal"] is None else f"{row['goal']:g}",
            "share": "" if row["optimum"] is None else f"{row['value'] / row['optimum']:.6f}",
        }
        for row in found["rows"]
        if row["policy"] == "joint" or row["goal"] is not None
    ]
    return _filled(columns, rows, left=2)


def _align_bound(found: Any) -> str:
    columns = {
        "clients x experts": "{clients:,} x {experts}",
        "what": "{named}",
        "CPU seconds": "{cpu_seconds:.1f}",
        "goal, at most": "{goal:g}",
        "below the bound": "{gap:.4%}",
        "GB held": "{gigabytes:.2f}",
    }
    named = {"mended": "1 % of the clients changed"}
    rows = [
        {
            **row,
            "named": named.get(row["policy"], row["policy"]),
            "gigabytes": row["peak_bytes"] / 1e9,
        }
        for row in found["rows"]
    ]
    return _filled(columns, rows, left=2)


def _competitors(found: Any) -> str:
    rows = [
        [
            row["kind"],
            row["runner"],
            f"{row['start_seconds']:.1f} s",
            f"{row['round_seconds']:.4f}",
            f"{row['ratio']:.2f}",
            f"{row['cpu_ratio']:.2f}",
            f"{row['memory'] / 1e9:.2f} GB",
        ]
        for row in found["medians"]
        if row["runner"] != "bare"
    ]
    header = ("kind", "runner", "to round 1", "seconds per round", "x bare", "x cpu", "memory")
    return _table(header, rows, left=2)


def _growth(found: Any) -> str:
    runs = [
        Growth(**{**one, "stages": {name: StageCost(**c) for name, c in one["stages"].items()}})
        for one in found["runs"]
    ]
    return page_tables(runs) + "\n"


def _rounds(found: Any) -> str:
    columns = {
        "kind": "{kind}",
        "runner": "{runner}",
        "to round 1": "{seconds-to-round-1:.1f} s",
        "seconds per round": "{seconds-per-round:.4f}",
        "x bare": "{ratio-to-bare:.2f}",
        "goal, at most": "{most}",
    }
    rows = [
        {**row, "most": KINDS[row["kind"]].goals.get(row["runner"], "")}
        for row in found["rows"]
        if row["runner"] != "bare"
    ]
    return _filled(columns, rows, left=2)


def _stack(found: Any) -> str:
    columns = {
        "network": "`{network}`",
        "clients": "{clients:,}",
        "ms in the loop": "{loop:.2f}",
        "ms stacked": "{stacked:.2f}",
        "times faster": "{gain:.1f}",
    }
    return _filled(columns, found["paces"])


def _precision(found: Any) -> str:
    columns = {
        "network": "`{network}`",
        "what it does": "{does}",
        "ms in float32": "{float32:.1f}",
        "ms in bfloat16": "{bf16:.1f}",
        "float32 / bfloat16": "{gain:.2f}",
        "ms without tiles": "{direct:.1f}",
        "without / with": "{tiles_gain:.2f}",
    }
    rows = [{**one, "does": "trains" if one["training"] else "answers"} for one in found["paces"]]
    return _filled(columns, rows, left=2)


def _systems(found: Any) -> str:
    rows = [
        [f"`{name}`", f"{1e3 * one['seconds'] / found['clients']:.1f}", f"{one['x']:.2f}"]
        for name, one in found["systems"].items()
    ]
    return _table(("system", "ms a client's round", "x bare"), rows)


def _adapters(found: Any) -> str:
    columns = {
        "": "{what}",
        "ms": "{ms:,.1f}",
        "ms of a bare loop": "{bare:,.1f}",
        "ratio": "{ratio:.2f}",
    }
    return _filled(columns, found["parts"])


def _sums(found: Any) -> str:
    columns = {
        "D": "{dim:,}",
        "clients": "{clients}",
        "images of each": "{images:,}",
        "sums at a client": "{client_seconds:.2f} s",
        "which are": "{megabytes:.1f} MB",
        "all at the server": "{server_seconds:.2f} s",
    }
    return _filled(columns, [found | {"megabytes": found["client_bytes"] / 1e6}], left=0)


def _study(found: Any) -> str:
    columns = {
        "runs of the study": "{runs:,}",
        "`nmoe study plan`": "{seconds:.2f} s",
        "goal, at most": "{goal:g} s",
    }
    return _filled(columns, [found], left=0)


def _text_peers(found: Any) -> str:
    columns = {
        "": "{what}",
        "sent": "{asked}",
        "ms": "{ms:,.1f}",
        "ms at home": "{home_ms:,.1f}",
        "home / asked": "{x:.2f}",
        "bytes up": "{bytes_up:,.0f}",
        "bytes down": "{bytes_down:,.0f}",
    }
    return _filled(columns, found["ways"], left=2)


def _infer(found: Any) -> str:
    columns = {
        "rows": "{rows}",
        "at once": "{concurrency}",
        "server": "{kind}",
        "requests/s": "{requests-per-second:,.0f}",
        "p50": "{p50-ms:.2f} ms",
        "p99": "{p99-ms:.2f} ms",
        "server CPU per latent": "{server-cpu-us-per-sample:,.1f} µs",
        "of `echo`": "{ratio-to-echo:.2f}",
        "of `bare`": "{ratio-to-bare:.2f}",
    }
    rows = [{f"ratio-to-{row['kind']}": 1.0, **row} for row in found["rows"]]
    return _filled(columns, rows, left=3)


def _encodings(found: Any) -> str:
    columns = {
        "encoding": "{encoding}",
        "test": "{split}",
        "samples": "{samples:,}",
        "accuracy": "{accuracy:.4f}",
        "changed answers": "{changed:.2%}",
        "largest error of a logit": "{largest_error:.4f}",
    }
    return _filled(columns, found["encodings"], left=2)


def _nearest(found: Any) -> str:
    named = {
        "plain": "plain product and `argpartition`",
        "exact": "`nearest`, exact",
        "cells": "`nearest`, cells",
        "faiss-hnsw": "Faiss, graph",
    }
    columns = {
        "embeddings": "{embeddings:,}",
        "way": "{named}",
        "seconds to build": "{build_seconds:.2f}",
        "ms, a query alone": "{alone:.3f}",
        "ms, one of 200": "{together:.3f}",
        "recall": "{recall:.4f}",
    }
    rows = [{**row, "named": named.get(row["way"], row["way"])} for row in found["timings"]]
    return _filled(columns, [row for row in rows if row["embeddings"] >= 10_000], left=2)


def _network(found: Any) -> str:
    columns = {
        "way": "{way}",
        "hops": "{hops:.2f}",
        "99 % of queries within": "{late_hops:.0f}",
        "bytes to find the experts": "{query_bytes:,.0f}",
        "kB per device and hour": "{kept_kb:,.0f}",
        "kB before the first query": "{joining_kb:,.0f}",
        "asked, but gone": "{stale:.2%}",
        "best expert asked": "{best:.1%}",
        "answered at once": "{first:.2%}",
    }
    largest = max(row["devices"] for row in found["ways"])
    rows = [
        {**row, "kept_kb": row["kept_bytes"] / 1e3, "joining_kb": row["joining_bytes"] / 1e3}
        for row in found["ways"]
        if row["devices"] == largest
    ]
    return _filled(columns, rows)


TABLES: dict[str, Callable[[Any], str]] = {
    "adapters": _adapters,
    "align": _align,
    "align.bound": _align_bound,
    "competitors": _competitors,
    "growth": _growth,
    "infer": _infer,
    "infer.encodings": _encodings,
    "nearest": _nearest,
    "network": _network,
    "precision": _precision,
    "rounds": _rounds,
    "stack": _stack,
    "study": _study,
    "sums": _sums,
    "systems": _systems,
    "text_peers": _text_peers,
}
"""By benchmark, from its figures to a table."""
