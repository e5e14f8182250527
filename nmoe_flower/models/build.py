"""What a configuration describes: extractor and gates, one place for everyone who builds them."""

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from nmoe_flower.backbone_files import cache_root, given_source
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.models.adapted import AdaptedExtractor
from nmoe_flower.models.extractor import Extractor, StagedExtractor, build_extractor
from nmoe_flower.models.gate import DiscriminantGate, Gate, Router, Routing
from nmoe_flower.models.given import TextWish, Wish, frozen_backbone, given_extractor
from nmoe_flower.models.metric_gate import MetricGate
from nmoe_flower.models.own_network import own_network
from nmoe_flower.models.standard import add_standard
from nmoe_flower.own_code import call_own, is_own, load_own

__all__ = [
    "Backbone",
    "TrainedGate",
    "check_backbone",
    "check_gate",
    "configured_extractor",
    "configured_gate",
    "embedding_dim",
    "finished_extractor",
    "own_gate",
    "trained_gate",
]

_KEYS = {"image": "backbone", "norm": "norm", "stem": "stem", "width": "widths", "widths": "widths"}
"""The key that an error of `build_extractor` is about, by the error's first word."""


TrainedGate = Gate | DiscriminantGate | MetricGate
"""What stage 3 leaves weights of."""


class Backbone(Protocol):
    """What ``extractor.backbone = "package.module:Name"`` must name: such a ``torch.nn.Module``.

    It is built with torch's global stream at the run's seed, the same on every client, so what is
    drawn while it is built may come from there. Its state travels: floating-point tensors.

    Attributes:
        latent_dim: D, the length of a latent.
    """

    latent_dim: int

    def __init__(self, *, in_channels: int, image_size: tuple[int, int]) -> None:
        """Build it for images [B, in_channels, *image_size]."""

    def forward(self, images: Tensor) -> Tensor:
        """Latents [B, D] in float32 of images [B, C, H, W], normalised to about -2..2."""


def configured_extractor(config: Config, image_shape: Sequence[int]) -> Extractor:
    """Build ``extractor.*`` for images of ``image_shape`` (C, H, W), at fresh or given weights.

    Raises:
        ConfigError: An option is unknown, the images are too small, a width has no 8 groups, a
            backbone of one's own cannot be built, or given weights are missing or damaged.
    """
    extractor = config.extractor
    if extractor.stands_on_given:
        wish = Wish(
            extractor.backbone,
            weights=extractor.weights,
            resolution=extractor.resolution,
            cut=extractor.cut,
            mirror=extractor.mirror,
            in_channels=image_shape[0],
            image_size=(image_shape[1], image_shape[2]),
            text=_text_wish(config) if config.data.kind == "text" else None,
        )
        if not extractor.is_adapted:
            return given_extractor(wish)
        with torch.device("cpu"):  # as the backbone
            return AdaptedExtractor(
                frozen_backbone(wish),
                blocks=extractor.adapter_blocks,
                rank=extractor.adapter_rank,
                scale=extractor.adapter_scale,
            )
    if is_own(extractor.backbone):
        return _own_extractor(extractor.backbone, image_shape)
    try:
        built = build_extractor(
            extractor.backbone,
            in_channels=image_shape[0],
            image_size=(image_shape[1], image_shape[2]),
            norm=extractor.norm,
            widths=extractor.widths or None,
            stem=extractor.stem or None,
            pool=extractor.pool,
        )
    except ConfigError as error:
        key = _KEYS.get(str(error).split()[0], "backbone")
        raise ConfigError(f"extractor.{key}: {error}") from None
    if isinstance(built, StagedExtractor):
        built.mirror = extractor.mirror
    return built


def _text_wish(config: Config) -> TextWish:
    """What is asked of a backbone that reads labelled text."""
    source = config.text.tokenizer or given_source(
        config.extractor.backbone, config.extractor.weights
    )
    return TextWish(
        config.text.window,
        bytes=source in ("", "bytes"),
        widths=config.extractor.widths,
        cache=cache_root(config.data.cache_dir or None),
    )


def finished_extractor(config: Config, image_shape: Sequence[int]) -> Extractor:
    """Build the extractor as all stages after stage 1 see it: with what sums make of its latents.

    That is ``extractor.standard``, if the stage head asks for sums; its ``latent_dim`` is then
    ``head.components``, unless that is 0.

    Raises:
        ConfigError: As `configured_extractor`, or there are too many components.
    """
    extractor = configured_extractor(config, image_shape)
    if config.head.standardises:
        unit = config.privacy.enabled
        add_standard(extractor, components=config.head.components, unit=unit)
    return extractor


def trained_gate(
    config: Config, latent_dim: int, names: Collection[str], *, num_experts: int
) -> TrainedGate:
    """Build the gate whose trained weights have these names; most are as ``gate.*`` says."""
    if set(names) == set(MetricGate.NAMES):
        dim = embedding_dim(config, latent_dim)
        return MetricGate(latent_dim, num_experts, dim=dim, top_k=config.gate.top_k)
    if set(names) == set(DiscriminantGate.NAMES):
        return DiscriminantGate(latent_dim, num_experts, top_k=config.gate.top_k)
    return configured_gate(config, latent_dim, num_experts=num_experts)


def configured_gate(config: Config, latent_dim: int, *, num_experts: int) -> Gate:
    """Build ``gate.*`` for latents of ``latent_dim`` numbers, at fresh weights."""
    gate = config.gate
    return Gate(latent_dim, num_experts, hidden=gate.hidden, top_k=gate.top_k, noisy=gate.noisy)


def embedding_dim(config: Config, latent_dim: int) -> int:
    """Numbers of an expert's embedding: as configured, and no more than a latent has."""
    return min(config.gate.embedding, latent_dim)


def _own_extractor(name: str, image_shape: Sequence[int]) -> Extractor:
    key = "extractor.backbone"
    size = (image_shape[1], image_shape[2])
    module = own_network(key, name, in_channels=image_shape[0], image_size=size)
    width = getattr(module, "latent_dim", None)
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ConfigError(
            f"{key} = {name}: latent_dim is {width!r}; allowed: the length of a latent, 1 or more"
        )
    return module  # type: ignore[return-value]


def check_backbone(config: Config, body: nn.Module, images: Tensor) -> None:
    """Run images [B, C, H, W] through a backbone, and refuse what is no latent.

    Raises:
        ConfigError: It raises something, or its answer has another shape, dtype, or is not finite.
    """
    key, name = "extractor.backbone", config.extractor.backbone
    latents = call_own(key, name, body.train(), images)
    wanted = (len(images), int(body.latent_dim))  # type: ignore[arg-type]
    if not isinstance(latents, Tensor) or tuple(latents.shape) != wanted:
        got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ConfigError(f"{key} = {name}: images {tuple(images.shape)} give {got}, not {wanted}")
    if latents.dtype != torch.float32 or not bool(latents.isfinite().all()):
        raise ConfigError(f"{key} = {name}: latents must be finite float32, got {latents.dtype}")
    for part, tensor in body.state_dict().items():
        if tensor.is_complex() or tensor.is_quantized:
            raise ConfigError(f"{key} = {name}: {part} is {tensor.dtype}, which cannot travel")


def own_gate(name: str, *, own_id: int, num_experts: int, latent_dim: int, top_k: int) -> Router:
    """Build a gate of one's own: ``Name(own_id=, num_experts=, latent_dim=, top_k=)``.

    Raises:
        ConfigError: It cannot be imported or built, or cannot route.
    """
    key = "gate.methods"
    gate = call_own(
        key,
        name,
        load_own(key, name),
        own_id=own_id,
        num_experts=num_experts,
        latent_dim=latent_dim,
        top_k=top_k,
    )
    if not isinstance(gate, Router):
        raise ConfigError(f"{key} = {name} has no method route; see models.Router")
    return gate


def check_gate(name: str, gate: Router, latents: Tensor, *, num_experts: int) -> None:
    """Route latents [B, D] by a gate of one's own, and refuse what is no routing.

    Raises:
        ConfigError: It raises something, or its ids or weights are not what they must be.
    """
    key = "gate.methods"
    generator = torch.Generator().manual_seed(0)
    routing = call_own(key, name, gate.route, latents, generator=generator)
    if not isinstance(routing, Routing):
        raise ConfigError(f"{key} = {name}: route gave {type(routing).__name__}, not a Routing")
    ids, weights = routing.expert_ids, routing.weights
    if ids.shape != weights.shape or ids.ndim != 2 or len(ids) != len(latents) or not ids.numel():
        raise ConfigError(
            f"{key} = {name}: expert_ids {tuple(ids.shape)} and weights {tuple(weights.shape)} "
            f"must both be [{len(latents)}, K]"
        )
    if ids.dtype != torch.int64 or int(ids.min()) < 0 or int(ids.max()) >= num_experts:
        raise ConfigError(f"{key} = {name}: expert_ids must be int64 from 0 to {num_experts - 1}")
    if bool((ids.sort(dim=1).values.diff(dim=1) == 0).any()):
        raise ConfigError(f"{key} = {name}: expert_ids of a row must differ, got {ids[0].tolist()}")
    sums = weights.sum(dim=1)
    if bool((weights < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise ConfigError(
            f"{key} = {name}: weights of a row must be 0 or more and sum to 1, got "
            f"{weights[0].tolist()}"
        )
