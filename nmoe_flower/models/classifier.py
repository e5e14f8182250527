"""The end-to-end network of stage 1: an extractor and the head it is later split from."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nmoe_flower.models.expert import Expert
from nmoe_flower.models.extractor import Extractor

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """``head(extractor(images))``: images [B, channels, H, W] to logits [B, C].

    After training it is split: the extractor is frozen and shared, the head may start the experts.
    """

    def __init__(self, extractor: Extractor, head: Expert) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        logits: Tensor = self.head(self.extractor(images))
        return logits

    def parts(self, *, with_head: bool) -> Mapping[str, torch.Tensor]:
        """The tensors that travel, by name: the whole network, or the extractor alone."""
        tensors = self.state_dict()
        if with_head:
            return tensors
        return {name: value for name, value in tensors.items() if name.startswith("extractor.")}
