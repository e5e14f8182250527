"""Between stages 1 and 2: a head on the frozen extractor, from sums or by rounds."""

from collections.abc import Mapping

import numpy as np

from nmoe_flower import records
from nmoe_flower.pipeline.ask import gather, message
from nmoe_flower.pipeline.networked.sums import solve_head, standardise_latents
from nmoe_flower.pipeline.rounds import federate
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import STANDARD_PART, Action
from nmoe_flower.schedules import schedule
from nmoe_flower.strategies import AdamW, SteppedFedAvg

__all__ = ["first_head", "train_head"]

LOCAL_RATE = 1.0  # of the clients' one step; the server divides by it and lets AdamW step


def train_head(run: Run) -> None:
    """Complete the classifier with a head: of sums, or by FedAvg, one step per round.

    One step per client and round makes the mean change the gradient of everybody's batch, so skew
    costs nothing. Experts that start there (``expert.init``) know all classes; experts that start
    from scratch know those of their client.
    """
    settings = run.config.head
    if settings.method == "sums":
        solve_head(run)
        return
    if not settings.rounds:
        return
    if settings.standardises and f"{STANDARD_PART}mean" not in run.artifacts.classifier:
        standardise_latents(run)
        run.save("head/standard")
    gather(run, "latents", Action.LATENTS, message(run.artifacts.classifier))
    strategy = SteppedFedAvg(
        action=Action.HEAD,
        min_available_nodes=run.config.data.num_clients,
        server_optimizer=AdamW(weight_decay=settings.weight_decay),
        learning_rate=schedule("cosine", peak=settings.learning_rate, steps=settings.rounds),
        local_learning_rate=LOCAL_RATE,
    )
    initial = records.from_numpy(first_head(run))
    head = records.to_numpy(federate(run, "head", strategy, initial, rounds=settings.rounds))
    run.artifacts.classifier |= {f"head.{name}": value for name, value in head.items()}


def first_head(run: Run) -> Mapping[str, np.ndarray]:
    """Where the rounds of a head begin, as ``head.start`` says."""
    start, fresh = run.config.head.start, run.artifacts.initial_head
    if start == "ridge":
        return run.artifacts.ridge
    if start == "zero":
        return {name: np.zeros_like(array) for name, array in fresh.items()}
    return fresh
