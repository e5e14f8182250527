"""The FedSC tables of docs/results.md, from the files in results/."""

import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.publish.published import markdown, place, read
from nmoe_flower.config import Config

Rows = dict[str, Callable[[str], float | None]]
ACCURACY = {
    "FedGate, IID": ("federated", "iid"),
    "FedGate + prior, local": ("federated+prior", "local"),
    "averaged head, IID": ("control:fedavg", "iid"),
}
FEATURES = {"linear probe": "probe_accuracy", "k-NN": "knn_accuracy"}
RUNS = {
    "quick": "cifar10-fedsc-quick",
    "quick, no sharing (`share = own`)": "cifar10-fedsc-own",
    "quick, epsilon 8": "cifar10-fedsc-epsilon-8",
    "quick, epsilon 2": "cifar10-fedsc-epsilon-2",
    "quick, matrices of the batches, every round": "cifar10-fedsc-batches",
    "weight 12, matrices of the batches": "cifar10-fedsc-head",
    "the same, no head: experts from scratch": "cifar10-fedsc-scratch",
    "the same with a head, 1,500 rounds": "cifar10-fedsc-long",
    "quick, no head: experts from scratch": "cifar10-fedsc-paper-shared",
    "quick, no head, no sharing": "cifar10-fedsc-paper-own",
    "wide": "cifar10-fedsc",
    "wide, head of 600 rounds": "cifar10-fedsc-head-600",
    "wide, 900 rounds, matrices of the batches": "cifar10-fedsc-wide-shared",
    "wide, 900 rounds, no sharing": "cifar10-fedsc-wide-own",
    "wide, IID setting": "cifar10-fedsc-iid",
    "FedCE, as many pixels as quick": "cifar10-fedce-equal",
}
PAPER_GATES = {
    "FedGate, IID": ("federated", "iid"),
    "FedGate + prior, local": ("federated+prior", "local"),
    "RollGate, IID": ("rolling", "iid"),
    "RanGate, IID": ("random", "iid"),
    "prototype gate, IID": ("prototype", "iid"),
    "own expert, IID": ("local", "iid"),
    "own expert, local": ("local", "local"),
}
SMALL_BATCHES = {
    "4 images, alone": "cifar10-fedsc-batch-4",
    "4 images, sharing": "cifar10-fedsc-batch-4-shared",
    "8 images, alone": "cifar10-fedsc-batch-8",
    "8 images, sharing": "cifar10-fedsc-batch-8-shared",
}
EXCHANGES = {
    "no sharing": "cifar10-fedsc-exchange-own",
    "merged, `share = samples`": "cifar10-fedsc-exchange-merged-samples",
    "two-phase, `share = samples`": "cifar10-fedsc-exchange-two-phase-samples",
    "merged, `share = schedule`": "cifar10-fedsc-exchange-merged-schedule",
    "two-phase, `share = schedule`": "cifar10-fedsc-exchange-two-phase-schedule",
}
NORMS = {
    "BatchNorm, no sharing": "cifar10-fedsc-exchange-own",
    "BatchNorm, sharing": "cifar10-fedsc-exchange-merged-samples",
    "BatchNorm, sharing, IID setting": "cifar10-fedsc-batch-iid",
    "LayerNorm, no sharing": "cifar10-fedsc-layer-own",
    "LayerNorm, sharing": "cifar10-fedsc-layer-shared",
    "LayerNorm, sharing, IID setting": "cifar10-fedsc-layer-iid",
}


def first_stage(folder: Path) -> dict[str, Any]:
    """Results of the run that trained this run's extractor: its own, or those of the published
    run it was given one of (``extractor.start``); empty if that has none."""
    start = Config.load(folder / "config.toml").extractor.start
    trained = place(Path(start).name) if start else folder
    return read(trained) if (trained / "results.json").is_file() else {}


def settings(name: str) -> Config:
    return Config.load(place(name) / "config.toml")


def trained(name: str) -> Config:
    """Settings of the run that trained this run's extractor."""
    config = settings(name)
    return settings(Path(config.extractor.start).name) if config.extractor.start else config


def accuracy(name: str, *, of: tuple[str, str]) -> float | None:
    """Accuracy of a gate in a test."""
    rows = {(row["gate"], row["test"]): row["accuracy"] for row in read(place(name))["rows"]}
    return rows.get(of)


def feature(name: str, *, of: str) -> float | None:
    """What is known of the features of a run's extractor."""
    found: dict[str, float] = first_stage(place(name)).get("representation") or {}
    return found.get(of)


GATES: Rows = {label: partial(accuracy, of=cell) for label, cell in ACCURACY.items()}
PAPER: Rows = {label: partial(accuracy, of=cell) for label, cell in PAPER_GATES.items()}
PROBES: Rows = {label: partial(feature, of=key) for label, key in FEATURES.items()}


def runs_table() -> list[str]:
    """Every run, once."""
    columns = PROBES | GATES
    header = ["", "seed", "rounds", *columns]
    rows = []
    for label, name in RUNS.items():
        config = trained(name)
        cells = [label, str(config.run.seed), f"{config.extractor.rounds:,}"]
        values = [value(name) for value in columns.values()]
        cells += ["" if value is None else f"{value:.3f}" for value in values]
        rows.append(cells)
    return markdown(header, rows)


def sharing_table(alone: str, sharing: str, seeds: int, rows: Rows) -> list[str]:
    """What sharing changes, one pair of runs per seed; after the mean its standard error."""
    pairs = [(alone + suffix, sharing + suffix) for suffix in ("", "-1", "-2", "-3")[:seeds]]
    header = ["", "alone, mean", "sharing, mean"]
    header += [f"seed {_seed(*pair)}" for pair in pairs] + ["mean difference"]
    lines = []
    for label, value in rows.items():
        columns = [[_known(value(name), name) for name in pair] for pair in pairs]
        means = [statistics.mean(column) for column in zip(*columns, strict=True)]
        differences = [after - before for before, after in columns]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        cells = [label, *(f"{mean:.4f}" for mean in means)]
        cells += [f"{difference:+.4f}" for difference in differences]
        cells.append(f"{statistics.mean(differences):+.4f} ± {error:.4f}")
        lines.append(cells)
    return markdown(header, lines)


def features_table(runs: dict[str, str]) -> list[str]:
    """Stage 1 alone: what the probes say at its end."""
    header = ["", "seed", "rounds", *FEATURES, "effective rank"]
    rows = []
    for label, name in runs.items():
        config = settings(name)
        cells = [label, str(config.run.seed), f"{config.extractor.rounds:,}"]
        cells += [f"{value(name):.3f}" for value in PROBES.values()]
        cells.append(f"{feature(name, of='effective_rank'):.0f}")
        rows.append(cells)
    return markdown(header, rows)


def _known(value: float | None, name: str) -> float:
    assert value is not None, name
    return value


def _seed(alone: str, shared: str) -> int:
    """The seed of two runs that differ in nothing but what stage 1 shares: the first nothing."""
    pair = [settings(name) for name in (alone, shared)]
    stages = [trained(name) for name in (alone, shared)]
    assert stages[0].contrast.share == "own" != stages[1].contrast.share, (alone, shared)
    beside: Any = {"run": True, "contrast": True, "extractor": {"start"}, "gate": {"methods"}}
    for first, second in (pair, stages):
        one, two = (config.model_dump(exclude=beside) for config in (first, second))
        assert one == two, (alone, shared)
    seeds = {config.run.seed for config in (*pair, *stages)}
    assert len(seeds) == 1, (alone, shared)
    return seeds.pop()


TABLES: dict[str, Callable[[], list[str]]] = {
    "fedsc-runs": runs_table,
    "fedsc-sharing": partial(
        sharing_table, "cifar10-fedsc-own", "cifar10-fedsc-quick", 4, GATES | PROBES
    ),
    "fedsc-sharing-paper": partial(
        sharing_table, "cifar10-fedsc-paper-own", "cifar10-fedsc-paper-shared", 4, PAPER
    ),
    "fedsc-sharing-wide": partial(
        sharing_table, "cifar10-fedsc-wide-own", "cifar10-fedsc-wide-shared", 2, GATES | PROBES
    ),
    "fedsc-sharing-wide-paper": partial(
        sharing_table, "cifar10-fedsc-wide-paper-own", "cifar10-fedsc-wide-paper-shared", 2, PAPER
    ),
    "fedsc-small-batches": partial(features_table, SMALL_BATCHES),
    "fedsc-exchange": partial(features_table, EXCHANGES),
    "fedsc-norms": partial(features_table, NORMS),
}
