"""Attack a release and bound its epsilon from below: a privacy test that can fail.

A proof says what noise a mechanism should add; an audit measures what it does. ``audit_releases``
runs the mechanism thousands of times on two neighbouring data sets, learns the likelihood-ratio
test between them from half of the releases, and counts its errors on the other half. Error rates
that low at once refute the claim, with the stated confidence. A pass proves nothing beyond the
pairs tried. The method is that of Nasr et al. 2023, "Tight auditing of differentially private
machine learning", with Clopper-Pearson bounds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy.gdp import check_delta, epsilon_of
from nmoe_flower.privacy.mechanism import Adjacency, check_noise, sensitivity

__all__ = ["Audit", "AuditFinding", "audit_releases", "membership_auc"]

_Release = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class AuditFinding:
    """Lower bounds from one pair of neighbouring data sets.

    Attributes:
        pair: Name of the pair.
        epsilon: Bound at the audit's delta, without any assumption on the noise.
        mu: Bound under the claim of Gaussian differential privacy, which is what the accountant
            composes; much sharper.
    """

    pair: str
    epsilon: float
    mu: float


@dataclass(frozen=True)
class Audit:
    """Findings of all pairs, jointly valid with probability ``confidence``, beside the claim."""

    claimed_epsilon: float
    claimed_mu: float
    delta: float
    confidence: float
    findings: tuple[AuditFinding, ...]

    @property
    def epsilon(self) -> float:
        """Largest lower bound on epsilon of any pair."""
        return max(finding.epsilon for finding in self.findings)

    @property
    def mu(self) -> float:
        """Largest lower bound on mu of any pair."""
        return max(finding.mu for finding in self.findings)

    @property
    def passed(self) -> bool:
        """Whether no bound exceeds the claim."""
        return self.epsilon <= self.claimed_epsilon and self.mu <= self.claimed_mu


def audit_releases(
    release: _Release,
    *,
    noise_multiplier: float,
    clip: float,
    num_examples: int,
    delta: float = 1e-5,
    adjacency: Adjacency = "replace-one",
    trials: int = 2000,
    confidence: float = 0.99,
    rng: np.random.Generator,
) -> Audit:
    """Test the claim that one release is ``1/noise_multiplier``-GDP.

    Use a noise multiplier near 1: with much noise the two data sets look alike to any test. The
    pairs replace one sample by an orthogonal one: along the axes (R differs on its diagonal), along
    diagonals (R differs beside it), and far outside the clip.

    Args:
        release: (features [n, 3] float64, number) -> that many releases of their R, [number, 3, 3],
            with clipping and fresh noise as in real use.
        noise_multiplier: What the mechanism claims.
        clip: Norm bound it claims.
        num_examples: n, the number of samples.
        delta: The delta of the epsilons of claim and findings, in (0, 1).
        adjacency: "add-remove" takes the sample away (a row of zeros) instead of replacing it.
        trials: Releases per data set.
        confidence: Probability, in (0, 1), that all bounds hold together.
        rng: Source of the data sets.

    Raises:
        ConfigError: A number is out of range, or the releases are not finite and [number, 3, 3].
    """
    check_noise(noise_multiplier)
    check_delta(delta)
    sensitivity(clip, num_examples, adjacency=adjacency)
    if trials < 100 or not 0 < confidence < 1:
        raise ConfigError(
            f"an audit needs at least 100 trials and a confidence in (0, 1), got {trials} and "
            f"{confidence}"
        )
    pairs = _neighbours(clip, num_examples, adjacency, rng)
    alpha = (1 - confidence) / len(pairs)
    findings = tuple(
        _attack(name, *(_sample(release, data, trials) for data in pair), delta=delta, alpha=alpha)
        for name, pair in pairs.items()
    )
    mu = 1 / noise_multiplier
    return Audit(epsilon_of(mu, delta), mu, delta, confidence, findings)


def membership_auc(
    released: np.ndarray, members: np.ndarray, outsiders: np.ndarray, *, ridge: float = 1e-3
) -> float:
    """How well a released R tells its samples from others: area under the ROC curve, 0.5 is chance.

    The score is the leverage z^T (R + ridge)^{-1} z, which is lower for samples R was made of, as
    each pulls R towards itself. Negative eigenvalues, which are noise, count as 0.

    Args:
        released: The released matrix R, [D, D].
        members: Features R was made of, [N, D].
        outsiders: Features of other samples of the same kind, [M, D].
        ridge: Positive; about the noise edge when there is noise.

    Raises:
        ConfigError: ``ridge`` is not positive, or there are no members or no outsiders.
    """
    if not ridge > 0:
        raise ConfigError(f"ridge must be positive, got {ridge}")
    if not len(members) or not len(outsiders):
        raise ConfigError(f"needs members and outsiders, got {len(members)} and {len(outsiders)}")
    values, vectors = np.linalg.eigh(released)
    scale = 1 / (np.maximum(values, 0) + ridge)
    inside, outside = (((z @ vectors) ** 2 @ scale) for z in (members, outsiders))
    order = np.sort(inside)
    lower = np.searchsorted(order, outside, "left")
    ties = np.searchsorted(order, outside, "right") - lower
    return float((lower + ties / 2).mean() / len(inside))


def _neighbours(
    clip: float, num_examples: int, adjacency: Adjacency, rng: np.random.Generator
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of data sets [n, 3] that differ in their first row as much as the clip allows."""
    rest = rng.standard_normal((num_examples, 3))
    rest *= clip / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1)
    half = math.sqrt(0.5)
    rows = {
        "axes": ((1.0, 0.0), (0.0, 1.0)),
        "diagonals": ((half, half), (half, -half)),
        "outside the clip": ((5.0, 0.0), (0.0, 5.0)),
    }
    pairs = {}
    for name, (first, second) in rows.items():
        one, two = rest.copy(), rest.copy()
        one[0] = (*(clip * x for x in first), 0.0)
        two[0] = 0.0 if adjacency == "add-remove" else (*(clip * x for x in second), 0.0)
        pairs[name] = (one, two)
    return pairs


def _sample(release: _Release, data: np.ndarray, trials: int) -> np.ndarray:
    drawn = np.asarray(release(data, trials), dtype=np.float64)
    if drawn.shape != (trials, 3, 3) or not np.isfinite(drawn).all():
        raise ConfigError(
            f"releases under audit must be finite and {(trials, 3, 3)}, got {drawn.shape}"
        )
    return drawn.reshape(trials, 9)


def _attack(
    pair: str, first: np.ndarray, second: np.ndarray, *, delta: float, alpha: float
) -> AuditFinding:
    """Learn a test on one half of the releases [T, D*D], bound its errors on the other."""
    half = len(first) // 2
    weights = _direction(first[:half], second[:half])
    train = _orders(first[:half] @ weights, second[:half] @ weights)
    held_out = _orders(first[half:] @ weights, second[half:] @ weights)
    bounds = []
    for goal in (_mu_bound, lambda fpr, tpr: _epsilon_bound(fpr, tpr, delta)):
        order, threshold = _best_threshold(train, goal)
        null, other = held_out[order]
        total = len(null)
        false_positives = _upper(int((null > threshold).sum()), total, alpha / 4)
        misses = _upper(int((other <= threshold).sum()), total, alpha / 4)
        bounds.append(goal(false_positives, 1 - misses))
    return AuditFinding(pair=pair, mu=bounds[0], epsilon=bounds[1])


def _direction(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Likelihood ratio of two Gaussians with one covariance: (cov + ridge)^{-1} (mean difference).

    The covariance is of all D*D entries, so noise missing from some combination of them is found.
    """
    covariance = (np.cov(first, rowvar=False) + np.cov(second, rowvar=False)) / 2
    ridge = 1e-9 * float(np.trace(covariance)) or 1.0
    covariance[np.diag_indices_from(covariance)] += ridge
    weights: np.ndarray = np.linalg.solve(covariance, second.mean(axis=0) - first.mean(axis=0))
    return weights


def _orders(first: np.ndarray, second: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores of (null, alternative), either data set being the null; high ones reject it."""
    return [(first, second), (-second, -first)]


def _best_threshold(
    orders: list[tuple[np.ndarray, np.ndarray]], goal: Callable[[float, float], float]
) -> tuple[int, float]:
    """The order and threshold with the best bound, by Wilson's interval of three deviations."""

    def value(order: int, threshold: float) -> float:
        null, other = orders[order]
        rates = [float((null > threshold).mean()), float((other <= threshold).mean())]
        n, z = len(null), 3.0
        worst = [
            (p + z * z / (2 * n) + z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2))
            / (1 + z * z / n)
            for p in rates
        ]
        return goal(worst[0], 1 - worst[1])

    grid = [
        (order, float(threshold))
        for order, scores in enumerate(orders)
        for threshold in np.quantile(np.concatenate(scores), np.linspace(0.005, 0.995, 67))
    ]
    return max(grid, key=lambda candidate: value(*candidate))


def _mu_bound(false_positives: float, true_positives: float) -> float:
    """Smallest mu whose trade-off curve allows these rates."""
    normal = NormalDist()
    if not 0 < true_positives < 1 or not 0 < false_positives < 1:
        return 0.0
    return max(0.0, normal.inv_cdf(true_positives) - normal.inv_cdf(false_positives))


def _epsilon_bound(false_positives: float, true_positives: float, delta: float) -> float:
    """Smallest epsilon with TPR <= e^epsilon FPR + delta."""
    if true_positives <= delta + false_positives:
        return 0.0
    return math.log((true_positives - delta) / false_positives)


def _upper(hits: int, total: int, alpha: float) -> float:
    """Clopper-Pearson: the rate at which ``hits`` or fewer of ``total`` have probability alpha."""
    if hits == total:
        return 1.0
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    k = np.arange(hits + 1)
    choose = logs[total] - logs[k] - logs[total - k]
    low, high = hits / total, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        tail = float(np.exp(choose + k * math.log(rate) + (total - k) * math.log1p(-rate)).sum())
        low, high = (rate, high) if tail > alpha else (low, rate)
    return high
