"""What a training has cost in privacy, and what that covers, in words."""

from collections.abc import Mapping
from typing import Protocol

from nmoe_flower.privacy.mechanism import Adjacency
from nmoe_flower.privacy.steps import WeightsCost

__all__ = ["Account", "state_in_words"]

_ADJACENCY: dict[Adjacency, str] = {
    "replace-one": "replace one sample, the number of samples is public",
    "add-remove": "add or remove one sample, divisors are public constants",
}


class Account(Protocol):
    """What a statement reads of an accountant."""

    @property
    def weights(self) -> Mapping[int, WeightsCost]:
        """What private weights have cost each client."""

    @property
    def exposed(self) -> tuple[str, ...]:
        """What else left the clients without noise, in words."""

    @property
    def most_releases(self) -> int:
        """Matrices released by the client that released most."""

    def worst(self, *, delta: float) -> float:
        """Epsilon of the matrices of the client that spent most."""

    def together(self, *, delta: float, adjacency: Adjacency) -> tuple[float, float]:
        """Epsilon and delta of matrices and weights of the client that spent most on both."""


def state_in_words(accountant: Account, *, delta: float, adjacency: Adjacency) -> str:
    """Costs, unit, adjacency, what is covered and what is not."""
    parts = []
    released = accountant.most_releases
    if released or not accountant.weights:
        parts.append(
            f"Correlation matrices: epsilon {accountant.worst(delta=delta):.4g} at delta {delta:g} "
            f"for the client that spent most (releases per client: at most {released})."
        )
    if accountant.weights:
        parts.append(_weights(accountant, delta))
    parts.append(
        f"Unit: one sample with all its views, not one user. Adjacency: {_ADJACENCY[adjacency]}."
    )
    if accountant.weights:
        parts.append(_together(accountant, delta, adjacency))
    else:
        parts.append(
            "Covered: each released matrix, given the weights it was computed at. Not covered: the "
            "weights, which leave without noise. The run as a whole is therefore not "
            "differentially private. Sample counts and metrics are not covered either."
        )
    return " ".join(parts)


def _weights(accountant: Account, delta: float) -> str:
    costs = accountant.weights.values()
    return (
        f"Weights: DP-SGD with epsilon {max(cost.epsilon for cost in costs):.4g} at delta "
        f"{delta:g} for one sample added or removed, Poisson sampling; for one sample replaced "
        f"{max(cost.replaced for cost in costs):.4g} at delta {delta:g} (steps per client: at most "
        f"{max(cost.steps for cost in costs)})."
    )


def _together(accountant: Account, delta: float, adjacency: Adjacency) -> str:
    epsilon, total_delta = accountant.together(delta=delta, adjacency=adjacency)
    if accountant.most_releases:
        how = "Both together, by basic composition"
        if adjacency == "replace-one":
            how += " (to replace is to remove and to add: the weights are charged for both)"
    else:
        how = "In this adjacency"
    cost = f"{how}: epsilon {epsilon:.4g} at delta {total_delta:g}."
    if accountant.exposed:
        leaks = ", ".join(accountant.exposed)
        covered = (
            f"Covered: the weights, given what else left. Not covered, as they leave without "
            f"noise: {leaks}. The training is therefore not private end to end."
        )
    else:
        covered = (
            "Covered: all that leaves a client while this model is trained, end to end, but its "
            "number of samples, which is taken as public."
        )
    return (
        f"{cost} {covered} Not covered: what is sent after this training (heads, experts, gates, "
        "prototypes, class counts, test results)."
    )
