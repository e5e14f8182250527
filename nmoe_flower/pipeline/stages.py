"""The stages of each system, in order, and the run through them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nmoe_flower.catalogue import BASELINES
from nmoe_flower.pipeline.alignment import evaluate_alignment, train_alignment
from nmoe_flower.pipeline.ask import check_unchanged
from nmoe_flower.pipeline.baseline import evaluate_baseline, train_baseline
from nmoe_flower.pipeline.language import (
    evaluate_language,
    train_adapter_controls,
    train_adapters,
    train_text_gates,
)
from nmoe_flower.pipeline.networked import (
    evaluate,
    train_controls,
    train_experts,
    train_extractor,
    train_gates,
    train_head,
)
from nmoe_flower.pipeline.run import Run

__all__ = ["SYSTEMS", "System", "run_pipeline"]


@dataclass(frozen=True)
class System:
    """How one system is trained and measured.

    Attributes:
        stages: By name, in order: each a function of the run that leaves its `Artifacts`. Without
            stage 1, if the run has none (`Config.has_stage_1`).
        evaluate: After all of them; returns the content of ``results.json``.
    """

    stages: Mapping[str, Callable[[Run], None]]
    evaluate: Callable[[Run], dict[str, Any]]


SYSTEMS = {
    "networked": System(
        {
            "extractor": train_extractor,
            "head": train_head,
            "experts": train_experts,
            "gates": train_gates,
            "controls": train_controls,
        },
        evaluate,
    ),
    "aligned": System(
        {
            "extractor": train_extractor,
            "alignment": train_alignment,
        },
        evaluate_alignment,
    ),
    "language": System(
        {
            "experts": train_adapters,
            "gates": train_text_gates,
            "controls": train_adapter_controls,
        },
        evaluate_language,
    ),
    **dict.fromkeys(
        BASELINES,
        System(
            {
                "extractor": train_extractor,
                "baseline": train_baseline,
            },
            evaluate_baseline,
        ),
    ),
}


def run_pipeline(run: Run, *, until: str = "") -> dict[str, Any] | None:
    """Run every stage that is not finished yet; return the content of ``results.json``.

    Args:
        run: New, or restored from a checkpoint.
        until: Name of the stage to stop after, with a checkpoint and without results (None);
            empty: run all of them.

    Raises:
        CheckpointError: The run is resumed, and a client holds other data than before.
        RoundError: A stage did not gather what it needs.
    """
    run.connect()
    if run.resumed is not None:
        check_unchanged(run)
    system = SYSTEMS[run.config.run.system]
    for name, stage in system.stages.items():
        if stage is train_extractor and not run.config.has_stage_1:
            continue
        if name not in run.stages:
            stage(run)
            run.stages.append(name)
            run.save(f"{name}/done")
        if name == until:
            return None
    return system.evaluate(run)
