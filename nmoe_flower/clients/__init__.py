"""The client halves, one handler per action; strategies hold the server halves.

``Contrast`` and ``StateMemory`` are for other people's apps: the client's part of ``FedSC``.
"""

from nmoe_flower.clients.plugin.fedsc_contrast import Contrast, Memory, StateMemory

__all__ = ["Contrast", "Memory", "StateMemory"]
