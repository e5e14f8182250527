"""The stages of the pipeline, in order; each a function of the run, callable alone."""

from collections.abc import Callable

from nmoe_flower.pipeline.alignment.train import train_aligned, train_first
from nmoe_flower.pipeline.networked.control import train_controls
from nmoe_flower.pipeline.networked.expert import train_experts
from nmoe_flower.pipeline.networked.extractor import train_extractor
from nmoe_flower.pipeline.networked.gate import train_gates
from nmoe_flower.pipeline.networked.head import train_head
from nmoe_flower.pipeline.run import Run

__all__ = ["ALIGNED_STAGES", "STAGES"]

STAGES: dict[str, Callable[[Run], None]] = {
    "extractor": train_extractor,
    "head": train_head,
    "experts": train_experts,
    "gates": train_gates,
    "controls": train_controls,
}

ALIGNED_STAGES: dict[str, Callable[[Run], None]] = {
    "extractor": train_first,
    "alignment": train_aligned,
}
