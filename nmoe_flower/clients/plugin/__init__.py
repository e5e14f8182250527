"""Client halves for other people's apps: any encoder, any mixture, any reply."""

from nmoe_flower.clients.plugin.alignment_answer import Trained, answer_assigned
from nmoe_flower.clients.plugin.fedsc_contrast import Contrast, Memory, StateMemory
from nmoe_flower.clients.plugin.private_matrix import PrivateMatrix

__all__ = ["Contrast", "Memory", "PrivateMatrix", "StateMemory", "Trained", "answer_assigned"]
