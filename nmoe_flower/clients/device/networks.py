"""The networks of a client: fresh ones, the same on every client, and one of a kind per process.

A process serves many clients in turn. Building a network costs more than loading weights into it,
so the ``shared_`` ones are built once and hold the weights that were loaded last.
"""

from functools import lru_cache

import torch

from nmoe_flower.config import Config
from nmoe_flower.models import Classifier, Contrastive, Expert, Projector, configured_extractor
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import seeded

__all__ = [
    "fresh_classifier",
    "fresh_contrastive",
    "fresh_head",
    "initial_seed",
    "shared_classifier",
    "shared_contrastive",
]

Shape = tuple[int, int, int]  # channels, height, width of an image


def initial_seed(config: Config, part: str) -> int:
    """The seed of a part's initial weights; no client's id is in it."""
    return derive_seed(config.run.seed, "initial", part)


def fresh_head(config: Config, latent_dim: int, num_classes: int) -> Expert:
    """A head of stage 1: linear, or shaped as an expert (``extractor.head``)."""
    hidden = config.expert.hidden if config.extractor.head == "expert" else ()
    return Expert(latent_dim, num_classes, hidden=hidden)


def fresh_classifier(
    config: Config, image_shape: Shape, num_classes: int, device: torch.device
) -> Classifier:
    """FedCE's network at its initial weights."""
    with seeded(initial_seed(config, "extractor")):
        body = configured_extractor(config, image_shape)
        head = fresh_head(config, body.latent_dim, num_classes)
    network = Classifier(body, head).to(device)
    return network.to(memory_format=torch.channels_last).eval()


def fresh_contrastive(config: Config, image_shape: Shape, device: torch.device) -> Contrastive:
    """FedSC's network at its initial weights."""
    contrast = config.contrast
    with seeded(initial_seed(config, "extractor")):
        body = configured_extractor(config, image_shape)
        projector = Projector(
            body.latent_dim, contrast.dim, hidden=contrast.hidden, norm=contrast.projector_norm
        )
    network = Contrastive(body, projector).to(device)
    return network.to(memory_format=torch.channels_last).eval()


shared_classifier = lru_cache(maxsize=4)(fresh_classifier)
shared_contrastive = lru_cache(maxsize=4)(fresh_contrastive)
