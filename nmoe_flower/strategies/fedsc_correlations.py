"""Every client's correlation matrix at the server, fresh or stale, and their mean."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nmoe_flower import records
from nmoe_flower.errors import ConfigError, ReplyError, RoundError
from nmoe_flower.privacy import (
    check_release,
    mean_noise_std,
    packed_dim,
    shrink_spectrum,
    smat,
    svec,
)
from nmoe_flower.records import CorrelationKey

PACKED = CorrelationKey.PACKED

__all__ = ["ClientMatrix", "Correlations", "claimed"]

_MOST = 2**53  # samples: no client has more, and sums of them stay finite


def claimed(metrics: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number that a client states about its R.

    Raises:
        ReplyError: It is missing, not one number, not finite, negative or above 2^53.
    """
    value = metrics.get(name, default)
    if not isinstance(value, int | float) or not 0 <= value <= _MOST:
        said = "a huge integer" if isinstance(value, int) and value > _MOST else value
        raise ReplyError(f"{name} must be a number from 0 to 2^53, got {said}")
    return float(value)


@dataclass(frozen=True)
class ClientMatrix:
    """What a client sent last.

    Attributes:
        packed: R of the client, packed by ``svec``, [d(d+1)/2], any float dtype; kept as float32.
        examples: Number of samples of the client, above 0.
        round: When it was sent.
        noise_std: Standard deviation of the noise in it; 0 for none.
    """

    packed: np.ndarray
    examples: float
    round: int
    noise_std: float = 0.0


class Correlations:
    """Every client's last R. A client that is not asked, or does not answer, keeps its old one.

    Args:
        dim: d, the width of the features; None takes the one that most of the first clients have,
            see ``settle``.
        clip: Largest norm of a feature.
        shrink: Remove what noise did to the spectrum of the mean, after averaging.
    """

    def __init__(self, *, dim: int | None = None, clip: float = 1.0, shrink: bool = False) -> None:
        self.dim, self.clip, self.shrink = dim, clip, shrink
        self._kept: dict[int, ClientMatrix] = {}
        self._mean: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, client: int, sent: ClientMatrix) -> None:
        """Take in a client's R.

        Raises:
            ReplyError: It is not finite, not of the agreed size, or no features have it.
        """
        if sent.examples <= 0:
            raise ReplyError(f"num-examples must be above 0, got {sent.examples:g}")
        packed: dict[str, np.ndarray] = {PACKED: sent.packed}
        records.require_finite(packed)
        packed = records.restored(packed, {PACKED: np.empty(sent.packed.shape, np.float32)})
        try:
            matrix = smat(packed[PACKED].astype(np.float64), dim=self.dim)
        except ConfigError as error:
            raise ReplyError(f"correlation: {error}") from None
        check_release(matrix, dim=len(matrix), clip=self.clip, noise_std=sent.noise_std)
        self._kept[client] = replace(sent, packed=packed[PACKED])
        self._mean = None

    def settle(self) -> dict[int, str]:
        """After an exchange: agree on the width, if it is not known yet, and forget the others.

        One client's width must not decide for all, so that of most clients does.

        Returns:
            Clients whose R was forgotten, and why.

        Raises:
            RoundError: No width is the most frequent.
        """
        if self.dim is not None or not self._kept:
            return {}
        widths = {client: packed_dim(len(one.packed)) for client, one in self._kept.items()}
        (width, count), *others = Counter(widths.values()).most_common()
        if others and others[0][1] == count:
            raise RoundError(
                f"correlation matrices have width {width} and {others[0][0]}, from as many clients "
                f"each: {dict(sorted(widths.items()))}; say which by FedSC(dim=...)"
            )
        self.dim, self._mean = width, None
        odd = {client: found for client, found in widths.items() if found != width}
        for client in odd:
            del self._kept[client]
        return {
            client: f"its features have {found} dimensions, those of most clients {width}"
            for client, found in odd.items()
        }

    def round_of(self, client: int) -> int:
        """When this client's R was sent; 0 if there is none."""
        return self._kept[client].round if client in self._kept else 0

    @property
    def examples(self) -> float:
        """Samples behind the mean."""
        return sum(kept.examples for kept in self._kept.values())

    @property
    def shrunk(self) -> bool:
        """Whether the mean has lost its noise, and with it what each client's noise added."""
        return self.shrink and self.noise_std > 0

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in the mean."""
        kept = [self._kept[client] for client in sorted(self._kept)]
        stds, shares = [r.noise_std for r in kept], [r.examples / self.examples for r in kept]
        return mean_noise_std(stds, shares)

    @property
    def mean(self) -> np.ndarray | None:
        """The share-weighted mean, [d, d] float64; None before the first R. Summed in id order."""
        if self._mean is None and self._kept:
            total = self.examples
            packed = sum(
                self._kept[client].packed.astype(np.float64) * (self._kept[client].examples / total)
                for client in sorted(self._kept)
            )
            mean = smat(np.asarray(packed))
            if self.shrunk:
                mean = shrink_spectrum(mean, self.noise_std, clip=self.clip)
            self._mean = mean
        return self._mean

    @property
    def packed_mean(self) -> np.ndarray | None:
        """The mean as it travels, [d(d+1)/2] float32."""
        return None if self.mean is None else svec(self.mean).astype(np.float32)

    def eigenvalues(self) -> np.ndarray | None:
        """Eigenvalues of the mean, [d], largest first, without what noise adds; None before R."""
        if self.mean is None:
            return None
        mean = self.mean
        if self.noise_std > 0 and not self.shrunk:
            mean = shrink_spectrum(mean, self.noise_std, clip=self.clip, goal="eigenvalues")
        return np.linalg.eigvalsh(mean)[::-1]

    def state(self) -> dict[str, np.ndarray]:
        """Every R and what is known about it."""
        arrays: dict[str, np.ndarray] = {}
        for client, kept in self._kept.items():
            arrays[f"{client}/{PACKED}"] = kept.packed
            arrays[f"{client}/about"] = np.array(
                [kept.examples, kept.round, kept.noise_std], np.float64
            )
        return arrays

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave."""
        self._kept, self._mean = {}, None
        for key in arrays:
            client, _, kind = key.partition("/")
            if kind == PACKED:
                examples, server_round, noise_std = arrays[f"{client}/about"].tolist()
                self.keep(
                    int(client), ClientMatrix(arrays[key], examples, int(server_round), noise_std)
                )
        self.settle()
