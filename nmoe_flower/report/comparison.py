"""Our numbers beside those of the NMoE paper."""

import re
from collections.abc import Sequence

from nmoe_flower.report.paper import CITATION, METHODS, paper_cell
from nmoe_flower.report.runs import FinishedRun, label_runs
from nmoe_flower.report.tables import Row, grid, number, results_table

__all__ = ["paper_table", "paper_to_markdown"]

_METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1", "auc": "AUC"}
_TESTS = {"I": "test data distributed as the client's own", "II": "IID test data"}


def paper_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """Our numbers beside the paper's, for the cells both have.

    The paper used CIFAR-10, 10 clients and top-1, so only such runs have cells. Rows hold
    ``table``, ``setting``, ``extractor``, ``method``, ``config``, ``n`` and, for accuracy, macro
    F1 and AUC, our mean, our spread and ``paper_<metric>``; fractions all. They stand in the
    paper's order: methods from top to bottom, settings from IID to the strongest skew.
    """
    table = []
    comparable = label_runs([run for run in runs if _is_cifar10(run.config.data.dataset)])
    for row in results_table(comparable):
        cell = paper_cell(
            row["gate"],
            extractor=row["extractor"],
            scheme=row["scheme"],
            tau=row["tau"],
            test=row["test"],
        )
        if cell is None or row["clients"] != 10 or row["top_k"] != 1:
            continue
        ours = {key: row[key] for key in ("extractor", "config", "n")}
        ours["table"] = cell["table"]
        ours["setting"] = "IID" if row["tau"] is None else f"τ = {row['tau']:g}"
        ours["method"] = METHODS[row["gate"]]
        for metric in _METRICS:
            ours[metric] = row[metric]
            ours[f"{metric}_std"] = row[f"{metric}_std"]
            ours[f"paper_{metric}"] = cell[metric]
        table.append(ours)
    return sorted(table, key=_position)


def _is_cifar10(dataset: str) -> bool:
    """Whether a hub name or a folder speaks of CIFAR-10, and not of CIFAR-100.

    >>> [_is_cifar10(name) for name in ("uoft-cs/cifar10", "data/CIFAR-10", "cifar100", "digits")]
    [True, True, False, False]
    """
    return re.search(r"cifar[-_]?10(?!\d)", dataset.lower()) is not None


def _position(row: Row) -> tuple[str, str, int, str, bool, float]:
    skew = 0.0 if row["setting"] == "IID" else float(row["setting"].rpartition(" ")[2])
    method = list(METHODS.values()).index(row["method"])
    return row["table"], row["extractor"], method, row["config"], skew > 0, -skew


def paper_to_markdown(table: Sequence[Row]) -> str:
    """`paper_table` as Markdown, laid out as in the paper; empty without anything to compare.

    One table per table of the paper and metric, one line per method, two columns per setting.
    """
    lines: list[str] = []
    for name in dict.fromkeys(row["table"] for row in table):
        for metric, title in _METRICS.items():
            lines += [f"### Table {name}, {title} ({_TESTS[name]})", ""]
            lines += [*_pivot([row for row in table if row["table"] == name], metric), ""]
    if lines:
        seeds = " or ".join(str(n) for n in sorted({row["n"] for row in table}))
        lines += [
            f"Fractions. Ours: {seeds} seed{'s' if seeds != '1' else ''}, mean ± standard "
            f"deviation where there are several. Paper: {CITATION}; its numbers come from one "
            "seed.",
            "",
        ]
    return "\n".join(lines)


def _pivot(rows: Sequence[Row], metric: str) -> list[str]:
    settings = {row["setting"]: _position(row)[-2:] for row in rows}
    columns = sorted(settings, key=lambda setting: settings[setting])
    many = any(row["config"] for row in rows)
    header = ["Extractor", "Method", *(["Configuration"] if many else [])]
    words = len(header)
    for column in columns:
        header += [column, "paper"]
    body: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        name = {"fedce": "FedCE", "fedsc": "FedSC"}.get(row["extractor"], row["extractor"])
        line = (name, row["method"], *([row["config"] or "-"] if many else []))
        body.setdefault(line, {})[row["setting"]] = row
    lines = []
    for names, cells in body.items():
        line_cells = [*names]
        for column in columns:
            if column in cells:
                cell = cells[column]
                line_cells += [number(cell, metric), f"{cell[f'paper_{metric}']:.3f}"]
            else:
                line_cells += ["-", "-"]
        lines.append(line_cells)
    return grid(header, lines, words=words)
