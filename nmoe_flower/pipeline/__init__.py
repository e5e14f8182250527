"""The pipeline of the Networked MoE: three stages, the controls, the evaluation.

Gao et al. 2025, arXiv:2511.01743, Fig. 2. A finished stage is checkpointed and never repeated; a
run that was killed goes on inside the stage it was in.
"""

from collections.abc import Callable
from typing import Any

from nmoe_flower.pipeline.alignment.evaluate import evaluate_aligned
from nmoe_flower.pipeline.alignment.train import train_aligned
from nmoe_flower.pipeline.exchanges import SECONDS_PER_EXCHANGE, exchanges
from nmoe_flower.pipeline.holdings import Holding, check_unchanged, holdings
from nmoe_flower.pipeline.networked.control import train_controls
from nmoe_flower.pipeline.networked.evaluate import evaluate
from nmoe_flower.pipeline.networked.expert import train_experts
from nmoe_flower.pipeline.networked.extractor import train_extractor
from nmoe_flower.pipeline.networked.gate import train_gates
from nmoe_flower.pipeline.networked.head import train_head
from nmoe_flower.pipeline.run import Answered, Journal, Run
from nmoe_flower.pipeline.stages import ALIGNED_STAGES, STAGES

__all__ = [
    "ALIGNED_STAGES",
    "SECONDS_PER_EXCHANGE",
    "STAGES",
    "Answered",
    "Holding",
    "Journal",
    "Run",
    "check_unchanged",
    "evaluate",
    "evaluate_aligned",
    "exchanges",
    "holdings",
    "run_pipeline",
    "train_aligned",
    "train_controls",
    "train_experts",
    "train_extractor",
    "train_gates",
    "train_head",
]


def run_pipeline(run: Run, *, announce: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run every stage that is not finished yet; return the content of ``results.json``.

    Raises:
        CheckpointError: The run is resumed, and a client holds other data than before.
        RoundError: A stage did not gather what it needs.
    """
    run.connect()
    if run.resumed is not None:
        check_unchanged(run)
    aligned = run.config.run.system == "aligned"
    for name, stage in (ALIGNED_STAGES if aligned else STAGES).items():
        if name in run.stages:
            continue
        announce(name)
        stage(run)
        run.stages.append(name)
        run.save(f"{name}/done")
    announce("evaluation")
    return evaluate_aligned(run) if aligned else evaluate(run)
