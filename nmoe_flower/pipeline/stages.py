"""The stages of each system, in order, and the run through them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from nmoe_flower.catalogue import BASELINES
from nmoe_flower.errors import RoundError
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

__all__ = ["SYSTEMS", "Stage", "System", "run_pipeline"]

_NOT_FINITE = "NaN or infinit"  # how every error about such numbers calls them


class Stage(NamedTuple):
    """One stage of a system.

    Attributes:
        train: A function of the run that leaves its `Artifacts`.
        rate: The key to lower where training diverges; empty: the stage's own errors say it.
    """

    train: Callable[[Run], None]
    rate: str = ""


@dataclass(frozen=True)
class System:
    """How one system is trained and measured.

    Attributes:
        stages: By name, in order. Without stage 1, if the run has none (`Config.has_stage_1`).
        evaluate: After all of them; returns the content of ``results.json``.
    """

    stages: Mapping[str, Stage]
    evaluate: Callable[[Run], dict[str, Any]]


_EXTRACTOR = Stage(train_extractor, "extractor.learning-rate")
SYSTEMS = {
    "networked": System(
        {
            "extractor": _EXTRACTOR,
            "head": Stage(train_head, "head.learning-rate"),
            "experts": Stage(train_experts, "expert.learning-rate"),
            "gates": Stage(train_gates, "gate.learning-rate"),
            "controls": Stage(train_controls, "run.control-learning-rate"),
        },
        evaluate,
    ),
    "aligned": System(
        {
            "extractor": _EXTRACTOR,
            "alignment": Stage(train_alignment, "alignment.learning-rate"),
        },
        evaluate_alignment,
    ),
    "language": System(
        {
            "experts": Stage(train_adapters, "adapter.learning-rates"),
            "gates": Stage(train_text_gates, "gate.learning-rate"),
            "controls": Stage(train_adapter_controls, "adapter.averaged-learning-rates"),
        },
        evaluate_language,
    ),
    **dict.fromkeys(
        BASELINES,
        System(
            {
                "extractor": _EXTRACTOR,
                "baseline": Stage(train_baseline),
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
        if stage is _EXTRACTOR and not run.config.has_stage_1:
            continue
        if name not in run.stages:
            _train(stage, run)
            run.stages.append(name)
            run.save(f"{name}/done")
        if name == until:
            return None
    return system.evaluate(run)


def _train(stage: Stage, run: Run) -> None:
    """Train a stage; an error about numbers that are not finite says what to lower.

    Raises:
        RoundError: The stage did not gather what it needs.
    """
    try:
        stage.train(run)
    except RoundError as error:
        if not stage.rate or _NOT_FINITE not in str(error):
            raise
        value = run.config.flat()[stage.rate]
        rate = f"{stage.rate} = {value}" if value else stage.rate
        raise RoundError(f"{error}; if training has diverged, lower {rate}") from error
