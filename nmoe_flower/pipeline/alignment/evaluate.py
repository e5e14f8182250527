"""After training: place the most suitable experts on every client, test the parts and the whole.

Chen et al. 2025, arXiv:2507.05685, section I: "After federated training, the most suitable experts
are assigned to each client during inference", within its capacity.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import numpy as np
from flwr.app import RecordDict

from nmoe_flower import records
from nmoe_flower.alignment import Assigner
from nmoe_flower.pipeline.alignment.train import trained_assigner
from nmoe_flower.pipeline.ask import gather, holdings, message, train_counts
from nmoe_flower.pipeline.rows import all_found, row
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import SERVER_ROUND, Action, AlignmentKey, FeedbackKey, Score
from nmoe_flower.strategies import ExpertNames

__all__ = ["evaluate_alignment"]

SCORES = (Score.ACCURACY, Score.BALANCED_ACCURACY, Score.MACRO_F1)


def evaluate_alignment(run: Run) -> dict[str, Any]:
    """Place experts, test the placed parts and the whole: the content of ``results.json``."""
    held = holdings(run)
    counts = train_counts(held)
    assigner = trained_assigner(run, counts)
    mixture, placed = run.artifacts.mixture, assigner.place()
    told = {AlignmentKey.FINAL: True, SERVER_ROUND: run.config.alignment.rounds}
    check = partial(_scores, run)
    whole = gather(run, "whole", Action.ALIGNMENT_TEST, message(mixture, told), check=check)
    names, everyone = ExpertNames.found_in(mixture), sorted(run.partitions.values())
    questions = {
        client: message(
            names.subset(mixture, np.flatnonzero(placed[client])),
            {**told, FeedbackKey.EXPERTS: np.flatnonzero(placed[client]).tolist()},
        )
        for client in everyone
        if placed[client].any()
    }
    parts = gather(
        run, "placed", Action.ALIGNMENT_TEST, questions, only=list(questions), check=check
    )
    rows, routing = _rows(run, {"mixture": whole, "placed": parts})
    summary = _summary(run, assigner, placed)
    return all_found(run, held, rows=rows, routing=routing, alignment=summary)


def _scores(run: Run, content: RecordDict) -> None:
    """Read what `_rows` will."""
    metrics = records.metrics_of(content)
    for test in run.config.data.tests:
        for name in SCORES:
            float(cast(float, metrics[f"{name}-{test}"]))
        list(cast(list[float], metrics[f"{Score.ROUTING}-{test}"]))


def _rows(
    run: Run, tested: Mapping[str, Mapping[int, RecordDict]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    settings, rows, routing = run.config.alignment, [], {}
    for gate, answers in tested.items():
        values = [records.metrics_of(content) for content in answers.values()]
        for test in run.config.data.tests:
            per_client = {
                name.replace("-", "_"): [float(one[f"{name}-{test}"]) for one in values]
                for name in SCORES
            }
            rows.append(
                row(
                    run,
                    extractor=settings.extractor,
                    gate=gate,
                    test=test,
                    top_k=settings.top_k,
                    per_client=per_client,
                )
            )
            if len(values) == run.config.data.num_clients:
                routing[f"{gate}/{test}"] = [list(one[f"{Score.ROUTING}-{test}"]) for one in values]
    return rows, routing


def _summary(run: Run, assigner: Assigner, placed: np.ndarray) -> dict[str, Any]:
    traffic = run.artifacts.alignment["traffic"]
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
        "simulated_seconds": float(run.artifacts.alignment["elapsed"]),
    }
