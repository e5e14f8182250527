"""The FedSC tables of docs/results.md, from the files in docs/results/ (scripts/write-results)."""

import json
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from nmoe_flower.config import Config

RESULTS = Path(__file__).parent.parent / "docs" / "results"
ACCURACY = {
    "FedGate, IID": ("federated", "iid"),
    "FedGate + prior, local": ("federated+prior", "local"),
    "averaged head, IID": ("control:fedavg", "iid"),
}
RANK = "effective rank"
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
    "wide": "cifar10-fedsc",
    "wide, head of 600 rounds": "cifar10-fedsc-head-600",
    "wide, IID setting": "cifar10-fedsc-iid",
    "FedCE, as many pixels as quick": "cifar10-fedce-equal",
}
SEEDS = ("", "-1", "-2")
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


def read(folder: Path) -> dict[str, Any]:
    """A run's results."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def first_stage(folder: Path) -> dict[str, Any]:
    """Results of the run that trained this run's extractor: its own, or those of a folder beside
    it where it was given one (``extractor.start``); empty if that is not there."""
    start = Config.load(folder / "config.toml").extractor.start
    trained = folder.parent / Path(start).name if start else folder
    return read(trained) if (trained / "results.json").is_file() else {}


def figures(name: str) -> dict[str, float | None]:
    """Accuracies and probes of one run; None where it has none."""
    accuracy = {(row["gate"], row["test"]): row["accuracy"] for row in read(RESULTS / name)["rows"]}
    found = first_stage(RESULTS / name).get("representation") or {}
    features = {label: found.get(key) for label, key in FEATURES.items()}
    features[RANK] = found.get("effective_rank")
    return features | {label: accuracy.get(cell) for label, cell in ACCURACY.items()}


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    rules = ["---"] * len(header)
    return [f"| {' | '.join(cells)} |" for cells in (header, rules, *rows)]


def settings(name: str) -> Config:
    return Config.load(RESULTS / name / "config.toml")


def runs_table() -> list[str]:
    """Every run, once."""
    header = ["", "seed", "rounds", *FEATURES, *ACCURACY]
    rows = []
    for label, name in RUNS.items():
        config = settings(name)
        start = config.extractor.start
        rounds = settings(Path(start).name) if start else config
        cells = [label, str(config.run.seed), f"{rounds.extractor.rounds:,}"]
        found = figures(name)
        values = [found[key] for key in (*FEATURES, *ACCURACY)]
        cells += ["" if value is None else f"{value:.3f}" for value in values]
        rows.append(cells)
    return markdown(header, rows)


def sharing_table(alone: str, sharing: str) -> list[str]:
    """What sharing changes, one pair of runs per seed; after the mean its standard error."""
    pairs = [(f"{alone}{seed}", f"{sharing}{seed}") for seed in SEEDS]
    seeds = [f"seed {_seed(*pair)}" for pair in pairs]
    values = [[figures(name) for name in pair] for pair in pairs]
    header = ["", "alone, mean", "sharing, mean", *seeds, "mean difference"]
    rows = []
    for label in (*ACCURACY, *FEATURES):
        columns = [[run[label] for run in pair] for pair in values]
        means = [statistics.mean(column) for column in zip(*columns, strict=True)]
        differences = [after - before for before, after in columns]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        cells = [label, *(f"{mean:.4f}" for mean in means)]
        cells += [f"{value:+.4f}" for value in differences]
        cells.append(f"{statistics.mean(differences):+.4f} ± {error:.4f}")
        rows.append(cells)
    return markdown(header, rows)


def features_table(runs: dict[str, str]) -> list[str]:
    """Stage 1 alone: what the probes say at its end."""
    header = ["", "seed", "rounds", *FEATURES, RANK]
    rows = []
    for label, name in runs.items():
        config, found = settings(name), figures(name)
        cells = [label, str(config.run.seed), f"{config.extractor.rounds:,}"]
        cells += [*(f"{found[key]:.3f}" for key in FEATURES), f"{found[RANK]:.0f}"]
        rows.append(cells)
    return markdown(header, rows)


def _seed(alone: str, shared: str) -> int:
    """The seed of a pair of runs that differ in [contrast] alone: what the first does not share."""
    pair = [settings(name).model_dump(exclude={"run"}) for name in (alone, shared)]
    contrasts = [values.pop("contrast") for values in pair]
    assert contrasts[0]["share"] == "own" != contrasts[1]["share"], (alone, shared)
    assert pair[0] == pair[1], (alone, shared)
    seeds = {settings(name).run.seed for name in (alone, shared)}
    assert len(seeds) == 1, (alone, shared)
    return seeds.pop()


TABLES = {
    "fedsc-runs": runs_table,
    "fedsc-sharing": partial(sharing_table, "cifar10-fedsc-own", "cifar10-fedsc-quick"),
    "fedsc-sharing-wide": partial(
        sharing_table, "cifar10-fedsc-wide-own", "cifar10-fedsc-wide-shared"
    ),
    "fedsc-small-batches": partial(features_table, SMALL_BATCHES),
    "fedsc-exchange": partial(features_table, EXCHANGES),
    "fedsc-norms": partial(features_table, NORMS),
}
