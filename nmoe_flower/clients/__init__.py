"""The client halves, one handler per action; strategies hold the server halves.

For other people's apps ``Contrast`` is the client's part of ``FedSC``, ``answer_assigned`` that of
``ExpertAlignment``, ``PrivateMatrix`` a mod for any strategy, made of a ``MatrixRelease``.
``matrices_of`` and ``weights_of`` are how this app's own clients let matrices and weights leave:
plainly or privately.
"""

from nmoe_flower.clients.fedsc_matrices import matrices_of
from nmoe_flower.clients.plugin import (
    Contrast,
    MatrixRelease,
    Memory,
    PrivateMatrix,
    StateMemory,
    Trained,
    answer_assigned,
)
from nmoe_flower.clients.weights import weights_of

__all__ = [
    "Contrast",
    "MatrixRelease",
    "Memory",
    "PrivateMatrix",
    "StateMemory",
    "Trained",
    "answer_assigned",
    "matrices_of",
    "weights_of",
]
