"""The content of results.json: rows of metrics, and what a run found out beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nmoe_flower.pipeline.ask import Holding, train_counts
from nmoe_flower.pipeline.run import Run
from nmoe_flower.privacy import Accountant, mean_noise_std, noise_edge, sensitivity
from nmoe_flower.records import WatchKey
from nmoe_flower.representation import effective_rank, find_collapse

__all__ = ["all_found", "privacy", "representation", "row"]

_PROBES = (
    WatchKey.PROBE_ACCURACY,
    WatchKey.KNN_ACCURACY,
    WatchKey.ALIGNMENT,
    WatchKey.UNIFORMITY,
)


def row(
    run: Run,
    *,
    extractor: str,
    gate: str,
    test: str,
    top_k: int,
    per_client: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """One row: what was tested, means over the clients, the worst, and every client's own values.

    Args:
        run: Finished, but for its results.
        extractor: How the extractor was made.
        gate: Who routed, or which control answered.
        test: Which test, one of ``config.data.tests``.
        top_k: Experts asked per sample.
        per_client: A value of each client by name of the metric; NaN counts in no mean.
    """
    config = run.config
    worst = {}
    if not np.isnan(accuracies := np.asarray(per_client.get("accuracy", ()), np.float64)).all():
        worst["worst_client"] = float(np.nanmin(accuracies))
    return {
        "extractor": extractor,
        "gate": gate,
        "scheme": config.data.scheme,
        "tau": config.data.tau,
        "test": test,
        "seed": config.run.seed,
        "clients": config.data.num_clients,
        "top_k": top_k,
        **{name: float(np.nanmean(values)) for name, values in per_client.items()},
        **worst,
        "per_client": per_client,
    }


def all_found(
    run: Run,
    held: Mapping[int, Holding],
    *,
    rows: Sequence[Mapping[str, Any]],
    routing: Mapping[str, Sequence[Sequence[float]]],
    **more: Any,
) -> dict[str, Any]:
    """All that ``results.json`` holds, and the data's fingerprint.

    Args:
        run: Finished, but for its results.
        held: What every client holds.
        rows: Rows as `row` makes them.
        routing: By ``gate/test``, shares that go from each client to each expert, [clients, E].
        more: What this system alone tells.
    """
    counts = train_counts(held)
    partition = {
        "train": counts.tolist(),
        "test": [holding.test for holding in held.values()],
        "classes": next(iter(held.values())).classes,
    }
    validation = [holding.validation for holding in held.values()]
    if all(validation):
        partition["validation"] = validation
    beside = {
        "privacy": privacy(run),
        "representation": representation(run, sizes=counts.sum(axis=1).tolist()),
    }
    return {
        "rows": rows,
        "routing": routing,
        **more,
        **{name: value for name, value in beside.items() if value is not None},
        "stages": run.costs,
        "partition": partition,
        "fingerprint": ",".join(sorted({holding.fingerprint for holding in held.values()})),
        "precision": ",".join(sorted({holding.precision for holding in held.values()})),
        "seconds": sum(cost["seconds"] for cost in run.costs.values()),
    }


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
        "budget": settings.epsilon if settings.enabled or settings.tokens else None,
        "releases": accountant.most_releases,
        "unit": "window" if run.config.run.system == "language" else "sample",
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
    eigenvalues = run.artifacts.spectrum
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
    if run.artifacts.accountant is None:
        return None
    accountant = Accountant()
    accountant.load_state(run.artifacts.accountant)
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
