"""What the server decided in a round, with the numbers behind it: a line of the audit each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Decision"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Decision:
    """Who trains what in a round, and why.

    Attributes:
        round: Its number.
        chosen: bool [clients, experts].
        online: bool [clients].
        capacity: int [clients]: how many experts each could take.
        fitness: [clients, experts], as it was.
        usage: [experts], relative.
        deficits: [experts], in mean loads.
        desirability: [clients, experts].
    """

    round: int
    chosen: Bools
    online: Bools
    capacity: Ints
    fitness: Floats
    usage: Floats
    deficits: Floats
    desirability: Floats

    def why(self, client: int) -> dict[str, Any]:
        """One client's line of the audit log."""
        held = self.chosen[client]
        line: dict[str, Any] = {
            "client": client,
            "experts": np.flatnonzero(held).tolist(),
            "capacity": int(self.capacity[client]),
        }
        if not held.any():
            idle = "capacity 0" if self.online[client] else "offline"
            return line | {"why": "no load left" if self.capacity[client] else idle}
        terms = {"fitness": self.fitness[client], "desirability": self.desirability[client]}
        terms |= {"usage": self.usage, "deficit": self.deficits}
        rank = (self.desirability[client] > self.desirability[client][held].min()).sum()
        passed = int(rank) - int(held.sum()) + 1  # better experts that went to others
        return line | {
            **{name: values[held].round(4).tolist() for name, values in terms.items()},
            "passed-over": max(passed, 0),
        }
