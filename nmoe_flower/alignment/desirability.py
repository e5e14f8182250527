"""One number per client and expert from fitness, usage, deficits and exploration."""

import numpy as np
import numpy.typing as npt

from nmoe_flower.alignment.arrays import Floats
from nmoe_flower.alignment.fitness import Fitness
from nmoe_flower.alignment.usage import DeficitQueue, Usage
from nmoe_flower.errors import ConfigError

__all__ = ["SCALES", "desirability"]


SCALES = ("z", "rank", "none")


def desirability(
    fitness: Fitness | npt.ArrayLike,
    usage: Usage | npt.ArrayLike,
    *,
    deficits: DeficitQueue | None = None,
    fitness_weight: float = 1.0,
    usage_weight: float = 1.0,
    deficit_weight: float = 1.0,
    scale: str = "z",
) -> Floats:
    """``D = wF z(F) - wU u + wQ q + bonus``, [clients, experts].

    Args:
        fitness: A `Fitness` (whose exploration bonus is added) or scores [clients, experts].
        usage: A `Usage` or relative usage [experts], 0 for an even share.
        deficits: What each expert lacks: the joint policy's memory of past rounds.
        fitness_weight: wF, the weight of fitness.
        usage_weight: wU, the weight of usage.
        deficit_weight: wQ, the weight of the deficits.
        scale: How fitness is brought to a common scale per client: ``z`` (mean 0, deviation 1),
            ``rank`` (0 to 1) or ``none``.

    Raises:
        ConfigError: Unknown scale, or shapes that do not fit.

    >>> desirability([[0.9, 0.1]], [0.5, -0.5]).tolist()
    [[0.5, -0.5]]
    """
    scores = fitness.scores if isinstance(fitness, Fitness) else np.asarray(fitness, dtype=float)
    used = usage.relative if isinstance(usage, Usage) else np.asarray(usage, dtype=float)
    if scores.ndim != 2 or used.shape != scores.shape[1:]:
        raise ConfigError(f"fitness has shape {scores.shape} and usage {used.shape}")
    column = -usage_weight * used
    if deficits is not None:
        column = column + deficit_weight * deficits.relative
    result = fitness_weight * _scaled(scores, scale) + column
    if isinstance(fitness, Fitness) and fitness.exploration:
        result += fitness.bonus
    return result


def _scaled(scores: Floats, scale: str) -> Floats:
    if scale == "none":
        return scores
    if scale == "z":
        deviation = scores.std(axis=1, keepdims=True)
        flat = deviation < 1e-12
        centred = scores - scores.mean(axis=1, keepdims=True)
        return np.asarray(centred / np.where(flat, 1.0, deviation))
    if scale == "rank":  # equal scores share the mean of their ranks
        from scipy.stats import rankdata

        return np.asarray((rankdata(scores, axis=1) - 1) / max(scores.shape[1] - 1, 1))
    raise ConfigError(f"scale {scale!r} is unknown; allowed: {', '.join(SCALES)}")
