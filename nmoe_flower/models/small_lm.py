"""A small causal language model: pre-norm blocks of attention and a squared ReLU, output tied.

With the defaults and 2,048 tokens it has 2.19 million parameters.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError
from nmoe_flower.files import load_arrays, read_json, save_arrays, write_text
from nmoe_flower.models.past import beyond, side_by_side

__all__ = ["SmallLM", "SmallSizes"]

_SETTINGS, _WEIGHTS = "config.json", "model.safetensors"
_PER_HEAD = 32


@dataclass(frozen=True)
class SmallSizes:
    """What decides the shapes of a `SmallLM`.

    Attributes:
        vocab_size: Number of tokens, V.
        width: Numbers per token between the blocks, d.
        blocks: How many blocks.
        heads: Heads of attention; they divide the width.
        window: Longest text in tokens, T.

    Raises:
        ConfigError: One of them is below 1, or the heads do not divide the width.
    """

    vocab_size: int
    width: int = 192
    blocks: int = 4
    heads: int = 6
    window: int = 128

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} = {value!r}; allowed: a whole number, 1 or more")
        if self.width % self.heads:
            raise ConfigError(f"heads = {self.heads} do not divide width = {self.width}")

    @classmethod
    def of_widths(cls, widths: tuple[int, ...], *, vocab_size: int, window: int) -> Self:
        """Sizes from one width per block, with a head for every 32 numbers.

        Args:
            widths: As many equal widths as there are blocks; empty: four of 192.
            vocab_size: Number of tokens.
            window: Longest text in tokens.

        Raises:
            ConfigError: The widths differ.

        >>> SmallSizes.of_widths((64, 64), vocab_size=257, window=16).heads
        2
        """
        if not widths:
            return cls(vocab_size, window=window)
        if len(set(widths)) > 1:
            told = ", ".join(map(str, widths))
            raise ConfigError(f"all blocks of small-lm have one width, got {told}")
        width = widths[0]
        heads = width // _PER_HEAD if width % _PER_HEAD == 0 else 1
        return cls(vocab_size, width, len(widths), heads, window)


class _Block(nn.Module):
    """Attention to what stands before, then a squared ReLU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, hidden: Tensor, past: Sequence[list[Tensor]] = ()) -> Tensor:
        """Hidden states [B, T, d] to hidden states [B, T, d].

        Args:
            hidden: Hidden states of the latest T tokens.
            past: Keys and values of what stands before them, or nothing yet; theirs are added. One
                pair for all rows, or one for each, which then has a single token.
        """
        shape, width = hidden.shape, hidden.shape[2]
        qkv = self.qkv(F.rms_norm(hidden, (width,)))
        split = qkv.view(*shape[:2], 3, self.heads, width // self.heads)
        query, *seen = split.permute(2, 0, 3, 1, 4)
        mask = None
        if len(past) == 1:
            seen = _grown(past[0], seen)
        elif past:
            rows = zip(*(part.split(1) for part in seen), strict=True)
            each = [_grown(one, row) for one, row in zip(past, rows, strict=True)]
            mask = beyond([key.shape[2] for key, _ in each], query)
            seen = [side_by_side(parts) for parts in zip(*each, strict=True)]
        mixed = _attend(query, *seen, mask=mask).transpose(1, 2).reshape(shape)
        hidden = hidden + self.out(mixed)
        inner: Tensor = self.up(F.rms_norm(hidden, (width,))).relu().square()
        found: Tensor = hidden + self.down(inner)
        return found


def _grown(past: list[Tensor], new: Iterable[Tensor]) -> list[Tensor]:
    """Keys and values of a text with those of its latest tokens, which it keeps."""
    past[:] = [torch.cat(pair, dim=2) for pair in zip(past, new, strict=True)] if past else new
    return past


def _attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Causal attention of the latest tokens to all; plain products where fused ones are slow.

    With a mask there is one latest token in each row, and the mask hides what is none of its text.
    """
    size, seen = query.shape[2], key.shape[2]
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if size == seen and mask is None and not slow:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    if mask is None:
        later = torch.full((size, seen), -torch.inf, dtype=query.dtype, device=query.device)
        later = later.triu(1 + seen - size)
    else:
        later = mask
    if not slow:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=later)
    scores: Tensor = query @ key.transpose(2, 3) * query.shape[3] ** -0.5 + later
    return scores.softmax(dim=3) @ value


class SmallLM(nn.Module):
    """Tokens [B, T] to logits [B, T, V].

    Attributes:
        sizes: The shapes of its parts.
        blocks: The blocks, in order.
    """

    def __init__(self, sizes: SmallSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.width)
        self.places = nn.Embedding(sizes.window, sizes.width)
        self.blocks = nn.ModuleList(_Block(sizes.width, sizes.heads) for _ in range(sizes.blocks))
        self._draw()

    def _draw(self) -> None:
        """Fresh weights: blocks begin as the identity."""
        width = self.sizes.width
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        for block in self.blocks:
            for name, linear in block.named_children():
                assert isinstance(linear, nn.Linear)
                if name in ("out", "down"):
                    nn.init.zeros_(linear.weight)
                else:
                    nn.init.uniform_(linear.weight, -((3 / width) ** 0.5), (3 / width) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of what follows each token."""
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return self.output(self.norm(hidden))

    def embed(self, tokens: Tensor, first: Sequence[int] = (0,)) -> Tensor:
        """Hidden states [B, T, d] before the first block.

        Args:
            tokens: Whole numbers [B, T].
            first: Place of the first of them in the text, of all rows or of each.
        """
        starts = torch.tensor(first, device=tokens.device)[:, None]
        places = starts + torch.arange(tokens.shape[1], device=tokens.device)
        found: Tensor = self.tokens(tokens) + self.places(places)
        return found

    def norm(self, hidden: Tensor) -> Tensor:
        """Hidden states after the last block, as the output reads them."""
        return F.rms_norm(hidden, (self.sizes.width,))

    def output(self, final: Tensor) -> Tensor:
        """Logits [..., V] of normed hidden states [..., d]."""
        return F.linear(final, self.tokens.weight)

    def save(self, folder: Path, notes: Mapping[str, Any] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Args:
            folder: Made if missing.
            notes: What else ``config.json`` is to say, such as what it was trained on.

        Raises:
            NMoEError: A file cannot be written.
        """
        told = {**asdict(self.sizes), **(notes or {})}
        write_text(folder / _SETTINGS, json.dumps(told, indent=2) + "\n")
        save_arrays(folder / _WEIGHTS, {n: t.cpu().numpy() for n, t in self.state_dict().items()})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The model that `save` wrote.

        Args:
            folder: With ``config.json`` and ``model.safetensors``.

        Raises:
            ConfigError: A file is missing, or holds something else.
        """
        for name in (_SETTINGS, _WEIGHTS):
            if not (folder / name).is_file():
                raise ConfigError(f"{folder / name} is missing")
        told = read_json(folder / _SETTINGS, raises=ConfigError)
        names = [one.name for one in fields(SmallSizes)]
        if not isinstance(told, dict) or (missing := [n for n in names if n not in told]):
            lacks = "" if not isinstance(told, dict) else f": it has no {', '.join(missing)}"
            raise ConfigError(f"{folder / _SETTINGS} is not that of small-lm{lacks}")
        model = cls(SmallSizes(**{name: told[name] for name in names}))
        arrays = load_arrays(folder / _WEIGHTS)
        state = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            said = str(error).splitlines()[-1].strip()
            raise ConfigError(f"{folder / _WEIGHTS} does not fit its config.json: {said}") from None
        return model
