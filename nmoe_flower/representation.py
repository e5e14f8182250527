"""How good a representation is, without labels and with: what FedSC is watched by.

Positive pairs and uniformity are those of Wang and Isola (ICML 2020), who call the first alignment;
the effective rank is that of Roy and Vetterli (EUSIPCO 2007). Probes follow the protocol of the
self-supervised literature: features frozen, a simple classifier on top. Plain NumPy, for servers
and clients alike.
"""

import numpy as np

__all__ = [
    "effective_rank",
    "find_collapse",
    "knn_accuracy",
    "positive_pair_distance",
    "probe_accuracy",
    "uniformity",
]


def positive_pair_distance(z1: np.ndarray, z2: np.ndarray) -> float:
    """Mean squared distance of two views [B, D] of the same samples, on the sphere: 0 (best) to 4.

    >>> positive_pair_distance(np.eye(2), np.eye(2)[::-1])
    2.0
    """
    return float(np.square(_unit(z1) - _unit(z2)).sum(axis=1).mean())


def uniformity(z: np.ndarray) -> float:
    """Log of the mean Gaussian potential exp(-2 |a - b|^2) over pairs of rows [B, D].

    0 when all features are equal, about -4 when they fill a sphere of many dimensions.

    Raises:
        ValueError: There is only one row.
    """
    if len(z) < 2:
        raise ValueError("uniformity needs at least two samples")
    z = _unit(z)
    distance = 2 - 2 * (z @ z.T)[np.triu_indices(len(z), 1)]
    return float(np.log(np.exp(-2 * distance).mean()))


def effective_rank(eigenvalues: np.ndarray) -> float:
    """Exp of the entropy of the eigenvalues of R, scaled to sum to 1: between 1 and d.

    >>> round(effective_rank(np.ones(8)), 6)
    8.0
    """
    values = np.maximum(eigenvalues, 0)
    total = values.sum()
    if total <= 0:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def find_collapse(eigenvalues: np.ndarray, *, hidden: float = 0.0) -> str | None:
    """Name the way in which features have collapsed, from the eigenvalues of R; None if sound.

    ``hidden``: noise hides eigenvalues below this one, so that few others prove no collapse.

    >>> find_collapse(np.array([0.98, 0.01, 0.01]))
    'collapsed to the mean: one direction holds 98 % of the features'
    """
    found = _find_collapse(eigenvalues)
    if found is not None and hidden > 0:
        found += f"; or noise hides the others: below {hidden:.2g} an eigenvalue is not seen"
    return found


def _find_collapse(eigenvalues: np.ndarray) -> str | None:
    values = np.maximum(eigenvalues, 0)
    total = float(values.sum())
    if total < 1e-4:
        return f"collapsed to zero: the features have a mean squared length of {total:.2g}"
    if len(values) > 1 and values.max() > 0.9 * total:
        share = 100 * values.max() / total
        return f"collapsed to the mean: one direction holds {share:.0f} % of the features"
    rank, least = effective_rank(values), len(values) / 32
    if rank < least:
        return f"dimensional collapse: the effective rank is {rank:.1f} of {len(values)} dimensions"
    return None


def knn_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    neighbours: int = 20,
    temperature: float = 0.1,
) -> float:
    """Accuracy of weighted nearest neighbours by cosine: [N, D], [N], [M, D], [M].

    Each of the nearest votes with exp(similarity / temperature) (Wu et al., CVPR 2018).
    """
    similarity = _unit(test) @ _unit(train).T
    near = np.argpartition(-similarity, min(neighbours, len(train)) - 1, axis=1)[:, :neighbours]
    votes = np.exp((np.take_along_axis(similarity, near, axis=1) - 1) / temperature)
    scores = np.zeros((len(test), int(max(train_labels.max(), test_labels.max())) + 1))
    np.add.at(scores, (np.arange(len(test))[:, None], train_labels[near]), votes)
    return float((scores.argmax(axis=1) == test_labels).mean())


def probe_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    ridge: float = 0.1,
) -> float:
    """Accuracy of a linear classifier on standardised features, fitted by ridge regression.

    In closed form, so there is no rate to tune; ``ridge`` is per training sample.
    """
    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    x, t = (train - mean) / spread, (test - mean) / spread
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    targets = np.eye(classes, dtype=x.dtype)[train_labels]
    targets -= targets.mean(axis=0)
    gram = x.T @ x
    gram[np.diag_indices_from(gram)] += ridge * len(x)
    weights = np.linalg.solve(gram, x.T @ targets)
    scores = t @ weights + np.bincount(train_labels, minlength=classes) / len(train)
    return float((scores.argmax(axis=1) == test_labels).mean())


def _unit(z: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return scaled
