"""The client halves, one handler per action; strategies hold the server halves.

What stands here is for other people's apps: ``Contrast`` is the client's part of ``FedSC``,
``answer_assigned`` that of ``ExpertAlignment``, ``PrivateMatrix`` a mod for any strategy.
"""

from nmoe_flower.clients.plugin import (
    Contrast,
    Memory,
    PrivateMatrix,
    StateMemory,
    Trained,
    answer_assigned,
)

__all__ = ["Contrast", "Memory", "PrivateMatrix", "StateMemory", "Trained", "answer_assigned"]
