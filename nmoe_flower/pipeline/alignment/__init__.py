"""The second system: a mixture on the server whose experts are aligned with clients.

Chen et al. 2025, arXiv:2507.05685.
"""

from nmoe_flower.pipeline.alignment.evaluate import evaluate_alignment
from nmoe_flower.pipeline.alignment.train import rehearse_alignment, train_alignment

__all__ = ["evaluate_alignment", "rehearse_alignment", "train_alignment"]
