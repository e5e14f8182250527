"""The language model that a configuration gives: opened, frozen, ready for adapters."""

import torch

from nmoe_flower.config import Config
from nmoe_flower.data import cache_root
from nmoe_flower.models import AdaptedLM, open_language_model
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import seeded, use_bf16

__all__ = ["computes_in_bf16", "configured_language"]


def configured_language(config: Config, vocab_size: int) -> tuple[AdaptedLM, bytes]:
    """Open the configured backbone and freeze it; returns it with the hash of its weights.

    Args:
        config: The run's configuration.
        vocab_size: Number of tokens of the text.

    Raises:
        ConfigError: A key asks for what this backbone has not; or it cannot be opened.
    """
    settings, bf16 = config.adapter, computes_in_bf16(config)
    with seeded(derive_seed(config.run.seed, "initial", "extractor")):
        opened = open_language_model(
            config.extractor.backbone,
            config.extractor.weights,
            vocab_size=vocab_size,
            window=config.text.window,
            cache=cache_root(config.data.cache_dir),
            widths=config.extractor.widths,
            bf16=bf16,
        )
    model = AdaptedLM(
        opened.network,
        opened.vocab_size,
        blocks=settings.blocks,
        targets=settings.targets,
        scale=settings.scale,
        bias=settings.bias,
        bf16=bf16,
        kind=config.expert.kind,
    )
    model.check_rank(settings.rank)
    for rank in settings.ranks:
        model.check_rank(rank, "adapter.ranks")
    if "fedavg-large" in settings.controls:
        model.check_rank(settings.times * settings.rank, "adapter.times x adapter.rank")
    return model.to(torch.device(config.run.device)), opened.digest


def computes_in_bf16(config: Config) -> bool:
    """Whether it computes in bfloat16 on the configured device."""
    return use_bf16(config.run.precision, torch.device(config.run.device), worthwhile=True)
