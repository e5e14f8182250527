"""What a run found out beside its rows: how good the features are, and what privacy was spent."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nmoe_flower.codec import json_of_array
from nmoe_flower.pipeline.run import Run
from nmoe_flower.privacy import Accountant, mean_noise_std, noise_edge, sensitivity
from nmoe_flower.records import WatchKey
from nmoe_flower.representation import effective_rank, find_collapse

__all__ = ["privacy", "representation"]

_PROBES = (
    WatchKey.PROBE_ACCURACY,
    WatchKey.KNN_ACCURACY,
    WatchKey.ALIGNMENT,
    WatchKey.UNIFORMITY,
)


def privacy(run: Run) -> dict[str, Any] | None:
    """What stage 1 has cost the client that spent most, in numbers and in words.

    ``epsilon`` is that of the matrices; ``weights`` and ``together`` are there if the weights were
    trained with DP-SGD. None if nothing of this run is private.
    """
    accountant = _accountant(run)
    if accountant is None:
        return None
    settings = run.config.privacy
    delta, adjacency = settings.delta, settings.adjacency
    found: dict[str, Any] = {
        "epsilon": accountant.worst(delta=delta),
        "delta": delta,
        "budget": settings.epsilon if settings.enabled else None,
        "releases": accountant.most_releases,
        "unit": "sample",
        "adjacency": adjacency,
    }
    if costs := accountant.weights.values():
        epsilon, total = accountant.together(delta=delta, adjacency=adjacency)
        found["weights"] = {
            "epsilon": max(cost.epsilon for cost in costs),
            "epsilon_replaced": max(cost.replaced for cost in costs),
            "steps": max(cost.steps for cost in costs),
            "budget": settings.weights_epsilon,
        }
        found["together"] = {"epsilon": epsilon, "delta": total}
    return {**found, "statement": accountant.statement(delta=delta, adjacency=adjacency)}


def representation(run: Run, *, sizes: Sequence[int]) -> dict[str, Any] | None:
    """How good FedSC's features are at the end: by the mean R, and by the last probes.

    None if the run has no mean R. ``collapse`` is null where there is none. In a private run
    eigenvalues below ``noise_edge`` are hidden, and so few large ones prove no collapse.

    Args:
        run: After stage 1.
        sizes: Samples of each client.
    """
    eigenvalues = run.arrays.get("findings/spectrum")
    if eigenvalues is None:
        return None
    edge = _edge(run, len(eigenvalues), sizes)
    watched = run.latest.get("extractor-test", {})
    return {
        "effective_rank": effective_rank(eigenvalues),
        "dimensions": len(eigenvalues),
        "noise_edge": edge,
        "collapse": find_collapse(eigenvalues, hidden=edge),
        **{name.replace("-", "_"): watched[name] for name in _PROBES if name in watched},
    }


def _accountant(run: Run) -> Accountant | None:
    state = run.arrays.get("findings/accountant")
    if state is None:
        return None
    accountant = Accountant()
    accountant.load_state(json_of_array(state))
    return accountant


def _edge(run: Run, dim: int, sizes: Sequence[int]) -> float:
    """Largest eigenvalue of the noise in the mean R; 0 if there is none."""
    accountant = _accountant(run)
    if accountant is None:
        return 0.0
    most = [max((m for m, _ in accountant.history(c)), default=0.0) for c in range(len(sizes))]
    adjacency = run.config.privacy.adjacency
    stds = [
        noise * sensitivity(1.0, size, adjacency=adjacency)
        for noise, size in zip(most, sizes, strict=True)
    ]
    return noise_edge(mean_noise_std(stds, np.asarray(sizes) / sum(sizes)), dim)
