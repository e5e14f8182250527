"""A frozen language model in two halves, so that they may stand on two devices.

The lower half is everybody's: tokens to hidden states at the cut. The upper half holds the blocks
that adapters change: hidden states at the cut to final ones. What makes logits of these is
everybody's again, beside an adapter's own offset. Each half keeps keys and values of its own.
"""

import copy
import importlib
import inspect
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.adapter import AdaptedLM
from nmoe_flower.models.small_lm import SmallLM

__all__ = ["Past", "SplitLM", "split_lm"]

_PROBE = 5  # tokens
# How far halves may be from the whole, of the largest logit.
_NEAR, _NEAR_BF16 = 1e-4, 0.05


@dataclass
class Past:
    """Keys and values of the text so far, for one half.

    Attributes:
        length: How many tokens they are of.
        kept: What the half itself keeps, by block.
    """

    length: int = 0
    kept: Any = field(default=None)


class SplitLM(Protocol):
    """What both kinds of networks do.

    Attributes:
        width: Numbers per token at the cut, d.
        context: Longest text in tokens.
    """

    width: int
    context: int

    def lower(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """Hidden states at the cut [B, T, d] of tokens [B, T], which follow ``past``."""
        ...

    def upper(self, hidden: Tensor, past: Past | None = None) -> Tensor:
        """Final hidden states [B, T, d] of those at the cut, by the adapter at work."""
        ...

    def output(self, final: Tensor) -> Tensor:
        """Logits [..., V] of final hidden states [..., d], without an adapter's offset."""
        ...


def split_lm(model: AdaptedLM) -> SplitLM:
    """Cut a model before its first block with an adapter.

    Args:
        model: Adapters on a `SmallLM`, or on a model of transformers built as most are:
            embeddings, a list of layers, a norm and a linear output.

    Raises:
        ConfigError: The halves, one after the other, are not the whole.
    """
    network: Any = model.network
    halves: SplitLM
    if isinstance(network, SmallLM):
        halves = _SmallSplit(network, model.cut)
    else:
        base = getattr(network, "base_model", None)
        if not all(hasattr(base, name) for name in ("layers", "norm")):
            raise _uncut(network)
        halves = _LibrarySplit(network, model.cut)
    with torch.autocast(model.bias.device.type, torch.bfloat16, enabled=model.bf16):
        _check(halves, network, _NEAR_BF16 if model.bf16 else _NEAR)
    return halves


@torch.inference_mode()
def _check(halves: SplitLM, network: nn.Module, near: float) -> None:
    """Refuse halves that say anything else than the whole, in one piece or in two."""
    place = next(network.parameters()).device
    count = min(_PROBE, halves.context)
    tokens = torch.arange(1, 1 + count, device=place)[None]
    said = network(tokens)
    wanted = (said if isinstance(said, Tensor) else said.logits).float()
    below, above = Past(), Past()
    try:
        pieces = [
            halves.output(halves.upper(halves.lower(piece, below), above)).float()
            for piece in (tokens[:, :-1], tokens[:, -1:])
        ]
    except (TypeError, ValueError, RuntimeError, AttributeError):
        raise _uncut(network) from None
    apart = (torch.cat(pieces, dim=1) - wanted).abs().max()
    if not bool(apart <= near * wanted.abs().max() + 1e-4):
        raise _uncut(network)


def _uncut(network: nn.Module) -> ConfigError:
    return ConfigError(
        f"extractor.backbone: {type(network).__name__} cannot be cut into a lower and an upper "
        "half, so that peers could answer for its adapters; allowed: small-lm, and models of "
        "transformers that are embeddings, layers, a norm and a linear output (as Llama is)"
    )


class _SmallSplit:
    def __init__(self, network: SmallLM, cut: int) -> None:
        self.width, self.context = network.sizes.width, network.sizes.window
        self._network, self._cut = network, cut

    def lower(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        hidden = self._network.embed(tokens, past.length if past else 0)
        return self._blocks(hidden, 0, self._cut, past)

    def upper(self, hidden: Tensor, past: Past | None = None) -> Tensor:
        found = self._blocks(hidden, self._cut, len(self._network.blocks), past)
        return self._network.norm(found)

    def output(self, final: Tensor) -> Tensor:
        return self._network.output(final)

    def _blocks(self, hidden: Tensor, first: int, last: int, past: Past | None) -> Tensor:
        if past is not None:
            past.kept = past.kept or [[] for _ in range(first, last)]
            past.length += hidden.shape[1]
        for at, block in enumerate(list(self._network.blocks)[first:last]):
            hidden = block(hidden, past.kept[at] if past is not None else None)
        return hidden


class _LibrarySplit:
    def __init__(self, network: Any, cut: int) -> None:
        layers, config = list(network.base_model.layers), network.config
        self.width = int(config.hidden_size)
        self.context = int(getattr(config, "max_position_embeddings", 1 << 30))
        self._lower = _part(network.base_model, layers[:cut], nn.Identity())
        self._upper = _part(network.base_model, layers[cut:], network.base_model.norm)
        self._output, self._cut = network.get_output_embeddings(), cut

    def lower(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        return _states(self._lower, 0, past, input_ids=tokens)

    def upper(self, hidden: Tensor, past: Past | None = None) -> Tensor:
        return _states(self._upper, self._cut, past, inputs_embeds=hidden)

    def output(self, final: Tensor) -> Tensor:
        found: Tensor = self._output(final)
        return found


def _part(base: Any, layers: list[nn.Module], norm: nn.Module) -> Any:
    """The same modules with some of the layers."""
    part = copy.copy(base)
    part._modules = dict(base._modules) | {"layers": nn.ModuleList(layers), "norm": norm}
    part.config = copy.copy(base.config)
    part.config.num_hidden_layers = len(layers)
    return part


def _states(part: Any, first: int, past: Past | None, **given: Tensor) -> Tensor:
    if past is None:
        found: Tensor = part(**given, use_cache=False).last_hidden_state
        return found
    if past.kept is None:
        past.kept = _shifted_cache(first)
    told = inspect.signature(type(part).forward).parameters
    name = "cache" if "cache" in told else "past_key_values"  # as it was called before
    found = part(**given, **{name: past.kept}, use_cache=True).last_hidden_state
    past.length += found.shape[1]
    return found


def _shifted_cache(first: int) -> Any:
    """A cache for layers that call themselves by their places in the whole model."""
    cache: Any = importlib.import_module("transformers").DynamicCache

    class Shifted(cache):  # type: ignore[misc]
        def update(
            self, key: Tensor, value: Tensor, layer_idx: int, *more: Any, **named: Any
        ) -> Any:
            return super().update(key, value, layer_idx - first, *more, **named)

    return Shifted()
