"""Client halves for other people's apps: any encoder, any mixture, any reply."""

from nmoe_flower.clients.plugin.alignment_answer import Trained, answer_assigned
from nmoe_flower.clients.plugin.fedsc_contrast import Contrast, Memory, StateMemory
from nmoe_flower.clients.plugin.private_matrix import PrivateMatrix
from nmoe_flower.clients.private import MatrixRelease

__all__ = [
    "Contrast",
    "MatrixRelease",
    "Memory",
    "PrivateMatrix",
    "StateMemory",
    "Trained",
    "answer_assigned",
]
