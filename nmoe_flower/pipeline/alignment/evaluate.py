"""After training: place the most suitable experts on every client, test the parts and the whole.

Chen et al. 2025, arXiv:2507.05685, section I: "After federated training, the most suitable experts
are assigned to each client during inference", within its capacity.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from flwr.app import RecordDict

from nmoe_flower import records
from nmoe_flower.alignment import Assigner
from nmoe_flower.pipeline.alignment.train import restored
from nmoe_flower.pipeline.artifacts import message
from nmoe_flower.pipeline.findings import privacy, representation
from nmoe_flower.pipeline.gather import gather
from nmoe_flower.pipeline.holdings import holdings, train_counts
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import SERVER_ROUND, TESTS, Action, FeedbackKey, MixtureKey, Score
from nmoe_flower.strategies import ExpertNames

__all__ = ["evaluate_aligned"]

SCORES = (Score.ACCURACY, Score.BALANCED_ACCURACY, Score.MACRO_F1)


def evaluate_aligned(run: Run) -> dict[str, Any]:
    """Place experts, test the placed parts and the whole: the content of ``results.json``."""
    held = holdings(run)
    counts = train_counts(held)
    assigner = restored(run, counts)
    mixture, placed = run.part("mixture/"), assigner.place()
    told = {MixtureKey.FINAL: True, SERVER_ROUND: run.config.alignment.rounds}
    whole = gather(
        run, "whole", Action.ALIGNED_TEST, message(records.from_numpy(mixture), told), check=_scores
    )
    names, everyone = ExpertNames.found_in(mixture), sorted(run.partitions.values())
    questions = {
        row: message(
            records.from_numpy(names.subset(mixture, np.flatnonzero(placed[row]))),
            {**told, FeedbackKey.EXPERTS: np.flatnonzero(placed[row]).tolist()},
        )
        for row in everyone
        if placed[row].any()
    }
    parts = gather(
        run, "placed", Action.ALIGNED_TEST, questions, only=list(questions), check=_scores
    )
    rows, routing = _rows(run, {"mixture": whole, "placed": parts})
    sizes = counts.sum(axis=1).tolist()
    found = {"privacy": privacy(run), "representation": representation(run, sizes=sizes)}
    return {
        "rows": rows,
        "routing": routing,
        "alignment": _summary(run, assigner, placed),
        **{name: value for name, value in found.items() if value is not None},
        "stages": run.costs,
        "partition": {
            "train": counts.tolist(),
            "test": [holding.test for holding in held.values()],
            "classes": held[0].classes,
        },
        "fingerprint": held[0].fingerprint,
        "seconds": sum(cost["seconds"] for cost in run.costs.values()),
    }


def _scores(content: RecordDict) -> None:
    """Read what `_rows` will."""
    metrics = records.metrics_of(content)
    for test in TESTS:
        for name in SCORES:
            float(cast(float, metrics[f"{name}-{test}"]))
        list(cast(list[float], metrics[f"{Score.ROUTING}-{test}"]))


def _rows(
    run: Run, tested: Mapping[str, Mapping[int, RecordDict]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    config, rows, routing = run.config, [], {}
    for gate, answers in tested.items():
        values = [records.metrics_of(content) for content in answers.values()]
        for test in TESTS:
            per_client = {
                name.replace("-", "_"): [float(one[f"{name}-{test}"]) for one in values]
                for name in SCORES
            }
            row: dict[str, Any] = {
                "extractor": config.alignment.extractor,
                "gate": gate,
                "scheme": config.data.scheme,
                "tau": config.data.tau,
                "test": test,
                "seed": config.run.seed,
                "clients": config.data.num_clients,
                "top_k": config.alignment.top_k,
            }
            row |= {name: float(np.mean(of)) for name, of in per_client.items()}
            rows.append({**row, "per_client": per_client})
            if len(values) == config.data.num_clients:
                routing[f"{gate}/{test}"] = [list(one[f"{Score.ROUTING}-{test}"]) for one in values]
    return rows, routing


def _summary(run: Run, assigner: Assigner, placed: np.ndarray) -> dict[str, Any]:
    traffic = run.arrays["aligned/traffic"]
    return {
        "policy": assigner.policy,
        "rounds": run.config.alignment.rounds,
        "loads": assigner.usage.total.tolist(),
        "load_variation": assigner.load_variation,
        "assignments": assigner.times.tolist(),
        "fitness": assigner.fitness.values.tolist(),
        "placed": placed.astype(int).tolist(),
        "bytes_down": traffic[:, 0].tolist(),
        "bytes_up": traffic[:, 1].tolist(),
        "simulated_seconds": float(run.arrays["aligned/elapsed"]),
    }
