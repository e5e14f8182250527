"""The last exchange: every client evaluates every gate; the rows of ``results.json``."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.errors import RoundError
from nmoe_flower.pipeline.findings import privacy, representation
from nmoe_flower.pipeline.gather import gather
from nmoe_flower.pipeline.holdings import Holding, holdings
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import (
    ARRAYS,
    CENTRALIZED,
    CONFIG,
    GATE,
    HEAD,
    PROTOTYPES,
    Action,
    ControlKey,
    Score,
)

__all__ = ["evaluate"]

PER_CLIENT = (Score.ACCURACY, Score.BALANCED_ACCURACY, Score.MACRO_F1, Score.AUC)
ROUTED = (Score.LOCAL_RATIO, Score.BYTES_PER_SAMPLE)


def evaluate(run: Run) -> dict[str, Any]:
    """Metrics per client, then averaged, as in the paper: the content of ``results.json``."""
    held = list(holdings(run).values())
    answers = gather(run, "evaluation", Action.ROUTE, _question(run))
    values = {p: records.metrics_of(content) for p, content in answers.items()}
    _compare(values)
    first = values[min(values)]
    methods = sorted(
        {key.rpartition("/")[0] for key in first if key.endswith(f"/{Score.ACCURACY}")}
    )
    rows, routing = [], {}
    sizes = [sum(holding.train) for holding in held]
    found = {"privacy": privacy(run), "representation": representation(run, sizes=sizes)}
    for key in methods:
        method, _, test = key.rpartition("/")
        rows.append(_row(run, method, test, values))
        if f"{key}/{Score.ROUTING}" in first:
            routing[key] = [list(metric[f"{key}/{Score.ROUTING}"]) for metric in values.values()]
    return {
        "rows": rows,
        "routing": routing,
        "stages": run.costs,
        "partition": _partition(held),
        "fingerprint": ",".join(sorted({holding.fingerprint for holding in held})),
        "seconds": sum(cost["seconds"] for cost in run.costs.values()),
        **{name: value for name, value in found.items() if value is not None},
    }


def _compare(values: Mapping[int, Mapping[str, Any]]) -> None:
    """Refuse clients that evaluated other gates than most; an AUC may be missing.

    Raises:
        RoundError: With the client and what differs.
    """
    told = {
        p: frozenset(
            name for name in metrics if name.endswith((f"/{Score.ACCURACY}", f"/{Score.ROUTING}"))
        )
        for p, metrics in values.items()
    }
    ((common, _),) = Counter(told.values()).most_common(1)
    for partition, names in told.items():
        if odd := sorted(names ^ common):
            raise RoundError(
                f"evaluation: client {partition} differs from most in {', '.join(odd[:5])}"
            )


def _question(run: Run) -> RecordDict:
    """Gates, prototypes and controls: all that evaluation needs, in one message."""
    controls = run.config.run.controls
    arrays = {k: v for k, v in run.arrays.items() if k.startswith((f"{GATE}/", f"{CENTRALIZED}/"))}
    if PROTOTYPES in run.arrays:
        arrays[PROTOTYPES] = run.arrays[PROTOTYPES]
    head = run.part("classifier/head.")
    if "fedavg" in controls and head:
        arrays |= {f"{HEAD}/{name}": value for name, value in head.items()}
    return RecordDict(
        {
            ARRAYS: records.from_numpy(arrays),
            CONFIG: ConfigRecord({ControlKey.CONTROLS: ",".join(controls)}),
        }
    )


def _row(run: Run, method: str, test: str, values: dict[int, Mapping[str, Any]]) -> dict[str, Any]:
    config, key = run.config, f"{method}/{test}"
    per_client = {
        name.replace("-", "_"): [metric.get(f"{key}/{name}", np.nan) for metric in values.values()]
        for name in (*PER_CLIENT, *ROUTED)
        if any(f"{key}/{name}" in metric for metric in values.values())
    }
    row: dict[str, Any] = {
        "extractor": config.extractor.method,
        "gate": method,
        "scheme": config.data.scheme,
        "tau": config.data.tau,
        "test": test,
        "seed": config.run.seed,
        "clients": config.data.num_clients,
        "top_k": config.gate.top_k,
    }
    row |= {name: float(np.nanmean(of_clients)) for name, of_clients in per_client.items()}
    return {**row, "per_client": per_client}


def _partition(held: list[Holding]) -> dict[str, Any]:
    return {
        "train": [holding.train for holding in held],
        "test": [holding.test for holding in held],
        "classes": held[0].classes,
    }
