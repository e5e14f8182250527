"""Tabulate finished FedSC runs by what was private: epsilon, noise, features, accuracy.

    python -m experiments.publish privacy runs/plain runs/own runs/epsilon-8 runs/epsilon-2

Writes results/fedsc-privacy/runs.json and table.txt, which the command `pages` puts into
docs/how-to/privacy-budget.md. The rows stand in the order given.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.publish.fedsc import first_stage
from experiments.publish.published import RESULTS, read
from nmoe_flower.config import Config
from nmoe_flower.files import write_json, write_text
from nmoe_flower.privacy import noise_multiplier_for

TARGET = RESULTS / "fedsc-privacy"
CELLS = (("federated", "iid"), ("federated+prior", "local"))
HEADER = (
    "run", "shared", "epsilon", "delta", "releases", "d", "noise multiplier", "noise edge",
    "effective rank", "linear probe", "FedGate, IID test", "FedGate + prior, local test",
    "collapse", "minutes", "revision",
)  # fmt: skip


def describe(folder: Path) -> dict[str, Any]:
    """The row of one run."""
    config = Config.load(folder / "config.toml")
    results, stage1 = read(folder), first_stage(folder)
    source = read(folder, "provenance.json")
    private, found = stage1.get("privacy") or {}, stage1.get("representation") or {}
    settings = config.privacy
    noise = None
    if settings.enabled:
        noise = noise_multiplier_for(settings.epsilon, settings.delta, settings.releases)
    accuracy = {(row["gate"], row["test"]): row["accuracy"] for row in results["rows"]}
    return {
        "run": config.run.name,
        "seed": config.run.seed,
        "shared": config.contrast.share != "own",
        "epsilon": private.get("epsilon"),
        "delta": private.get("delta"),
        "releases": private.get("releases"),
        "dim": config.contrast.dim,
        "noise_multiplier": noise,
        "noise_edge": found.get("noise_edge"),
        "effective_rank": found.get("effective_rank"),
        "probe_accuracy": found.get("probe_accuracy"),
        "accuracy": {f"{gate}/{test}": accuracy.get((gate, test)) for gate, test in CELLS},
        "collapse": found.get("collapse"),
        "minutes": (results["seconds"] + (stage1["seconds"] if config.extractor.start else 0)) / 60,
        "revision": source["git"]["revision"][:7],
    }


def cells(row: dict[str, Any]) -> list[str]:
    """One row as text; "-" where there is nothing."""
    numbers = {
        "epsilon": ".3g", "delta": "g", "releases": "d", "dim": "d", "noise_multiplier": ".2f",
        "noise_edge": ".4f", "effective_rank": ".1f", "probe_accuracy": ".3f",
    }  # fmt: skip
    texts = ["-" if row[key] is None else f"{row[key]:{form}}" for key, form in numbers.items()]
    shares = ["-" if value is None else f"{value:.3f}" for value in row["accuracy"].values()]
    first = [f"{row['run']} (seed {row['seed']})", "yes" if row["shared"] else "no"]
    return [*first, *texts, *shares, row["collapse"] or "no", f"{row['minutes']:.0f}",
            row["revision"]]  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Write both files."""
    folders = [Path(name) for name in argv]
    if not folders:
        print(__doc__)
        return 2
    rows = [describe(folder) for folder in folders]
    write_json(TARGET / "runs.json", rows)
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    write_text(TARGET / "table.txt", "\n".join(lines) + "\n")
    return 0
