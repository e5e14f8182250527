"""What is private, how much of it is spent, and what DP-SGD cannot be combined with."""

from typing import Literal

from pydantic import Field

from nmoe_flower.config.extractor import ExtractorConfig
from nmoe_flower.config.fedsc import FedSCConfig
from nmoe_flower.config.section import Section

__all__ = ["PrivacyConfig", "weights_refusal"]


class PrivacyConfig(Section):
    """Differential privacy of what leaves a client in stage 1.

    ``enabled`` covers FedSC's correlation matrices, ``weights`` the weights (FedSC and FedCE).
    Each has a budget of its own at ``delta``; together they cost the sum of both. ``tokens`` covers
    the histogram of tokens that a client of text tells once, for ``epsilon``.
    """

    enabled: bool = Field(
        False,
        description="add noise to correlation matrices, or to sums over latents, within a budget",
    )
    epsilon: float = Field(8.0, gt=0, description="of all matrices of a client together")
    delta: float = Field(1e-5, gt=0, lt=1, description="below 1 / images of a client")
    releases: int = Field(20, ge=1, description="matrices a client may send; sets the noise")
    adjacency: Literal["replace-one", "add-remove"] = Field(
        "replace-one", description="what neighbouring data sets differ in; see the docs"
    )
    secure: bool = Field(False, description="noise from the operating system; not reproducible")
    shrink: bool = Field(True, description="the server removes noise from the mean's spectrum")
    tokens: bool = Field(False, description="add noise to a client's histogram of tokens")
    tokens_clip: float = Field(
        10.0, gt=0, le=1e6, description="largest norm of a window's counts of tokens"
    )
    weights: bool = Field(False, description="train the extractor with DP-SGD (Opacus)")
    weights_epsilon: float = Field(8.0, gt=0, description="of the weights, beside epsilon")
    weights_clip: float = Field(1.0, gt=0, description="largest norm of a sample's gradient")
    weights_noise: float = Field(
        0.0, ge=0, description="over weights-clip; 0: the least with which all rounds are paid for"
    )

    @property
    def single_releases(self) -> int:
        """Releases that a client makes once, and pays together: of sums, of a histogram."""
        return max(1, self.enabled + self.tokens)


def weights_refusal(extractor: ExtractorConfig, contrast: FedSCConfig) -> str | None:
    """Why these settings cannot be trained with DP-SGD, and what to set; None if they can.

    Refused is all that lets one sample touch the gradient of another.
    """
    if extractor.is_given:
        return (
            f"covers what stage 1 trains, and extractor.method = {extractor.method} trains "
            "nothing: use false"
        )
    if extractor.is_adapted:
        return (
            "needs gradients of single samples, which Opacus has for whole layers and not for "
            f"adapters: extractor.adapter-rank must be 0, got {extractor.adapter_rank}"
        )
    if extractor.norm == "batch":
        return (
            "needs gradients of single samples, and extractor.norm = batch mixes the samples of a "
            "batch: use group-ws, group or frozen"
        )
    if extractor.max_grad_norm > 0:
        return (
            "clips the gradient of every sample (privacy.weights-clip): extractor.max-grad-norm "
            f"must be 0, got {extractor.max_grad_norm:g}"
        )
    if extractor.logit_adjustment > 0:
        return (
            "must not see the client's class frequencies, which are of all its samples: "
            f"extractor.logit-adjustment must be 0, got {extractor.logit_adjustment:g}"
        )
    if extractor.method != "fedsc":
        return None
    if contrast.projector_norm == "batch":
        return (
            "needs gradients of single samples, and contrast.projector-norm = batch mixes the "
            "samples of a batch: use layer or none"
        )
    if contrast.source == "batches":
        return (
            "needs matrices of a pass over all own images, not of DP-SGD's batches: set "
            "contrast.source = pass or auto, got batches"
        )
    if contrast.share != "samples":
        return (
            "uses the mean matrix of all clients as it is: contrast.share must be samples, got "
            f"{contrast.share}"
        )
    if contrast.running > 0:
        return f"has no own matrix of a batch: contrast.running must be 0, got {contrast.running:g}"
    return None
