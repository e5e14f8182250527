"""The language system: a given model, an adapter per device, gates over them, and their rivals."""

from nmoe_flower.pipeline.language.control import train_adapter_controls
from nmoe_flower.pipeline.language.evaluate import evaluate_language
from nmoe_flower.pipeline.language.expert import train_adapters
from nmoe_flower.pipeline.language.gate import state_gates, train_text_gates

__all__ = [
    "evaluate_language",
    "state_gates",
    "train_adapter_controls",
    "train_adapters",
    "train_text_gates",
]
