"""What releases cost together, in numbers and words, and an accountant that refuses the next one.

Costs are those of ``GaussianMechanism``: unit sample, its adjacency, no amplification. Against the
server that is exact: it knows who took part, so client i pays for each of its own releases and
nothing for the others'. Clients hold different samples, so their costs are not added up.
"""

import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np

from nmoe_flower.errors import BudgetError, ConfigError
from nmoe_flower.installation import install_hint
from nmoe_flower.privacy.dp_sgd import WeightsCost
from nmoe_flower.privacy.gdp import check_delta, check_epsilon, epsilon_of, mu_of
from nmoe_flower.privacy.mechanism import Adjacency, check_noise

__all__ = [
    "Accountant",
    "Budget",
    "Released",
    "epsilon_spent",
    "noise_multiplier_for",
    "refresh_interval",
]

Method = Literal["exact", "rdp", "prv"]
Released = Literal["matrices", "sums", "histograms", "states", "histograms and states"]
Spending = Iterable[tuple[float, int]]

_RELEASED: dict[Released, str] = {
    "matrices": "Correlation matrices",
    "sums": "Sums",
    "histograms": "Histograms of tokens",
    "states": "Sums of hidden states",
    "histograms and states": "Histograms of tokens and sums of hidden states, together",
}
_SAMPLE = "one sample with all its views, not one user"
_WINDOW = "one window of text, not one document or user"
_OF_TEXT: dict[Released, str] = {
    "histograms": "how often the text has each token",
    "states": "mean and second moments of the hidden states of the windows' prefixes, jointly",
    "histograms and states": "how often the text has each token, and mean and second moments of "
    "the hidden states of the windows' prefixes, jointly",
}
_ADJACENCY: dict[Adjacency, str] = {
    "replace-one": "replace one sample, the number of samples is public",
    "add-remove": "add or remove one sample, divisors are public constants",
}
_MOST_RELEASES = 1 << 53
_ROUND_UP = 1 + 1e-12  # the T-th release of a noise fitted to T must not fail by rounding


def epsilon_spent(
    noise_multiplier: float, releases: int, delta: float, *, method: Method = "exact"
) -> float:
    """Epsilon of ``releases`` releases of one client with equal noise.

    Args:
        noise_multiplier: Noise over sensitivity.
        releases: How many releases; 0 cost 0.
        delta: A number in (0, 1); below 1/n to mean anything.
        method: "exact" (Gaussian differential privacy), or Opacus's "rdp" or "prv", upper bounds.

    Raises:
        ConfigError: A number is out of range, or Opacus is asked for and not installed.

    >>> round(epsilon_spent(7.0, 50, 1e-5), 2)
    4.43
    """
    check_noise(noise_multiplier)
    if releases < 0:
        raise ConfigError(f"releases must not be negative, got {releases}")
    return _epsilon([(noise_multiplier, releases)], delta, method)


def noise_multiplier_for(
    epsilon: float, delta: float, releases: int, *, num_examples: int | None = None
) -> float:
    """Smallest equal noise for which ``releases`` releases stay within (epsilon, delta).

    Args:
        epsilon: What all of them may cost together, positive.
        delta: A number in (0, 1), and below 1/``num_examples`` where that is given.
        releases: How many, at least 1.
        num_examples: Samples of the smallest client.

    Raises:
        ConfigError: A number is out of range.

    >>> round(noise_multiplier_for(8, 1e-5, 20), 2)
    2.68
    """
    check_delta(delta, num_examples)
    _at_least_one("releases", releases)
    return math.sqrt(releases) / mu_of(epsilon, delta) * _ROUND_UP


def refresh_interval(rounds: int, releases: int) -> int:
    """Rounds between two releases of R, if ``releases`` must last for ``rounds``.

    The first is in round 0, then every so many rounds.

    >>> refresh_interval(200, 20)
    10
    """
    _at_least_one("rounds", rounds)
    _at_least_one("releases", releases)
    return math.ceil(rounds / releases)


@dataclass(frozen=True)
class Budget:
    """The (epsilon, delta) that all releases of one client may cost together.

    Raises:
        ConfigError: ``epsilon`` is not positive and finite, or ``delta`` not in (0, 1).
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_delta(self.delta)


class Accountant:
    """Counts the releases of every client as they happen, and refuses one beyond the budget.

    Spend first, release second, and save ``state`` in between: a crash then wastes a release and
    never hides one. Clients are known by partition id.

    >>> accountant = Accountant(Budget(epsilon=2.0, delta=1e-5))
    >>> accountant.spend(3, noise_multiplier=2.0, num_examples=2500)
    >>> round(accountant.epsilon(3, delta=1e-5), 3)
    1.993
    >>> accountant.affords(3, noise_multiplier=2.0)
    False

    Attributes:
        weights: What DP-SGD has cost each client, where the weights are private too.
        exposed: What else leaves a client while this model is trained, without noise.
        released: What the releases are: ``matrices`` of FedSC, ``sums`` over latents; of text
            ``histograms`` of tokens, ``states`` (sums over hidden states), or both.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget
        self._limit = math.inf if budget is None else mu_of(budget.epsilon, budget.delta)
        self._spent: dict[int, dict[float, int]] = {}
        self.weights: dict[int, WeightsCost] = {}
        self.exposed: tuple[str, ...] = ()
        self.released: Released = "matrices"

    def spend(self, client: int, *, noise_multiplier: float, num_examples: int) -> None:
        """Count one release of a client.

        Raises:
            BudgetError: The release would exceed the budget; it is not counted.
            ConfigError: The noise is not positive, or the budget's delta is 1/n or more.
        """
        _at_least_one("num_examples", num_examples)
        if self.budget is not None:
            check_delta(self.budget.delta, num_examples)
        if not self.affords(client, noise_multiplier=noise_multiplier):
            assert self.budget is not None
            delta = self.budget.delta
            after = _epsilon([*self.history(client), (noise_multiplier, 1)], delta, "exact")
            raise BudgetError(
                f"client {client} has made {self.releases(client)} releases at epsilon "
                f"{self.epsilon(client, delta=delta):.4g}; one more with noise multiplier "
                f"{noise_multiplier:g} would make it {after:.4g}, above the budget of "
                f"{self.budget.epsilon:g} (delta {delta:g})"
            )
        counts = self._spent.setdefault(client, {})
        counts[noise_multiplier] = counts.get(noise_multiplier, 0) + 1

    def affords(self, client: int, *, noise_multiplier: float) -> bool:
        """Whether one more release with this noise stays within the budget."""
        check_noise(noise_multiplier)
        return _total_mu([*self.history(client), (noise_multiplier, 1)]) <= self._limit

    def releases(self, client: int) -> int:
        """Releases of a client so far."""
        return sum(count for _, count in self.history(client))

    def history(self, client: int) -> list[tuple[float, int]]:
        """Noise multipliers of a client and how often each was used, for another accountant."""
        return list(self._spent.get(client, {}).items())

    def epsilon(self, client: int, *, delta: float, method: Method = "exact") -> float:
        """Epsilon that a client's releases cost so far, see ``epsilon_spent``."""
        return _epsilon(self.history(client), delta, method)

    def worst(self, *, delta: float) -> float:
        """Largest epsilon of any client; 0 before the first release."""
        return max((self.epsilon(client, delta=delta) for client in self._spent), default=0.0)

    @property
    def most_releases(self) -> int:
        """Releases of the client that made most."""
        return max(map(self.releases, self._spent), default=0)

    def together(self, *, delta: float, adjacency: Adjacency) -> tuple[float, float]:
        """Epsilon and delta of matrices and weights of the client that spent most on both.

        Basic composition of two promises that each hold at ``delta``; one of them alone keeps it.
        """
        clients = self._spent.keys() | self.weights.keys()
        replaced = adjacency == "replace-one"
        sums = [0.0]
        for client in clients:
            cost = self.weights.get(client)
            steps = 0.0 if cost is None else cost.replaced if replaced else cost.epsilon
            sums.append(self.epsilon(client, delta=delta) + steps)
        kinds = bool(self._spent) + bool(self.weights)
        return max(sums), max(1, kinds) * delta

    def statement(self, *, delta: float, adjacency: Adjacency = "replace-one") -> str:
        """Say in words what has been spent and what that covers."""
        return _in_words(self, delta, adjacency)

    def state(self) -> dict[str, Any]:
        """Everything spent, ready for JSON."""
        state: dict[str, Any] = {
            "spent": {str(client): [list(pair) for pair in self.history(client)]
                      for client in sorted(self._spent)}
        }  # fmt: skip
        if self.weights:
            state["weights"] = {str(c): astuple(self.weights[c]) for c in sorted(self.weights)}
            state["exposed"] = list(self.exposed)
        if self.released != "matrices":
            state["released"] = self.released
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` returned; the budget stays this accountant's own.

        Raises:
            ConfigError: The state is malformed, or this accountant has counted releases already.
        """
        if self._spent or self.weights:
            raise ConfigError("this accountant has counted releases: loading would forget them")
        try:
            loaded = {int(client): _by_noise(history) for client, history in state["spent"].items()}
            weights = {
                int(client): WeightsCost(int(steps), float(epsilon), float(replaced))
                for client, (steps, epsilon, replaced) in state.get("weights", {}).items()
            }
            exposed = tuple(map(str, state.get("exposed", ())))
            told = state.get("released", "matrices")
            (released,) = (one for one in _RELEASED if one == told)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not the state of an accountant: {error!r}") from error
        for history in loaded.values():
            for noise, count in history.items():
                check_noise(noise)
                _at_least_one("a count of releases", count)
        for cost in weights.values():
            if not all(0 <= value < math.inf for value in astuple(cost)):
                raise ConfigError(f"a cost of weights is negative or not finite: {cost}")
        self._spent, self.weights, self.exposed = loaded, weights, exposed
        self.released = released


def _in_words(accountant: Accountant, delta: float, adjacency: Adjacency) -> str:
    """Costs, unit, adjacency, what is covered and what is not."""
    parts = []
    released = accountant.most_releases
    if released or not accountant.weights:
        parts.append(
            f"{_RELEASED[accountant.released]}: epsilon {accountant.worst(delta=delta):.4g} at "
            f"delta {delta:g} for the client that spent most (releases per client: at most "
            f"{released})."
        )
    if accountant.weights:
        parts.append(_weights_in_words(accountant, delta))
    of_text = accountant.released not in ("matrices", "sums")
    unit, alike = (_WINDOW, "window") if of_text else (_SAMPLE, "sample")
    told = _ADJACENCY[adjacency].replace("sample", alike)
    parts.append(f"Unit: {unit}. Adjacency: {told}.")
    if accountant.weights:
        parts.append(_together_in_words(accountant, delta, adjacency))
    elif accountant.released == "sums":
        parts.append(
            "Covered: count by class, mean, second moments and sums by class of the latents, "
            "jointly, and all that is solved from them (standardisation, ridge head, gate lda), "
            "given the extractor. Not covered: what trained the extractor, and what is sent after "
            "the sums (experts, gates trained by rounds, prototypes, test results). The run as a "
            "whole is therefore not differentially private. Class counts told before training "
            "and metrics are not covered either."
        )
    elif of_text:
        parts.append(
            f"Covered: {_OF_TEXT[accountant.released]}, and the gates that are solved from them, "
            "given the backbone. Not covered: adapters that leave their devices, which were "
            "trained on the same text, FedGate, and metrics. The run as a whole is therefore not "
            "differentially private. Numbers of windows, bytes and tokens are not covered either."
        )
    else:
        parts.append(
            "Covered: each released matrix, given the weights it was computed at. Not covered: the "
            "weights, which leave without noise. The run as a whole is therefore not "
            "differentially private. Sample counts and metrics are not covered either."
        )
    return " ".join(parts)


def _weights_in_words(accountant: Accountant, delta: float) -> str:
    costs = accountant.weights.values()
    return (
        f"Weights: DP-SGD with epsilon {max(cost.epsilon for cost in costs):.4g} at delta "
        f"{delta:g} for one sample added or removed, Poisson sampling; for one sample replaced "
        f"{max(cost.replaced for cost in costs):.4g} at delta {delta:g} (steps per client: at most "
        f"{max(cost.steps for cost in costs)})."
    )


def _together_in_words(accountant: Accountant, delta: float, adjacency: Adjacency) -> str:
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


def _total_mu(history: Spending) -> float:
    return math.sqrt(math.fsum(count / noise / noise for noise, count in history))


def _by_noise(history: Iterable[tuple[float, int]]) -> dict[float, int]:
    """Releases by their noise; those of one noise are added up, none is forgotten."""
    found: dict[float, int] = {}
    for noise, count in history:
        if not isinstance(count, int) or isinstance(count, bool) or count > _MOST_RELEASES:
            raise ValueError(f"{count!r} releases; allowed: a whole number up to 2^53")
        found[float(noise)] = found.get(float(noise), 0) + count
    return found


def _epsilon(history: Spending, delta: float, method: Method) -> float:
    check_delta(delta)
    history = [(noise, count) for noise, count in history if count]
    if method == "exact":
        return epsilon_of(_total_mu(history), delta)
    if method not in ("rdp", "prv"):
        raise ConfigError(f"method must be exact, rdp or prv, got {method!r}")
    try:
        opacus: Any = importlib.import_module("opacus.accountants")
    except ModuleNotFoundError as error:
        raise ConfigError(f"method {method} needs Opacus: {install_hint('privacy')}") from error
    accountant = {"rdp": opacus.RDPAccountant, "prv": opacus.PRVAccountant}[method]()
    accountant.history = [(noise, 1.0, count) for noise, count in history]
    with np.errstate(divide="ignore"):  # Opacus's PRV takes log(1 - sample rate), here of 0
        return float(accountant.get_epsilon(delta=delta)) if history else 0.0


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
