"""Scores of predictions and of routing, all fractions, all summed in float64.

Predictions are ``probs`` [N, C] with ``labels`` [N]. The paper reports these per client and then
averages over clients; call them once per client for that.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import DataError

__all__ = [
    "accuracy",
    "auc",
    "balanced_accuracy",
    "bytes_per_sample",
    "local_ratio",
    "macro_f1",
    "routing_matrix",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def accuracy(probs: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Share of the samples whose likeliest class is the label; the lower class wins a tie.

    >>> accuracy([[0.9, 0.1], [0.8, 0.2]], [0, 1])
    0.5
    """
    scores, truth = _predictions(probs, labels)
    return float((scores.argmax(axis=1) == truth).mean())


def balanced_accuracy(probs: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean recall over the classes that occur in the labels.

    >>> balanced_accuracy([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [0, 0, 1])  # recalls 1 and 0
    0.5
    """
    hits, _, actual = _counts(*_predictions(probs, labels))
    present = actual > 0
    return float((hits[present] / actual[present]).mean())


def macro_f1(probs: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean over all C classes of 2 TP / (2 TP + FP + FN); a class without any of these counts 0.

    >>> macro_f1([[0.9, 0.1], [0.8, 0.2]], [0, 0])  # F1 of class 0 is 1, class 1 never occurs
    0.5
    """
    hits, predicted, actual = _counts(*_predictions(probs, labels))
    return float((2 * hits / np.maximum(predicted + actual, 1)).mean())


def auc(probs: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean one-versus-rest area under the ROC curve, over classes with positives and negatives.

    The area is the chance that a positive scores above a negative; a tie counts one half, so a
    constant predictor gets 0.5. A class that no label or every label has is skipped. If all labels
    are the same nothing is left to score, and the result is NaN.

    >>> auc([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.6, 0.4]], [0, 0, 1, 1])  # 3 of 4 pairs right
    0.75
    """
    scores, truth = _predictions(probs, labels)
    areas = []
    for label in np.unique(truth):
        own = truth == label
        positives, negatives = np.sort(scores[own, label]), np.sort(scores[~own, label])
        if len(negatives):
            below = np.searchsorted(negatives, positives, side="left").sum(dtype=np.float64)
            not_above = np.searchsorted(negatives, positives, side="right").sum(dtype=np.float64)
            areas.append((below + not_above) / (2 * len(positives) * len(negatives)))
    return float(np.mean(areas)) if areas else float("nan")


def routing_matrix(
    expert_ids: npt.ArrayLike,
    origin: npt.ArrayLike,
    num_clients: int,
    *,
    num_experts: int | None = None,
) -> Floats:
    """Share of client i's choices that go to expert j: [m, E], rows sum to 1.

    Args:
        expert_ids: Chosen experts, [N, K].
        origin: The client that asks, [N].
        num_clients: Number of clients m.
        num_experts: E; None: one expert per client.

    Raises:
        DataError: A client asks nothing, an id is out of range or no whole number, or the shapes
            do not fit.

    >>> routing_matrix([[0], [1], [1]], [0, 0, 1], 2)
    array([[0.5, 0.5],
           [0. , 1. ]])
    """
    columns = num_clients if num_experts is None else num_experts
    ids, asking = _routes(expert_ids, origin)
    for name, values, size in (("expert_ids", ids, columns), ("origin", asking, num_clients)):
        if values.min() < 0 or values.max() >= size:
            raise DataError(
                f"{name} must be in 0..{size - 1}, got {values.min()} to {values.max()}"
            )
    cells = (asking[:, None] * columns + ids).ravel()
    counts = np.bincount(cells, minlength=num_clients * columns).reshape(num_clients, columns)
    totals = counts.sum(axis=1, keepdims=True)
    if not totals.all():
        raise DataError(f"clients {np.flatnonzero(totals == 0).tolist()} have no routed sample")
    return np.asarray(counts / totals, dtype=np.float64)


def local_ratio(matrix: npt.ArrayLike) -> float:
    """Mean diagonal of a routing matrix [m, m]: how much stays at home.

    >>> local_ratio([[0.5, 0.5], [0.0, 1.0]])
    0.75
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not values.size:
        raise DataError(f"local_ratio needs a square matrix, got shape {values.shape}")
    return float(values.diagonal().mean())


def bytes_per_sample(
    expert_ids: npt.ArrayLike,
    origin: npt.ArrayLike,
    *,
    latent_dim: int,
    num_classes: int,
    latent_bytes: int = 4,
    output_bytes: int = 4,
    header_bytes: int = 0,
) -> float:
    """Mean bytes on the network per sample: the latent out and the logits back.

    Only remote experts cost. Each adds ``latent_dim * latent_bytes`` one way,
    ``num_classes * output_bytes`` the other way, and a header on both messages.

    Args:
        expert_ids: Chosen experts, [N, K].
        origin: The client that asks, [N].
        latent_dim: Numbers of a latent, D.
        num_classes: Number of classes C.
        latent_bytes: Bytes per number of a latent.
        output_bytes: Bytes per logit.
        header_bytes: Bytes around each message.

    >>> bytes_per_sample([[0], [1], [1], [1]], [0, 0, 0, 0], latent_dim=512, num_classes=10)
    1566.0
    """
    ids, asking = _routes(expert_ids, origin)
    remote = float((ids != asking[:, None]).sum(axis=1).mean(dtype=np.float64))
    return remote * (latent_dim * latent_bytes + num_classes * output_bytes + 2 * header_bytes)


def _predictions(probs: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Ints]:
    scores, truth = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    if truth.size == 0:
        raise DataError("a metric needs at least one sample, got none")
    if scores.ndim != 2 or truth.shape != scores.shape[:1]:
        raise DataError(
            f"probs must be [N, C] and labels [N], got shapes {scores.shape} and {truth.shape}"
        )
    if np.isnan(scores).any():
        raise DataError(f"probs hold NaN in {int(np.isnan(scores).any(axis=1).sum())} rows")
    classes = _whole("labels", truth)
    if classes.min() < 0 or classes.max() >= scores.shape[1]:
        raise DataError(
            f"labels must be in 0..{scores.shape[1] - 1}, got {classes.min()} to {classes.max()}"
        )
    return scores, classes


def _whole(name: str, values: npt.NDArray[Any]) -> Ints:
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    cut = values[whole != values]
    if cut.size:
        raise DataError(f"{name} must be whole numbers, got {cut[0]}")
    return whole


def _counts(scores: Floats, truth: Ints) -> tuple[Floats, Floats, Floats]:
    """Per class: samples predicted and labelled so, predicted so, labelled so."""
    classes = scores.shape[1]
    guess = scores.argmax(axis=1)
    hits, predicted, actual = (
        np.bincount(values, minlength=classes).astype(np.float64)
        for values in (truth[guess == truth], guess, truth)
    )
    return hits, predicted, actual


def _routes(expert_ids: npt.ArrayLike, origin: npt.ArrayLike) -> tuple[Ints, Ints]:
    ids, asking = np.asarray(expert_ids), np.asarray(origin)
    if ids.ndim != 2 or asking.shape != ids.shape[:1] or not ids.size:
        raise DataError(
            "expert_ids must be [N, K] and origin [N] with at least one sample, got shapes "
            f"{ids.shape} and {asking.shape}"
        )
    return _whole("expert_ids", ids), _whole("origin", asking)
