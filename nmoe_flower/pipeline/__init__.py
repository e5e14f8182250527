"""The server's way through a run: stage after stage, then the evaluation.

A finished stage is checkpointed and never repeated; a run that was killed goes on inside the stage
it was in.
"""

from nmoe_flower.pipeline.alignment import rehearse_alignment
from nmoe_flower.pipeline.artifacts import Artifacts
from nmoe_flower.pipeline.ask import Holding, gather, holdings
from nmoe_flower.pipeline.exchanges import SECONDS_PER_EXCHANGE, exchanges
from nmoe_flower.pipeline.language import state_gates
from nmoe_flower.pipeline.networked import (
    ask_initial,
    asks_initial,
    gather_sums,
    given_weights,
    leave_sums,
    stage_1_strategy,
    sums_told,
)
from nmoe_flower.pipeline.rounds import federate
from nmoe_flower.pipeline.run import Answered, Journal, Run
from nmoe_flower.pipeline.stages import SYSTEMS, run_pipeline

__all__ = [
    "SECONDS_PER_EXCHANGE",
    "SYSTEMS",
    "Answered",
    "Artifacts",
    "Holding",
    "Journal",
    "Run",
    "ask_initial",
    "asks_initial",
    "exchanges",
    "federate",
    "gather",
    "gather_sums",
    "given_weights",
    "holdings",
    "leave_sums",
    "rehearse_alignment",
    "run_pipeline",
    "stage_1_strategy",
    "state_gates",
    "sums_told",
]
