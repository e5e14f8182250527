"""Tables of finished runs: mean and standard deviation over seeds, beside the paper's numbers."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from nmoe_flower.catalogue import (
    ADAPTER_CONTROLS,
    BASELINE_ANSWERS,
    BASELINES,
    CONTROLS,
    GATES,
    METHODS,
    TESTS,
    TEXT_GATES,
    VALIDATION,
)
from nmoe_flower.report.runs import FinishedRun
from nmoe_flower.results import worst_client

__all__ = [
    "GATE_NAMES",
    "TABLE_METRICS",
    "TEXT_METRICS",
    "gate_kind",
    "gate_order",
    "grid",
    "is_of_text",
    "method_label",
    "number",
    "parts_of_text",
    "place_of_test",
    "results_table",
    "shown_tests",
    "test_label",
    "to_csv",
    "to_markdown",
]

TABLE_METRICS = (
    "accuracy",
    "worst_client",
    "balanced_accuracy",
    "macro_f1",
    "auc",
    "local_ratio",
    "bytes_per_sample",
)
# Of runs on text, which have no accuracy.
TEXT_METRICS = {
    "bits_per_byte": "Bits per byte",
    "worst_bits_per_byte": "Worst client",
    "pooled_bits_per_byte": "All text together",
    "perplexity": "Perplexity",
}
_PARTS = ("domain", "client")  # whose bits per byte are told apart
_MOST_PARTS = 16
Kind = Literal["gate", "upper bound", "control"]
Row = dict[str, Any]

_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
_BLOCK = ("config", "extractor", "scheme", "tau", "clients", "top_k")
GATE_NAMES: dict[str, str] = {
    **{f"control:{name}": control.label for name, control in ADAPTER_CONTROLS.items()},
    **{f"control:{name}": control.label for name, control in CONTROLS.items()},
    **{name: system.label for name, system in BASELINES.items()},
    **BASELINE_ANSWERS,
}
_MARKS: dict[Kind, str] = {"gate": "", "upper bound": " †", "control": " ‡"}
_NOTE = (
    "Fractions: measured per client, then averaged; ± is the standard deviation over n seeds. "
    "Bold: best gate that can be deployed. † upper bound, trained or chosen with what no device "
    "has. ‡ control, no networked experts."
)
_NOTE_OF_TEXT = (
    "Bits per byte, lower is better: measured per client, then averaged; of the IID test each "
    "domain counts alike. ± is the standard deviation over n seeds. Bold: best gate that can be "
    "deployed. † upper bound, told what no device knows. ‡ control, no mixture chosen by a gate."
)


def gate_kind(gate: str) -> Kind:
    """Whether a row is a gate to compare, an upper bound or a control.

    >>> gate_kind("federated+prior"), gate_kind("oracle"), gate_kind("control:fedavg")
    ('gate', 'upper bound', 'control')
    """
    if gate.startswith("control:"):
        return "control"
    entry = GATES.get(gate.split("+")[0])
    return "upper bound" if entry is not None and entry.upper_bound else "gate"


def method_label(method: str) -> str:
    """How tables call what trained an extractor.

    >>> method_label("fedsc"), method_label("filters")
    ('FedSC', 'filters')
    """
    return METHODS[method].label if method in METHODS else method


def gate_order(gate: str) -> tuple[int, str]:
    """Sort key: gates, upper bounds, controls; ``+prior`` after its plain gate."""
    bounds = [name for name in GATES if GATES[name].upper_bound]
    gates = [name for name in GATES if name not in bounds]
    known = (*gates, *TEXT_GATES, *bounds, *GATE_NAMES)
    base = gate.split("+")[0]
    return known.index(base) if base in known else len(known), gate


def place_of_test(test: str) -> tuple[int, str]:
    """Sort key: local, IID, what no version of ours tests on, validation last.

    >>> sorted(["validation", "iid", "odd", "local"], key=place_of_test)
    ['local', 'iid', 'odd', 'validation']
    """
    first = [name for name in TESTS if name != VALIDATION]
    known = first.index(test) if test in first else len(first)
    return known + (test == VALIDATION), test


def test_label(test: str) -> str:
    """How tables call a test.

    >>> test_label("iid"), test_label("validation")
    ('IID test', 'Validation')
    """
    return TESTS.get(test, test) + ("" if test == VALIDATION else " test")


def shown_tests(tests: Iterable[str]) -> list[str]:
    """What figures show, in order: not validation, unless there is nothing else.

    >>> shown_tests(["validation", "iid", "local", "iid"]), shown_tests(["validation"])
    (['local', 'iid'], ['validation'])
    """
    found = sorted(set(tests), key=place_of_test)
    return [test for test in found if test != VALIDATION] or found


def results_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row per configuration, test and gate, over the seeds of that configuration.

    Rows hold ``config`` (the settings in which the runs differ), ``extractor``, ``scheme``,
    ``tau``, ``clients``, ``top_k``, ``test``, ``gate``, ``kind``, ``n``, ``seeds``; each metric's
    mean under its name and its sample standard deviation under ``<metric>_std`` (None for one
    seed, or where a seed lacks it); and ``best``: the scores in which this gate leads its block.
    With runs on text all rows have their metrics too, and bits per byte of each ``domain/<name>``
    and ``client/<id>``. Seeds of different configurations are never mixed.
    """
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for run in runs:
        for row in run.results["rows"]:
            scheme = row.get("scheme", run.config.data.scheme)
            tau = row.get("tau", run.config.data.tau) if scheme == "dominant" else None
            place = (row["extractor"], scheme, tau, row["clients"], row["top_k"])
            key = (run.group, run.label, *place, row["test"], row["gate"])
            cells.setdefault(key, []).append({"seed": run.config.run.seed, **row})
    metrics = (*TABLE_METRICS, *_metrics_of_text([row for rows in cells.values() for row in rows]))
    table = [_row(key[1:], rows, metrics) for key, rows in cells.items()]
    _mark_best(table)
    return sorted(table, key=_position)


def is_of_text(row: Row) -> bool:
    """Whether a row, of results.json or of `results_table`, is of a run on text.

    Args:
        row: The row.
    """
    return row.get("bits_per_byte") is not None


def parts_of_text(rows: Iterable[Row], kind: str) -> dict[str, str]:
    """Metrics in `results_table` that tell bits per byte of each part, and what the part is called.

    Args:
        rows: Rows of one test; parts that none of them tells are left out.
        kind: What the parts are, ``domain`` or ``client``.

    >>> parts_of_text([{"domain/code": 1.5, "domain/law": None}], "domain")
    {'domain/code': 'code'}
    """
    found = dict.fromkeys(
        key
        for row in rows
        for key, value in row.items()
        if key.startswith(f"{kind}/") and not key.endswith("_std") and value is not None
    )
    return {key: key.removeprefix(f"{kind}/") for key in found}


def _metrics_of_text(rows: Sequence[Row]) -> Iterable[str]:
    if any(is_of_text(row) for row in rows):
        yield from TEXT_METRICS
        for kind in _PARTS:
            yield from dict.fromkeys(f"{kind}/{name}" for row in rows for name in _parts(row, kind))


def _parts(row: Row, kind: str) -> dict[str, Any]:
    """Bits per byte by domain or by client, of a row of results.json."""
    if not is_of_text(row):
        return {}
    if kind == "domain":
        return dict(row.get("domains") or {})
    values = (row.get("per_client") or {}).get("bits_per_byte") or []
    return {str(client): value for client, value in enumerate(values)}


def _told(row: Row, metric: str) -> Any:
    """A metric of a row of results.json; ``<kind>/<name>`` is a part's."""
    if metric == "worst_client":
        return worst_client(row)
    kind, slash, name = metric.partition("/")
    return _parts(row, kind).get(name) if slash else row.get(metric)


def _row(key: tuple[Any, ...], rows: list[Row], metrics: Iterable[str]) -> Row:
    row: Row = dict(zip((*_BLOCK, "test", "gate"), key, strict=True))
    row["kind"] = gate_kind(row["gate"])
    row["n"] = len(rows)
    row["seeds"] = " ".join(str(seed) for seed in sorted(one["seed"] for one in rows))
    for metric in metrics:
        values = [_told(one, metric) for one in rows]
        whole = [float(value) for value in values if value is not None]
        complete = len(whole) == len(values)
        row[metric] = statistics.fmean(whole) if complete else None
        row[f"{metric}_std"] = statistics.stdev(whole) if complete and len(whole) > 1 else None
    return row


def _mark_best(table: list[Row]) -> None:
    rivals: dict[tuple[Any, ...], list[Row]] = {}
    for row in table:
        if row["kind"] == "gate":
            rivals.setdefault(_test(row), []).append(row)
    for row in table:
        row["best"] = tuple(
            score
            for score in (*_SCORES, *(name for name in TEXT_METRICS if is_of_text(row)))
            if row["kind"] == "gate"
            and row[score] is not None
            and _leads(row[score], [other[score] for other in rivals[_test(row)]], score)
        )


def _leads(value: float, others: Iterable[float | None], score: str) -> bool:
    there = [other for other in others if other is not None]
    return value <= min(there) if score in TEXT_METRICS else value >= max(there)


def _block(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _BLOCK)


def _test(row: Row) -> tuple[Any, ...]:
    return (*_block(row), row["test"])


def _position(row: Row) -> tuple[Any, ...]:
    """Order of rows: milder skew first, the local test before the others, validation last."""
    tau = math.inf if row["tau"] is None else row["tau"]
    block = (row["extractor"], row["scheme"], -tau, row["clients"], row["top_k"], row["config"])
    return (*block, place_of_test(row["test"]), gate_order(row["gate"]))


def to_csv(table: Sequence[Row]) -> str:
    """The table as CSV with a header; lists are joined by blanks, missing values are empty."""
    text = io.StringIO()
    if table:
        writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
        writer.writeheader()
        for row in table:
            writer.writerow(
                {key: " ".join(v) if isinstance(v, tuple) else v for key, v in row.items()}
            )
    return text.getvalue()


def to_markdown(table: Sequence[Row]) -> str:
    """`results_table` as Markdown: one section per configuration, one table per test."""
    lines: list[str] = []
    for block in dict.fromkeys(_block(row) for row in table):
        rows = [row for row in table if _block(row) == block]
        lines += [f"### {_title(rows[0])}", ""]
        for test in dict.fromkeys(row["test"] for row in rows):
            if is_of_text(rows[0]):
                lines += _tables_of_text(test, [row for row in rows if row["test"] == test])
                continue
            header = (
                test_label(test), "Accuracy", "Worst client", "Balanced accuracy", "Macro F1", "AUC"
            )  # fmt: skip
            body = [_cells(row) for row in rows if row["test"] == test]
            lines += [*grid((*header, "Local ratio", "Bytes per sample", "n"), body, words=1), ""]
    kinds = {is_of_text(row) for row in table}
    notes = [note for of_text, note in ((False, _NOTE), (True, _NOTE_OF_TEXT)) if of_text in kinds]
    return "\n".join([*lines, *(notes or [_NOTE]), ""])


def _tables_of_text(test: str, rows: Sequence[Row]) -> list[str]:
    """Bits per byte and what they cost; then those of each domain and of each client."""
    header = (test_label(test), *TEXT_METRICS.values(), "Local ratio", "Bytes per window", "n")
    body = []
    for row in rows:
        scores = [
            f"**{number(row, score)}**" if score in row["best"] else number(row, score)
            for score in TEXT_METRICS
        ]
        sent = number(row, "bytes_per_sample", digits=0)
        body.append([_marked(row), *scores, number(row, "local_ratio"), sent, str(row["n"])])
    lines = [*grid(header, body, words=1), ""]
    for kind in _PARTS:
        parts = parts_of_text(rows, kind)
        if 1 < len(parts) <= _MOST_PARTS:
            names = [f"client {name}" if kind == "client" else name for name in parts.values()]
            body = [[_marked(row), *(number(row, part) for part in parts)] for row in rows]
            lines += [*grid((f"{test_label(test)}, by {kind}", *names), body, words=1), ""]
    return lines


def _marked(row: Row) -> str:
    return str(row["gate"]) + _MARKS[gate_kind(row["gate"])]


def _title(row: Row) -> str:
    tau = "" if row["tau"] is None else f" τ = {row['tau']:g}"
    scheme = "IID" if row["scheme"] == "iid" else row["scheme"]
    extractor = method_label(row["extractor"])
    config = f" ({row['config']})" if row["config"] else ""
    return f"{extractor}, {scheme}{tau}, {row['clients']} clients, top-{row['top_k']}{config}"


def _cells(row: Row) -> list[str]:
    scores = [number(row, score) for score in _SCORES]
    scores = [
        f"**{text}**" if score in row["best"] else text
        for score, text in zip(_SCORES, scores, strict=True)
    ]
    scores.insert(1, number(row, "worst_client"))
    ratio, size = number(row, "local_ratio"), number(row, "bytes_per_sample", digits=0)
    return [_marked(row), *scores, ratio, size, str(row["n"])]


def number(row: Row, metric: str, *, digits: int = 3) -> str:
    """Mean ± standard deviation of a metric, as far as there are any."""
    mean, spread = row[metric], row[f"{metric}_std"]
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def grid(header: Sequence[str], body: Iterable[Sequence[str]], *, words: int) -> list[str]:
    """The lines of a Markdown table; all columns after the first ``words`` hold numbers."""
    rule = [":---" if place < words else "---:" for place in range(len(header))]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *body)]
