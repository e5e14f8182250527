"""What DP-SGD cannot be combined with: all that lets one sample touch the gradient of another."""

from nmoe_flower.config.extractor import ExtractorConfig
from nmoe_flower.config.fedsc import ContrastConfig

__all__ = ["refusal"]


def refusal(extractor: ExtractorConfig, contrast: ContrastConfig) -> str | None:
    """Why these settings cannot be trained with DP-SGD, and what to set; None if they can."""
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
