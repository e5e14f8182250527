"""FedAvg of a low-rank adapter: its two factors averaged, one of them alone, or their product.

The mean of the A and the mean of the B are no mean of the B A: Sun et al. 2024 (FFA-LoRA,
arXiv:2403.12313) leave A as it was drawn; the exact mean has the rank of all clients together
and is brought back to that of one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.strategies.replies import Usable
from nmoe_flower.strategies.stepped import SteppedFedAvg, SteppedOptions

__all__ = ["FedLoRA", "mean_product"]

Factors = tuple[np.ndarray, np.ndarray]


class FedLoRA(SteppedFedAvg):
    """FedAvg of adapters, whose layers have the arrays ``<layer>.A`` and ``<layer>.B``.

    The client trains the arrays it is sent and returns them. To leave A as it is, send B alone.

    Args:
        exact: Whether the new A and B are those whose product is nearest to the mean product. They
            turn against those sent out, so no step and no running average goes along them.
        **options: What ``SteppedFedAvg``, ``StreamingFedAvg`` and FedAvg take.

    Raises:
        ConfigError: ``exact`` with a step of the server, or with ``ema``.
    """

    purpose = "adapter"

    def __init__(self, *, exact: bool = False, **options: Unpack[SteppedOptions]) -> None:
        super().__init__(**options)
        if exact and (self.server_optimizer is not None or self.ema > 0):
            raise ConfigError(
                "exact=True makes factors that turn against those sent out: leave out "
                "server_learning_rate, server_momentum, server_optimizer and ema"
            )
        self.exact = exact
        self._factors: dict[str, list[Factors]] = {}
        self._weights: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the adapter to this round's cohort."""
        self._factors, self._weights = {}, []
        return super().configure_train(server_round, arrays, config, grid)

    def accept(self, client: int, content: RecordDict, usable: Usable) -> None:
        """Keep the factors of every client until they are all there."""
        super().accept(client, content, usable)
        if not self.exact or usable.weight <= 0:
            return
        for name in _layers(usable.arrays):
            pair = usable.arrays[f"{name}.A"], usable.arrays[f"{name}.B"]
            if pair[0].ndim != 2 or pair[1].ndim != 2 or len(pair[0]) != pair[1].shape[1]:
                raise ReplyError(f"{name}.A and {name}.B are no factors of a matrix")
            self._factors.setdefault(name, []).append(pair)
        self._weights.append(usable.weight)

    def server_update(
        self, server_round: int, mean: dict[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """The mean; with ``exact``, factors of the mean product."""
        if self.exact:
            for name, parts in self._factors.items():
                before = mean[f"{name}.A"]
                down, up = mean_product(parts, self._weights, len(before))
                unused = ~up.any(axis=0)
                down[unused] = before[unused]  # where both are 0 no gradient would move either
                for side, value in zip("AB", (down, up), strict=True):
                    mean[f"{name}.{side}"] = value.astype(mean[f"{name}.{side}"].dtype)
            self._factors, self._weights = {}, []
        return super().server_update(server_round, mean)


def _layers(arrays: Mapping[str, np.ndarray]) -> list[str]:
    names = [name.removesuffix(".A") for name in arrays if name.endswith(".A")]
    return [name for name in names if f"{name}.B" in arrays]


def mean_product(parts: Sequence[Factors], weights: Sequence[float], rank: int) -> Factors:
    """The adapter of a rank that is nearest to the mean of ``B A``: exact, if that has the rank.

    The mean of the A and the mean of the B are no such adapter: their product is not the mean of
    the products. The singular values are shared between A and B alike; where the mean has less than
    the rank, rows of A and columns of B are 0.

    Args:
        parts: A [r_i, in] and B [out, r_i] of every client.
        weights: A weight for each, in sum above 0.
        rank: The rank that is wanted, r.

    Returns:
        A [r, in] and B [out, r], float32.

    >>> a, b = np.ones((1, 2)), np.ones((3, 1))
    >>> low, high = mean_product([(a, b), (-a, -b)], [1.0, 1.0], 1)
    >>> bool(np.allclose(high @ low, 1.0))
    True
    """
    shares = np.asarray(weights, np.float64) / sum(weights)
    rows = np.concatenate([np.asarray(a, np.float64) for a, _ in parts])
    columns = np.concatenate(
        [share * np.asarray(b, np.float64) for share, (_, b) in zip(shares, parts, strict=True)],
        axis=1,
    )
    left, small = np.linalg.qr(columns)
    right, other = np.linalg.qr(rows.T)
    u, s, v = np.linalg.svd(small @ other.T)
    rounding = s[:1].sum() * max(rows.shape[1], columns.shape[0]) * np.finfo(np.float64).eps
    root = np.sqrt(s[: min(rank, int((s > rounding).sum()))])
    down = np.zeros((rank, rows.shape[1]))
    up = np.zeros((columns.shape[0], rank))
    down[: len(root)] = root[:, None] * (v[: len(root)] @ right.T)
    up[:, : len(root)] = left @ u[:, : len(root)] * root
    return down.astype(np.float32), up.astype(np.float32)
