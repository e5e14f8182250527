"""Stage 2: the personal experts."""

from typing import Literal

from pydantic import Field

from nmoe_flower.config.section import Section, Widths

__all__ = ["ExpertConfig"]


class ExpertConfig(Section):
    """Stage 2: the personal experts."""

    kind: Literal["adapter", "ffn"] = Field(
        "adapter",
        description="of language: low-rank, or a network beside each feed-forward part",
    )
    init: Literal["head", "fine-tune", "scratch"] = Field(
        "fine-tune", description="reuse the stage-1 head as it is, fine-tune it, or start anew"
    )
    hidden: Widths = Field((512, 256, 128), description="hidden widths; also those of the head")
    epochs: int = Field(10, ge=0, description="over the client's cached latents")
    batch_size: int = Field(64, ge=1, description="latents per step")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's peak, falling along a cosine")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share spread over all classes")
    logit_adjustment: float = Field(1.0, ge=0, description="times the client's log prior")
    sharing: Literal["weights", "latents", "none"] = Field(
        "weights",
        description="what leaves for stage 3: the expert, its answers to latents, or nothing",
    )
