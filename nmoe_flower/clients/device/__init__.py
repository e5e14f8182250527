"""What a device has of its own: its configuration, its images, its networks, its disk."""

from nmoe_flower.clients.device.alignment_mixture import (
    AlignmentClient,
    experts_of,
    fresh_body,
    fresh_mixture,
)
from nmoe_flower.clients.device.device import (
    CLIP,
    Device,
    device_of,
    finished_head,
    fresh_classifier,
    fresh_contrastive,
    fresh_head,
    initial_seed,
)
from nmoe_flower.clients.device.language import Language, language_of
from nmoe_flower.clients.device.latents import (
    check_given,
    in_passes,
    keep_head,
    latents_of,
    latents_of_tests,
    load_classifier,
    predict,
    received_classifier,
    said_to,
    source_of,
)
from nmoe_flower.clients.device.raw_latents import lower_rows
from nmoe_flower.clients.device.store import Store, Versions

__all__ = [
    "CLIP",
    "AlignmentClient",
    "Device",
    "Language",
    "Store",
    "Versions",
    "check_given",
    "device_of",
    "experts_of",
    "finished_head",
    "fresh_body",
    "fresh_classifier",
    "fresh_contrastive",
    "fresh_head",
    "fresh_mixture",
    "in_passes",
    "initial_seed",
    "keep_head",
    "language_of",
    "latents_of",
    "latents_of_tests",
    "load_classifier",
    "lower_rows",
    "predict",
    "received_classifier",
    "said_to",
    "source_of",
]
