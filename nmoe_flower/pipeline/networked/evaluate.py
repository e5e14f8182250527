"""The last exchange: every client evaluates every gate; the rows of ``results.json``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.catalogue import GATES
from nmoe_flower.errors import RoundError
from nmoe_flower.pipeline.ask import gather, holdings, message
from nmoe_flower.pipeline.networked.shortlist import answers_of_chosen
from nmoe_flower.pipeline.rows import all_found, row
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import (
    ARRAYS,
    CENTRALIZED,
    GATE,
    HEAD,
    POOLED_HEAD,
    PROTOTYPES,
    RIDGE,
    Action,
    ControlKey,
    Score,
)

__all__ = ["evaluate"]

PER_CLIENT = (Score.ACCURACY, Score.BALANCED_ACCURACY, Score.MACRO_F1, Score.AUC)
ROUTED = (Score.LOCAL_RATIO, Score.BYTES_PER_SAMPLE)


def evaluate(run: Run) -> dict[str, Any]:
    """Metrics per client, then averaged, as in the paper: the content of ``results.json``."""
    held = holdings(run)
    question = _question(run)
    contents: RecordDict | dict[int, RecordDict] = question
    if run.artifacts.shortlists:
        contents = answers_of_chosen(run, _part(question, routes=True))
        rest = _part(question, routes=False)
        for content in contents.values():
            for name, record in rest.items():
                content[name] = record
    answers = gather(run, "evaluation", Action.ROUTE, contents)
    values = {p: records.metrics_of(content) for p, content in answers.items()}
    _compare(values)
    first = values[min(values)]
    accuracy = f"/{Score.ACCURACY}"
    methods = sorted(key.removesuffix(accuracy) for key in first if key.endswith(accuracy))
    rows = [_row(run, key, values) for key in methods]
    routing = {
        key: [list(metric[f"{key}/{Score.ROUTING}"]) for metric in values.values()]
        for key in methods
        if f"{key}/{Score.ROUTING}" in first
    }
    more = {"by_owner": found} if (found := _by_owner(run, methods, values)) else {}
    return all_found(run, held, rows=rows, routing=routing, parameters=_parameters(run), **more)


def _by_owner(
    run: Run, methods: Sequence[str], values: Mapping[int, Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy by gate, test and the client that samples are of, whichever client was asked.

    Clients are called by their domains, else by their numbers; ``other`` are samples of nobody.
    """
    data = run.config.data
    held = enumerate(data.domains[: data.shares])
    names = [name for share, name in held if share not in data.without]
    names = names or list(map(str, range(data.num_clients)))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key in methods:
        if not all(f"{key}/{Score.ASKED_OF}" in metric for metric in values.values()):
            continue
        asked, right = (
            np.sum([list(metric[f"{key}/{count}"]) for metric in values.values()], axis=0)
            for count in (Score.ASKED_OF, Score.RIGHT_OF)
        )
        gate, _, test = key.rpartition("/")
        found.setdefault(gate, {})[test] = {
            name: float(good / all_)
            for name, good, all_ in zip((*names, "other"), right, asked, strict=True)
            if all_
        }
    return found


def _parameters(run: Run) -> dict[str, int]:
    """Numbers that a device holds beside the extractor to answer by each gate: expert and gate."""
    left, expert = run.artifacts, run.artifacts.expert_parameters
    found = {}
    for method in run.config.gate.methods:
        gate = sum(array.size for array in left.gates.get(method, {}).values())
        if method in GATES and GATES[method].prototypes and left.prototypes is not None:
            gate = left.prototypes.size + len(left.prototypes)
        elif method in GATES and GATES[method].holdout:
            gate = run.config.data.num_clients
        found[method] = expert + int(gate)
    if "fedavg" in run.config.run.controls and (head := left.part("head.")):
        found["control:fedavg"] = sum(array.size for array in head.values())
    return found


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
    controls, left = run.config.run.controls, run.artifacts
    parts = {f"{GATE}/initial": left.initial_gate, CENTRALIZED: left.centralized}
    parts[POOLED_HEAD] = left.pooled_head
    parts |= {f"{GATE}/{gate}": weights for gate, weights in left.gates.items()}
    if "fedavg" in controls and run.config.head.method == "fedavg":
        parts[HEAD] = left.part("head.")
    if run.config.run.shows_ridge:
        parts[RIDGE] = left.ridge
    arrays = {f"{part}/{name}": one for part, named in parts.items() for name, one in named.items()}
    if left.prototypes is not None:
        arrays[PROTOTYPES] = left.prototypes
    return message(arrays, {ControlKey.CONTROLS: ",".join(controls)})


def _part(question: RecordDict, *, routes: bool) -> RecordDict:
    """What gates need to route, or what is left to ask once they have."""
    arrays = records.of_kind(question, ArrayRecord)[ARRAYS]
    initial = f"{GATE}/initial/"  # routes nothing
    kept = {
        name: array
        for name, array in arrays.items()
        if name.startswith((f"{GATE}/", PROTOTYPES)) == routes and not name.startswith(initial)
    }
    return RecordDict({**question, ARRAYS: ArrayRecord(kept)})


def _row(run: Run, key: str, values: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The row of ``gate/test``; a client without a metric, an AUC for one, has NaN there."""
    gate, _, test = key.rpartition("/")
    per_client = {
        name.replace("-", "_"): [metric.get(f"{key}/{name}", np.nan) for metric in values.values()]
        for name in (*PER_CLIENT, *ROUTED)
        if any(f"{key}/{name}" in metric for metric in values.values())
    }
    return row(
        run,
        extractor=run.config.extractor.method,
        gate=gate,
        test=test,
        top_k=run.config.gate.top_k,
        per_client=per_client,
    )
