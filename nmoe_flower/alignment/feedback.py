"""What a client says about the experts it trained, checked before anything learns from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import ReplyError

__all__ = ["EXPERTS", "LOSSES", "SAMPLES", "SECONDS", "SHARES", "Feedback", "read_feedback"]

EXPERTS, LOSSES, SHARES = "expert-ids", "expert-losses", "expert-shares"
SAMPLES, SECONDS = "expert-samples", "seconds"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Feedback:
    """One client's feedback of one round.

    Attributes:
        client: Number of the client.
        experts: The k experts it trained.
        losses: Mean loss of each on held-out samples, [k].
        samples: How many samples trained each, [k].
        shares: Share of its held-out samples that its gate sends to every expert, [experts].
        seconds: How long the training took.
    """

    client: int
    experts: npt.NDArray[np.int64]
    losses: Floats
    samples: Floats
    shares: Floats
    seconds: float


def read_feedback(
    client: int,
    metrics: Mapping[str, Any],
    *,
    held: npt.NDArray[np.bool_],
    flops: float = 0.0,
    fastest: float = 1e16,
) -> Feedback:
    """Check and read the metrics of a reply.

    Args:
        client: Number of the client.
        metrics: What it said: ``expert-ids``, ``expert-losses``, ``expert-samples`` and
            ``seconds``; and ``expert-shares``, one per expert of the mixture (all 0 if left out).
        held: What the client was assigned, bool [experts].
        flops: FLOPs of training one sample with one expert, to check the seconds against.
        fastest: FLOP/s no client can have.

    Raises:
        ReplyError: Something is missing, not finite, for an expert never assigned, or impossible.

    >>> said = {"expert-ids": [1], "expert-losses": [0.5], "expert-samples": [8], "seconds": 1.0}
    >>> read_feedback(0, said, held=np.array([False, True])).losses.tolist()
    [0.5]
    """
    ids = _numbers(metrics, EXPERTS)
    losses, samples = _numbers(metrics, LOSSES), _numbers(metrics, SAMPLES)
    shares = _numbers(metrics, SHARES) if SHARES in metrics else np.zeros(len(held))
    if not len(ids) == len(losses) == len(samples):
        raise ReplyError(f"{len(ids)} experts, {len(losses)} losses and {len(samples)} samples")
    whole = ids.astype(np.int64)
    strange = (whole != ids) | (whole < 0) | (whole >= len(held))
    if strange.any():
        raise ReplyError(f"feedback for expert {ids[strange][0]:g}; there are {len(held)}")
    if not held[whole].all():
        expert = int(whole[~held[whole]][0])
        raise ReplyError(f"feedback for expert {expert}, which it was not assigned")
    if len(set(whole.tolist())) < len(whole) or len(whole) < held.sum():
        raise ReplyError(f"feedback for experts {whole.tolist()}; assigned {held.nonzero()[0]}")
    if len(shares) != len(held) or (shares < 0).any() or shares.sum() > 1.001:
        raise ReplyError(f"{SHARES} are {shares.tolist()}; allowed: {len(held)} parts of 1")
    if (samples < 0).any():
        raise ReplyError(f"{SAMPLES} are {samples.tolist()}; allowed: 0 or more")
    took = _numbers(metrics, SECONDS)
    if len(took) != 1:
        raise ReplyError(f"the feedback {SECONDS!r} is {took.tolist()}; allowed: one number")
    seconds = float(took[0])
    work = flops * float(samples.sum())
    if seconds <= 0 or work / seconds > fastest:
        raise ReplyError(
            f"{seconds:g} s for {work:g} FLOPs is impossible; allowed: up to {fastest:g} FLOP/s"
        )
    return Feedback(client, whole, losses, samples, shares, seconds)


def _numbers(metrics: Mapping[str, Any], name: str) -> Floats:
    if name not in metrics:
        raise ReplyError(f"the feedback {name!r} is missing")
    try:
        values = np.atleast_1d(np.asarray(metrics[name], dtype=np.float64))
    except OverflowError:
        raise ReplyError(f"the feedback {name!r} has an integer that no float holds") from None
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ReplyError(f"the feedback {name!r} is {metrics[name]}; allowed: finite numbers")
    return values
