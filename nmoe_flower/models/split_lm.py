"""A frozen language model in two halves, so that they may stand on two devices.

The lower half is everybody's: tokens to hidden states at the cut. The upper half holds the blocks
that adapters change: hidden states at the cut to final ones. What makes logits of these is
everybody's again, beside an adapter's own offset. Each half keeps keys and values of its own.
"""

import copy
import importlib
import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.adapter import AdaptedLM
from nmoe_flower.models.past import Past, as_pasts, beyond, side_by_side
from nmoe_flower.models.small_lm import SmallLM

__all__ = ["SplitLM", "split_lm"]

_PROBE = 5  # tokens
# How far halves may be from the whole, of the largest logit.
_NEAR, _NEAR_BF16 = 1e-4, 0.05


class SplitLM(Protocol):
    """What both kinds of networks do.

    Attributes:
        width: Numbers per token at the cut, d.
        context: Longest text in tokens.
        joins: Whether texts of different lengths may go on side by side.
        kept_bytes: Bytes of keys and values that both halves keep for a token.
    """

    width: int
    context: int
    joins: bool
    kept_bytes: int

    def lower(self, tokens: Tensor, past: Past | Sequence[Past] | None = None) -> Tensor:
        """Hidden states at the cut [B, T, d] of tokens [B, T], which follow ``past``.

        With a past for each row, each is the next token of a text of its own: T = 1.
        """
        ...

    def upper(self, hidden: Tensor, past: Past | Sequence[Past] | None = None) -> Tensor:
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
    halves: _SmallSplit | _LibrarySplit
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
def _check(halves: "_SmallSplit | _LibrarySplit", network: nn.Module, near: float) -> None:
    """Refuse halves that say anything else than the whole, in one piece or in two.

    Finds out, too, what a token takes in memory, and whether texts go on side by side as alone.
    """
    place = next(network.parameters()).device
    count = min(_PROBE, halves.context)
    tokens = torch.arange(1, 1 + count, device=place)[None]
    said = network(tokens)
    wanted = (said if isinstance(said, Tensor) else said.logits).float()
    bound = near * wanted.abs().max() + 1e-4
    below, above = Past(), Past()
    try:
        pieces = [_said(halves, piece, below, above) for piece in (tokens[:, :-1], tokens[:, -1:])]
    except (TypeError, ValueError, RuntimeError, AttributeError):
        raise _uncut(network) from None
    apart = (torch.cat(pieces, dim=1) - wanted).abs().max()
    if not bool(apart <= bound):
        raise _uncut(network)
    halves.kept_bytes = (halves.kept(below) + halves.kept(above)) // count
    if halves.joins:
        try:
            joined = _joined(halves, tokens)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
            halves.joins = False
        else:
            halves.joins = bool((joined - wanted[0, [-1, 1]]).abs().max() <= bound)


def _said(halves: SplitLM, tokens: Tensor, below: Any, above: Any) -> Tensor:
    return halves.output(halves.upper(halves.lower(tokens, below), above)).float()


def _joined(halves: SplitLM, tokens: Tensor) -> Tensor:
    """What is said of the last token, and of the second one, in one step of two texts, [2, V]."""
    lengths = (tokens.shape[1] - 1, 1)
    below, above = [Past(), Past()], [Past(), Past()]
    for length, low, high in zip(lengths, below, above, strict=True):
        halves.upper(halves.lower(tokens[:, :length], low), high)
    return _said(halves, tokens[0, list(lengths)][:, None], below, above)[:, 0]


def _uncut(network: nn.Module) -> ConfigError:
    return ConfigError(
        f"extractor.backbone: {type(network).__name__} cannot be cut into a lower and an upper "
        "half, so that peers could answer for its adapters; allowed: small-lm, and models of "
        "transformers that are embeddings, layers, a norm and a linear output (as Llama is)"
    )


class _SmallSplit:
    def __init__(self, network: SmallLM, cut: int) -> None:
        self.width, self.context = network.sizes.width, network.sizes.window
        self.joins, self.kept_bytes = True, 0
        self._network, self._cut = network, cut

    def lower(self, tokens: Tensor, past: Past | Sequence[Past] | None = None) -> Tensor:
        pasts = as_pasts(past)
        hidden = self._network.embed(tokens, [one.length for one in pasts] or (0,))
        return self._blocks(hidden, 0, self._cut, pasts)

    def upper(self, hidden: Tensor, past: Past | Sequence[Past] | None = None) -> Tensor:
        found = self._blocks(hidden, self._cut, len(self._network.blocks), as_pasts(past))
        return self._network.norm(found)

    def output(self, final: Tensor) -> Tensor:
        return self._network.output(final)

    def kept(self, past: Past) -> int:
        """Bytes of what it keeps."""
        return sum(part.nbytes for block in past.kept for part in block)

    def _blocks(self, hidden: Tensor, first: int, last: int, pasts: list[Past]) -> Tensor:
        for past in pasts:
            past.kept = past.kept or [[] for _ in range(first, last)]
            past.length += hidden.shape[1]
        for at, block in enumerate(list(self._network.blocks)[first:last]):
            hidden = block(hidden, [past.kept[at] for past in pasts])
        return hidden


class _LibrarySplit:
    def __init__(self, network: Any, cut: int) -> None:
        layers, config = list(network.base_model.layers), network.config
        self.width = int(config.hidden_size)
        self.context = int(getattr(config, "max_position_embeddings", 1 << 30))
        # Where blocks look at the latest tokens alone, one mask for all of them is wrong.
        self.joins, self.kept_bytes = not getattr(config, "sliding_window", None), 0
        self._lower = _part(network.base_model, layers[:cut], nn.Identity())
        self._upper = _part(network.base_model, layers[cut:], network.base_model.norm)
        self._output, self._cut = network.get_output_embeddings(), cut

    def lower(self, tokens: Tensor, past: Past | Sequence[Past] | None = None) -> Tensor:
        return _states(self._lower, 0, as_pasts(past), input_ids=tokens)

    def upper(self, hidden: Tensor, past: Past | Sequence[Past] | None = None) -> Tensor:
        return _states(self._upper, self._cut, as_pasts(past), inputs_embeds=hidden)

    def output(self, final: Tensor) -> Tensor:
        found: Tensor = self._output(final)
        return found

    def kept(self, past: Past) -> int:
        """Bytes of what it keeps."""
        return sum(past.kept.sizes.values())


def _part(base: Any, layers: list[nn.Module], norm: nn.Module) -> Any:
    """The same modules with some of the layers."""
    part = copy.copy(base)
    part._modules = dict(base._modules) | {"layers": nn.ModuleList(layers), "norm": norm}
    part.config = copy.copy(base.config)
    part.config.num_hidden_layers = len(layers)
    return part


def _states(part: Any, first: int, pasts: list[Past], **given: Any) -> Tensor:
    if not pasts:
        found: Tensor = part(**given, use_cache=False).last_hidden_state
        return found
    for past in pasts:
        past.kept = _caches().Shifted(first) if past.kept is None else past.kept
    keeps = pasts[0].kept
    if len(pasts) > 1:
        keeps = _caches().Joined([past.kept for past in pasts])
        place, lengths = next(part.parameters()), [past.length for past in pasts]
        given["position_ids"] = torch.tensor(lengths, device=place.device)[:, None]
        given["attention_mask"] = beyond([length + 1 for length in lengths], place)
    told = inspect.signature(type(part).forward).parameters
    name = "cache" if "cache" in told else "past_key_values"  # as it was called before
    found = part(**given, **{name: keeps}, use_cache=True).last_hidden_state
    for past in pasts:
        past.length += found.shape[1]
    return found


class _Caches(NamedTuple):
    """Caches as the library wants them.

    Attributes:
        Shifted: Cache of one text for layers that call themselves by their places in the whole
            model.
        Joined: Several of them, one for each row of a step.
    """

    Shifted: Any
    Joined: Any


@cache
def _caches() -> _Caches:
    base: Any = importlib.import_module("transformers").DynamicCache

    class Shifted(base):  # type: ignore[misc]
        def __init__(self, first: int) -> None:
            super().__init__()
            self.first = first
            self.sizes: dict[int, int] = {}  # bytes, by layer

        def update(
            self, key: Tensor, value: Tensor, layer_idx: int, *more: Any, **named: Any
        ) -> Any:
            found = super().update(key, value, layer_idx - self.first, *more, **named)
            self.sizes[layer_idx] = sum(part.nbytes for part in found)
            return found

    class Joined(base):  # type: ignore[misc]
        def __init__(self, rows: list[Any]) -> None:
            super().__init__()
            self.rows = rows

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return max(int(row.get_seq_length(layer_idx)) for row in self.rows)

        def update(
            self, key: Tensor, value: Tensor, layer_idx: int, *more: Any, **named: Any
        ) -> Any:
            pairs = zip(torch.split(key, 1), torch.split(value, 1), strict=True)
            each = [
                row.update(*pair, layer_idx, *more, **named)
                for row, pair in zip(self.rows, pairs, strict=True)
            ]
            return tuple(side_by_side(parts) for parts in zip(*each, strict=True))

    return _Caches(Shifted, Joined)
