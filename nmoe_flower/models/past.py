"""Keys and values of texts so far, of one text or of several that go on side by side.

Texts of different lengths are filled up at the end, and a mask hides what is filled: its weight in
attention is exactly 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Past", "as_pasts", "beyond", "side_by_side"]


@dataclass
class Past:
    """Keys and values of the text so far, for one half.

    Attributes:
        length: How many tokens they are of.
        kept: What the half itself keeps, by block.
    """

    length: int = 0
    kept: Any = field(default=None)


def as_pasts(past: Past | Sequence[Past] | None) -> list[Past]:
    """The texts of all rows; none where nothing is kept.

    Args:
        past: One text, or one for each row.
    """
    if past is None:
        return []
    return [past] if isinstance(past, Past) else list(past)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Keys or values of several texts, [1, H, T, D] each, as [B, H, longest T, D].

    Args:
        parts: Keys or values of each text.

    >>> side_by_side([torch.ones(1, 2, 3, 4), torch.ones(1, 2, 5, 4)]).shape
    torch.Size([2, 2, 5, 4])
    """
    longest = max(part.shape[2] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[2])) for part in parts])


def beyond(lengths: Sequence[int], like: Tensor) -> Tensor:
    """What is added to scores of attention, [B, 1, 1, T]: minus infinity beyond a text's end.

    Args:
        lengths: Tokens of each text.
        like: Any of the numbers that it is added to.

    >>> beyond([1, 2], torch.zeros(0))[:, 0, 0].tolist()
    [[0.0, -inf], [0.0, 0.0]]
    """
    ends = torch.tensor(lengths, device=like.device)[:, None]
    hidden = torch.arange(max(lengths), device=like.device) >= ends
    found = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return found.masked_fill(hidden, -torch.inf)[:, None, None]
