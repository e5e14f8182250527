"""The first system: three stages, the controls, and their evaluation.

Gao et al. 2025, arXiv:2511.01743, Fig. 2.
"""

from nmoe_flower.pipeline.networked.control import train_controls
from nmoe_flower.pipeline.networked.evaluate import evaluate
from nmoe_flower.pipeline.networked.expert import train_experts
from nmoe_flower.pipeline.networked.extractor import (
    ask_initial,
    asks_initial,
    given_weights,
    hand_out_extractor,
    stage_1_strategy,
    train_extractor,
)
from nmoe_flower.pipeline.networked.gate import (
    GateTrainer,
    federate_gate,
    train_gates,
    trainer_of,
)
from nmoe_flower.pipeline.networked.head import train_head
from nmoe_flower.pipeline.networked.sums import (
    gather_sums,
    leave_sums,
    solved_from_sums,
    sums_told,
)

__all__ = [
    "GateTrainer",
    "ask_initial",
    "asks_initial",
    "evaluate",
    "federate_gate",
    "gather_sums",
    "given_weights",
    "hand_out_extractor",
    "leave_sums",
    "solved_from_sums",
    "stage_1_strategy",
    "sums_told",
    "train_controls",
    "train_experts",
    "train_extractor",
    "train_gates",
    "train_head",
    "trainer_of",
]
