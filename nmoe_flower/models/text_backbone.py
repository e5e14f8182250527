"""A given backbone that reads text: tokens in, the mean of its hidden states out.

To all else it is one more given extractor. A row of T tokens comes as an image of one pixel with T
channels, [B, T, 1, 1], with -1 behind a document's end.
"""

import hashlib
import json
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.adapter import blocks_of
from nmoe_flower.models.given import Given, Wish, keep_maps
from nmoe_flower.models.language import open_language_model
from nmoe_flower.models.lower_half import reach
from nmoe_flower.models.small_lm import SmallLM

__all__ = ["MeanStates", "reader_of_text"]

_BYTES = 257  # tokens of UTF-8 and of a document's end
_DRAW = 0  # of a backbone without weights: it is the same in every run


class MeanStates(nn.Module):
    """Rows of tokens to the mean of their hidden states, each brought to norm sqrt(d).

    The first token of a text has a state a thousand times as large in many models, and would decide
    alone.

    Args:
        network: Tokens [B, T] to anything.
        vocab_size: Number of tokens that it knows.
        name: What it is called in errors.
        layers: Names of the layers whose states are joined; none: what comes to the upper half of
            the blocks, and what is above is not computed.

    Raises:
        ConfigError: It has no such layer, or no list of blocks.
    """

    def __init__(
        self, network: nn.Module, vocab_size: int, name: str, layers: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.network, self.vocab_size, self.name, self.layers = network, vocab_size, name, layers
        known = dict(network.named_modules())
        if odd := [layer for layer in layers if layer not in known]:
            place, count = blocks_of(network)
            raise ConfigError(
                f"extractor.cut = {odd[0]}:1: {name} has no layer {odd[0]}; allowed: {place}.0 to "
                f"{place}.{count - 1}, and any layer in them"
            )
        if not layers:
            place, count = blocks_of(network)
            self._cut = network.get_submodule(f"{place}.{count // 2}")

    def forward(self, rows: Tensor) -> Tensor:
        """Latents [B, D], float32, of rows of tokens [B, T, 1, 1].

        Raises:
            ConfigError: A token is none of the network's.
        """
        given = rows.flatten(1).long()
        there, tokens = given >= 0, given.clamp(min=0)
        if int(tokens.max()) >= self.vocab_size:
            raise ConfigError(
                f"extractor.backbone = {self.name} knows {self.vocab_size:,} tokens, and the text "
                f"has token {int(tokens.max()):,}: text.tokenizer must be the backbone's own"
            )
        named = {} if isinstance(self.network, SmallLM) else {"attention_mask": there.long()}
        weights = there[:, :, None].float()
        found = [
            (F.normalize(states.float(), dim=2) * states.shape[2] ** 0.5 * weights).sum(dim=1)
            for states in self._states(tokens, named)
        ]
        return torch.cat(found, dim=1) / weights.sum(dim=1).clamp(min=1)

    def _states(self, tokens: Tensor, named: dict[str, Tensor]) -> list[Tensor]:
        """Hidden states [B, T, d] where it is cut."""
        if not self.layers:
            return [reach(self.network, self._cut, tokens, **named)]
        maps: dict[str, Any] = {}
        with ExitStack() as hooks:
            keep_maps(hooks, self.network, maps, self.layers)
            self.network(tokens, **named)
        return [self._checked(layer, maps.get(layer), tokens) for layer in self.layers]

    def _checked(self, layer: str, states: Any, tokens: Tensor) -> Tensor:
        if isinstance(states, tuple | list) and states:
            states = states[0]
        if not isinstance(states, Tensor) or states.shape[:-1] != tokens.shape:
            got = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise ConfigError(
                f"extractor.cut = {layer}:1: {layer} of {self.name} gives {got}; allowed: a layer "
                "that gives states [B, T, d]"
            )
        return states


def reader_of_text(wish: Wish) -> Given:
    """A language model, or any model of text of transformers, with the weights of its name.

    A ``small-lm`` without weights is drawn, alike in every run.

    Raises:
        ConfigError: It cannot be opened or cut so, reads shorter documents, or is to be drawn for
            other tokens than bytes.
    """
    text = wish.text
    assert text is not None
    drawn = wish.backbone == "small-lm" and not wish.weights
    if drawn and not text.bytes:
        raise ConfigError(
            "text.tokenizer: small-lm without extractor.weights is drawn for bytes; allowed: "
            "bytes, or a folder in extractor.weights"
        )
    torch.manual_seed(_DRAW)  # the caller puts torch's stream back
    opened = open_language_model(
        wish.backbone,
        wish.weights,
        vocab_size=_BYTES if drawn else 1,
        window=text.window,
        cache=text.cache,
        widths=text.widths,
        logits=False,
    )
    layers = tuple(part.rpartition(":")[0] for part in wish.cut)
    states = MeanStates(opened.network, opened.vocab_size, wish.backbone, layers)
    told = json.dumps(["mean of states", layers]).encode()
    return Given(states, hashlib.sha256(opened.digest + told).digest(), resolution=0)
