"""FedSC, the other way to train the extractor: its loss, its views, its exchange of matrices.

Its section in a recipe is ``[contrast]``.
"""

from typing import Literal

from pydantic import Field

from nmoe_flower.config.section import Section

__all__ = ["FedSCConfig"]


class FedSCConfig(Section):
    """FedSC: the loss, the projector, the views, and how correlation matrices travel."""

    weight: float = Field(12.0, gt=0, description="of the uniformity term, on the unit ball")
    unbiased: bool = Field(True, description="negatives without a sample's own terms")
    running: float = Field(
        0.0, ge=0, lt=1, description="decay of the own matrix over batches and rounds; 0: one batch"
    )
    dim: int = Field(128, ge=2, le=2048, description="width of the projector's output")
    hidden: int = Field(512, ge=1, description="width of the projector's hidden layer")
    projector_norm: Literal["batch", "layer", "none"] = Field(
        "batch", description="in the projector, which is dropped after training"
    )
    exchange: Literal["merged", "two-phase"] = Field(
        "merged", description="matrices ride with the weights, or are asked for first (published)"
    )
    source: Literal["auto", "batches", "pass"] = Field(
        "auto", description="a matrix is made of the batches trained on, or of all own images"
    )
    share: Literal["samples", "schedule", "own"] = Field(
        "samples", description="weight of the own matrix: q_i, from 1 to 0.2, or 1 (no sharing)"
    )
    first: int = Field(
        0, ge=0, description="round of the first matrix; 0: 1, or after the warm-up if it is a pass"
    )
    refresh: int = Field(0, ge=0, description="rounds; 0: every round, or what the budget allows")
    view_size: int = Field(0, ge=0, le=1024, description="pixels; 0: the size of the images")
    crop: float = Field(0.2, ge=1e-3, le=1, description="smallest share of the area; 1: no crop")
    jitter: float = Field(0.4, ge=0, le=1, description="of brightness, contrast, saturation")
    hue: float = Field(0.1, ge=0, le=0.5, description="largest turn, of the full circle")
    grey: float = Field(0.2, ge=0, le=1, description="share of views without colour")
    noise: float = Field(
        0.2, ge=0, le=100, description="on features, in deviations; views of data.kind = features"
    )
    mask: float = Field(0.3, ge=0, lt=1, description="share of the features a view does not see")
    probe: Literal["pooled", "local", "none"] = Field(
        "pooled", description="watch by probes on everybody's images (simulation) or on own ones"
    )
    probe_images: int = Field(10000, ge=10, description="training images of a probe")
