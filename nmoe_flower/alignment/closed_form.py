"""A gate in closed form, whose rows are statistics that travel with their experts.

With one class per client, averaging gates that were trained at home forgets whatever the others
know. Ridge regression from latents to experts needs sums only, and sums do not care who holds what:
``W = (R / n + ridge I)^-1 (pi_e m_e)``, R the second moment of all clients' latents, m_e the mean
of the latents that trained expert e, pi_e their share.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.alignment.arrays import Floats
from nmoe_flower.errors import CheckpointError, ReplyError

__all__ = ["ClosedFormGate"]


class ClosedFormGate:
    """Second moment of frozen latents, and decayed sums per expert.

    Args:
        experts: Number of experts.
        decay: What stays of an expert's sums in a round in which it is trained, 0 to 1: an expert
            that moves on to other data takes its row with it.
        ridge: Damping, relative to the mean diagonal of the second moment.
        sharpness: Scores are near 0 and 1; this times them are the gate's logits.
    """

    def __init__(
        self, experts: int, *, decay: float = 0.9, ridge: float = 0.01, sharpness: float = 10.0
    ) -> None:
        self.experts, self.decay, self.ridge, self.sharpness = experts, decay, ridge, sharpness
        self.moment: Floats = np.zeros((0, 0))
        self.known: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.sums: Floats = np.zeros((experts, 0))
        self.counts: Floats = np.zeros(experts)

    def check(self, packed: npt.NDArray[Any] | None, sums: npt.NDArray[Any], rows: int) -> None:
        """Refuse statistics of wrong shapes; ``sums`` is [rows, D + 2], the count last.

        Raises:
            ReplyError: A shape is wrong, or a number impossible; the text says which.
        """
        width = sums.shape[1] - 1 if sums.ndim == 2 else 0
        if sums.ndim != 2 or len(sums) != rows or (len(self.moment) or width) != width:
            raise ReplyError(f"gate sums of shape {sums.shape}; wanted [{rows}, D + 2]")
        size = width * (width + 1) // 2
        if packed is not None and packed.shape != (size,):
            raise ReplyError(f"packed second moment of shape {packed.shape}; wanted [{size}]")
        if not np.isfinite(sums).all() or (sums[:, -1] < 0).any():
            raise ReplyError("gate sums are not finite, or a count is negative")
        if packed is not None and not np.isfinite(packed).all():
            raise ReplyError("the packed second moment is not finite")
        if packed is not None and packed[-1] < 0:
            raise ReplyError(f"the packed second moment counts {packed[-1]:g} samples")

    def meet(self, client: int, packed: npt.NDArray[Any], width: int) -> None:
        """Add a client's second moment sum, its upper triangle [D1 (D1 + 1) / 2], once.

        Raises:
            ReplyError: The sum over the clients would not be finite; nothing was changed.
        """
        if client in self.known:
            return
        upper = np.zeros((width, width))
        upper[np.triu_indices(width)] = packed
        with np.errstate(over="ignore"):
            whole = upper + np.triu(upper, 1).T
            moment = whole + (self.moment if len(self.moment) else 0.0)
        if not np.isfinite(moment).all():
            raise ReplyError("its second moment is too large to be added to those of others")
        self.moment = moment
        self.known = np.append(self.known, client)

    def update(self, sums: Mapping[int, npt.NDArray[Any]]) -> None:
        """Take in a round: per trained expert the sum over its holders, [D + 2]."""
        for expert, row in sums.items():
            if not self.sums.shape[1]:
                self.sums = np.zeros((self.experts, len(row) - 1))
            self.sums[expert] = self.decay * self.sums[expert] + row[:-1]
            self.counts[expert] = self.decay * self.counts[expert] + row[-1]

    @property
    def is_solvable(self) -> bool:
        """Whether some client has had a sample, and some expert been trained."""
        return len(self.moment) > 0 and self.moment[-1, -1] > 0 and self.counts.sum() > 0

    def solve(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The gate's weights [E, D] and biases [E]; an expert never trained is never chosen."""
        total = self.moment[-1, -1]  # latents end in a constant 1
        second = self.moment / total
        damping = self.ridge * np.trace(second) / len(second)
        system = second + damping * np.eye(len(second))
        solved = np.linalg.solve(system, (self.sums / self.counts.sum()).T).T
        solved[:, -1] -= self.counts == 0
        scaled = (self.sharpness * solved).astype(np.float32)
        return scaled[:, :-1], scaled[:, -1]

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that changes, as arrays."""
        return {
            "moment": self.moment.copy(),
            "known": self.known.copy(),
            "sums": self.sums.copy(),
            "counts": self.counts.copy(),
        }

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a `state`.

        Raises:
            CheckpointError: Keys or the number of experts do not fit; nothing was changed.
        """
        if set(state) != set(self.state()) or state["counts"].shape != (self.experts,):
            raise CheckpointError(f"gate state does not fit: keys {sorted(state)}")
        self.moment, self.known = np.array(state["moment"]), np.array(state["known"])
        self.sums, self.counts = np.array(state["sums"]), np.array(state["counts"])
