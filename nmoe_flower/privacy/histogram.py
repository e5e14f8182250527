"""The Gaussian mechanism for a client's histogram of tokens, which a unigram gate is made of.

A histogram tells how often which words were written: a name, a drug, an account number that stands
there at all stands in it. Unit of protection: one part of the text, a document or a window of it,
whatever the caller counts as one; with parts of a single token it is one token, which hides no
document. Each part's counts are scaled down to norm c at most, and no count is below 0: two such
vectors are at most sqrt(2) c apart, so that is the L2 sensitivity of the sum where a part is
replaced by another ("replace-one", the number of parts public), and c where there is one more or
one less ("add-remove").

Covered: what the histogram tells of a part. Not covered: the adapter that was trained on the same
text, and the numbers of windows, bytes and tokens that clients tell.
"""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy.mechanism import Adjacency, check_noise, secure_normal

__all__ = ["HistogramMechanism"]

Floats = npt.NDArray[np.float64]


class HistogramMechanism:
    """Releases a histogram with Gaussian noise, ``1/noise_multiplier``-GDP per release.

    The noise is N(0, s^2) on every count, s = noise_multiplier times the sensitivity.

    Args:
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        clip: Largest norm c of a part's counts. A part of T different tokens has sqrt(T), one of T
            equal ones T.
        adjacency: What two neighbouring texts differ in: "replace-one" or "add-remove".
        secure: Draw the noise from the operating system's random source.

    Raises:
        ConfigError: A number is out of range, or the adjacency is unknown.
    """

    def __init__(
        self,
        noise_multiplier: float,
        clip: float,
        *,
        adjacency: Adjacency = "replace-one",
        secure: bool = False,
    ) -> None:
        check_noise(noise_multiplier)
        if not (math.isfinite(clip) and clip > 0):
            raise ConfigError(f"clip must be positive and finite, got {clip}")
        if adjacency not in ("replace-one", "add-remove"):
            raise ConfigError(f"adjacency must be replace-one or add-remove, got {adjacency!r}")
        self.noise_multiplier, self.clip, self.secure = noise_multiplier, clip, secure
        self.adjacency: Adjacency = adjacency
        self.sensitivity = (math.sqrt(2) if adjacency == "replace-one" else 1.0) * clip
        self.noise_std = noise_multiplier * self.sensitivity

    def count(self, parts: Iterable[npt.NDArray[np.integer]], vocab_size: int) -> Floats:
        """Sum of the parts' counts, each scaled to norm ``clip`` at most, float64 [V].

        Args:
            parts: Tokens of each part; a part must come once.
            vocab_size: Number of tokens, V.
        """
        total = np.zeros(vocab_size)
        for tokens in parts:
            counts = np.bincount(tokens, minlength=vocab_size)
            norm = math.sqrt(float(counts @ counts))
            total += counts * min(1.0, self.clip / norm) if norm else 0.0
        return total

    def release(self, counts: Floats, rng: np.random.Generator | None = None) -> Floats:
        """Counts with noise, none below 0, float64 [V].

        One release has one price; releasing again with fresh noise costs again.

        Args:
            counts: What `count` gives, [V].
            rng: Source of the noise; must be None when ``secure`` is set, and only then.

        Raises:
            ConfigError: Counts are no vector of finite numbers of 0 or more, or the generator is
                missing or one too many.
        """
        if counts.ndim != 1 or not bool(np.isfinite(counts).all() and (counts >= 0).all()):
            raise ConfigError("a histogram must be a vector of finite numbers of 0 or more")
        if self.secure != (rng is None):
            raise ConfigError(
                "a secure mechanism draws from the operating system: pass no generator"
                if self.secure
                else "release needs a generator, or a mechanism with secure=True"
            )
        noise = secure_normal(len(counts)) if rng is None else rng.standard_normal(len(counts))
        return np.asarray(np.maximum(counts + self.noise_std * noise, 0.0))
