"""The numbers of Tables I and II of the NMoE paper, as printed, and ours beside them.

S. Gao, S. Jing, S. Zhang, Y. Wang, X. Zhou, S. Zhang, "Towards Efficient Federated Learning of
Networked Mixture-of-Experts for Mobile Edge Computing", arXiv:2511.01743, 2025. CIFAR-10,
ResNet-18, 10 clients with 2,500 training and 1,000 test images each, top-1, one seed.
"""

import re
from collections.abc import Sequence

from nmoe_flower.config import Config
from nmoe_flower.report.runs import FinishedRun, label_runs
from nmoe_flower.report.tables import Row, grid, method_label, number, results_table

__all__ = [
    "CITATION",
    "PAPER_METHODS",
    "is_papers_setting",
    "paper_cell",
    "paper_table",
    "paper_to_markdown",
]

CITATION = "arXiv:2511.01743, Tables I and II (CIFAR-10, ResNet-18, 10 clients, top-1)"

# How the paper calls what a results row calls its gate.
PAPER_METHODS = {
    "control:centralized": "Centralized MoE",
    "control:local-classifier": "Local Classifier",
    "control:fedavg": "FedAvg of Local Classifier",
    "random": "RanGate",
    "rolling": "RollGate",
    "federated": "FedGate",
}

_Cell = tuple[float, float, float]
_Cells = dict[float | None, _Cell]

# Accuracy, F1 and AUC in per cent, by tau; None stands for IID data.
_TABLE_1: dict[tuple[str, str], _Cells] = {
    ("", "control:centralized"): {None: (90.37, 90.25, 97.7)},
    ("", "control:local-classifier"): {
        None: (11.08, 1.81, 48.49),
        0.5: (66.66, 8.00, 50.00),
        0.3: (76.92, 8.69, 50.00),
        0.2: (83.33, 9.09, 50.00),
    },
    ("", "control:fedavg"): {
        None: (67.91, 66.93, 93.53),
        0.5: (35.78, 32.94, 83.25),
        0.3: (17.35, 11.23, 70.92),
        0.2: (11.54, 3.98, 63.39),
    },
    ("fedce", "random"): {
        None: (88.24, 88.19, 96.91),
        0.5: (64.92, 56.20, 83.40),
        0.3: (32.32, 20.21, 66.00),
        0.2: (20.04, 10.11, 57.89),
    },
    ("fedce", "rolling"): {
        None: (88.32, 88.31, 97.34),
        0.5: (61.92, 56.30, 80.75),
        0.3: (30.57, 18.93, 62.57),
        0.2: (20.86, 8.41, 59.28),
    },
    ("fedce", "federated"): {
        None: (89.60, 89.51, 97.29),
        0.5: (73.25, 64.26, 90.20),
        0.3: (35.49, 24.18, 70.60),
        0.2: (32.95, 18.77, 69.39),
    },
    ("fedsc", "random"): {
        None: (74.79, 74.40, 94.01),
        0.5: (56.31, 45.50, 82.82),
        0.3: (40.57, 28.43, 73.35),
        0.2: (14.30, 6.93, 60.02),
    },
    ("fedsc", "rolling"): {
        None: (74.87, 74.42, 93.80),
        0.5: (58.52, 48.41, 87.07),
        0.3: (41.82, 29.91, 74.68),
        0.2: (16.47, 7.48, 59.73),
    },
    ("fedsc", "federated"): {
        None: (77.26, 76.88, 94.62),
        0.5: (67.54, 56.45, 91.02),
        0.3: (60.03, 43.67, 88.43),
        0.2: (54.03, 32.73, 81.64),
    },
}
_TABLE_2: dict[tuple[str, str], _Cells] = {
    ("", "control:local-classifier"): {
        0.5: (9.77, 6.55, 50.03),
        0.3: (10.02, 6.34, 50.08),
        0.2: (10.78, 2.77, 49.02),
    },
    ("", "control:fedavg"): {
        0.5: (28.93, 22.43, 83.14),
        0.3: (14.4, 7.62, 70.74),
        0.2: (10.52, 7.04, 53.65),
    },
    ("fedce", "random"): {
        0.5: (66.83, 65.83, 84.07),
        0.3: (31.16, 28.23, 65.44),
        0.2: (19.69, 18.05, 57.38),
    },
    ("fedce", "rolling"): {
        0.5: (62.27, 59.65, 82.14),
        0.3: (25.05, 17.11, 57.82),
        0.2: (16.83, 14.37, 58.66),
    },
    ("fedce", "federated"): {
        0.5: (69.98, 69.35, 85.92),
        0.3: (33.73, 28.12, 66.62),
        0.2: (23.59, 18.02, 58.86),
    },
    ("fedsc", "random"): {
        0.5: (55.68, 45.17, 82.48),
        0.3: (40.36, 40.42, 74.49),
        0.2: (14.56, 6.45, 60.04),
    },
    ("fedsc", "rolling"): {
        0.5: (56.87, 57.06, 85.75),
        0.3: (39.68, 39.5, 73.89),
        0.2: (16.54, 14.63, 60.4),
    },
    ("fedsc", "federated"): {
        0.5: (64.16, 63.06, 90.54),
        0.3: (59.88, 59.69, 87.72),
        0.2: (50.58, 49.54, 80.56),
    },
}


def paper_cell(
    gate: str, *, extractor: str, scheme: str, tau: float | None, test: str
) -> dict[str, float | str] | None:
    """The paper's numbers for one cell as fractions, or None where it has none.

    Table I tests on data distributed as the client's own, Table II on IID data.

    >>> cell = paper_cell("federated", extractor="fedce", scheme="dominant", tau=0.2, test="iid")
    >>> cell["table"], cell["accuracy"]
    ('II', 0.2359)
    >>> cell = {"gate": "federated", "extractor": "fedce", "scheme": "dominant", "tau": 0.2}
    >>> paper_cell(**cell, test="validation") is None
    True
    """
    if scheme not in {"iid", "dominant"} or test not in {"local", "iid"}:
        return None
    if scheme == "iid" and test != "local":
        return None
    table = _TABLE_1 if test == "local" else _TABLE_2
    cells = table.get(("" if gate.startswith("control:") else extractor, gate), {})
    cell = cells.get(None if scheme == "iid" else tau)
    if cell is None:
        return None
    accuracy, macro_f1, auc = (round(value / 100, 6) for value in cell)
    return {
        "table": "I" if test == "local" else "II",
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "auc": auc,
    }


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
    comparable = label_runs([run for run in runs if _is_papers_data(run.config)])
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
        ours["method"] = PAPER_METHODS[row["gate"]]
        for metric in _METRICS:
            ours[metric] = row[metric]
            ours[f"{metric}_std"] = row[f"{metric}_std"]
            ours[f"paper_{metric}"] = cell[metric]
        table.append(ours)
    return sorted(table, key=_position)


def is_papers_setting(config: Config) -> bool:
    """Whether a run's numbers may stand beside the paper's: its system, data, clients and top-1.

    That the images are CIFAR-10's no setting says but the name of the data set, or of its folder.

    Args:
        config: The run's.

    >>> is_papers_setting(Config.parse({"data.dataset": "uoft-cs/cifar10", "gate.top-k": 1}))
    True
    >>> is_papers_setting(Config.parse({"gate.top-k": 1}))
    False
    >>> is_papers_setting(Config.parse({"data.dataset": "cifar10", "run.system": "fedem"}))
    False
    """
    return _is_papers_data(config) and config.data.num_clients == 10 and config.gate.top_k == 1


def _is_papers_data(config: Config) -> bool:
    """Whether the paper's system sees the paper's images."""
    data = config.data
    seen = config.run.system == "networked" and data.kind == "images"
    return seen and _is_cifar10(data.dataset)


def _is_cifar10(dataset: str) -> bool:
    """Whether a hub name or a folder speaks of CIFAR-10, and not of CIFAR-100.

    >>> [_is_cifar10(name) for name in ("uoft-cs/cifar10", "data/CIFAR-10", "cifar100", "digits")]
    [True, True, False, False]
    """
    return re.search(r"cifar[-_]?10(?!\d)", dataset.lower()) is not None


def _position(row: Row) -> tuple[str, str, int, str, bool, float]:
    skew = 0.0 if row["setting"] == "IID" else float(row["setting"].rpartition(" ")[2])
    method = list(PAPER_METHODS.values()).index(row["method"])
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
            f"Fractions. Ours: {seeds} {'seed' if seeds == '1' else 'seeds'}, mean ± standard "
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
        name = method_label(row["extractor"])
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
