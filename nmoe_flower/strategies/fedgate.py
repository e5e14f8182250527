"""FedGate: federated averaging of the shared gate (Networked MoE, section III-C.3).

Gao et al. 2025, arXiv:2511.01743: "we use FedAvg to synchronize the parameters of gating networks";
a random 70 % of the clients train in every round.
"""

from collections.abc import Iterable, Mapping
from typing import Unpack

import numpy as np

from nmoe_flower.strategies.shortlisted import ShortlistedFedAvg
from nmoe_flower.strategies.stepped import SteppedFedAvg, SteppedOptions

__all__ = ["FedGate"]


class FedGate(ShortlistedFedAvg, SteppedFedAvg):
    """FedAvg of the gate over exactly ``round(0.7 N)`` clients per round, drawn from the seed.

    The client trains the gate it is sent on held-out data of its own with the extractor and every
    expert frozen, its gradients normalised, and returns the gate's weights.

    With ``shortlists`` a client is sent, and returns, the rows of its shortlist in place of those
    of all experts.

    Args:
        shortlists: Ids of the experts each client knows, by partition; None: all.
        per_expert: Names of the arrays with a row per expert.
        fraction_train: The paper's 70 %; the only default that differs from FedAvg's.
        **options: What ``SteppedFedAvg``, ``StreamingFedAvg`` and FedAvg take. With one local step
            per round and ``server_optimizer=AdamW()`` the gate is trained by AdamW on the clients'
            mean gradient.
    """

    purpose = "gate"

    def __init__(
        self,
        *,
        shortlists: Mapping[int, np.ndarray] | None = None,
        per_expert: Iterable[str] = ("head.weight", "head.bias", "noise.weight"),
        **options: Unpack[SteppedOptions],
    ) -> None:
        options.setdefault("fraction_train", 0.7)
        super().__init__(shortlists=shortlists, per_expert=per_expert, **options)
