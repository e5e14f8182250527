"""Experts beside the feed-forward part of blocks: a small network of two layers, added to it.

A block says ``x + FFN(n)``, where n is what its feed-forward part reads; with such an expert
``x + FFN(n) + scale B gelu(A n)``, A [r, d] and B [d, r], as a mixture layer would with one more
expert (the parallel adapter of He et al. 2022, arXiv:2110.04366). B = 0 changes nothing.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError

__all__ = ["FeedForwardSlots", "feed_forward_layers"]


def feed_forward_layers(network: nn.Module, place: str, first: int) -> dict[str, str]:
    """The last layer of each feed-forward part by the first: from d numbers to more, and back.

    Args:
        network: What the blocks are in.
        place: Name of the list of its blocks.
        first: The first block that is asked about.

    Returns:
        Names of the layers that end the parts, in order, and of those that begin them.

    Raises:
        ConfigError: A block has no such pair of linear layers.
    """
    modules = dict(network.named_modules())
    within = re.compile(rf"{re.escape(place)}\.(\d+)\..+")
    found: dict[str, str] = {}
    blocks: dict[int, dict[str, nn.Linear]] = {}
    for name, module in modules.items():
        match = within.fullmatch(name)
        if match is not None and int(match[1]) >= first and isinstance(module, nn.Linear):
            blocks.setdefault(int(match[1]), {})[name] = module
    for number, layers in blocks.items():
        pairs = [
            (down, up)
            for down, last in layers.items()
            for up, one in layers.items()
            if up.rpartition(".")[0] == down.rpartition(".")[0]
            and one.in_features == last.out_features < last.in_features
            and one.out_features % last.in_features == 0  # or both halves of a gated one
        ]
        if not pairs:
            raise ConfigError(
                f"expert.kind = ffn: {place}.{number} of the backbone has no feed-forward part of "
                f"linear layers, from d numbers to more and back; it has "
                f"{', '.join(name.removeprefix(f'{place}.{number}.') for name in layers)}: use "
                "adapter"
            )
        down, up = pairs[-1]
        found[down] = up
    if not found:
        raise ConfigError("expert.kind = ffn: the backbone's blocks have no linear layer")
    return found


class _Beside:
    """What stands beside one feed-forward part: experts by rank, one of which is at work.

    Args:
        dim: Numbers per token, d.
        scale: What the answer is multiplied by.
    """

    def __init__(self, dim: int, scale: float) -> None:
        self.dim, self.scale, self.rank, self.works = dim, scale, 0, True
        self.slots: dict[int, dict[str, nn.Parameter]] = {}
        self._read: Tensor | None = None

    def add(self, rank: int, place: torch.device) -> dict[str, nn.Parameter]:
        """A slot for experts of a rank."""
        shapes = {"A": (rank, self.dim), "B": (self.dim, rank)}
        self.slots[rank] = {
            side: nn.Parameter(torch.zeros(shape, device=place)) for side, shape in shapes.items()
        }
        return self.slots[rank]

    def read(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Before the first layer: keep what it reads."""
        self._read = given[0]

    def answer(self, _: nn.Module, __: tuple[Tensor, ...], said: Tensor) -> Tensor:
        """After the last layer: add what the expert says."""
        read, self._read = self._read, None
        if read is None or not self.works or not self.rank:
            return said
        parts = self.slots[self.rank]
        found = F.linear(F.gelu(F.linear(read, parts["A"])), parts["B"])
        return said + self.scale * found.to(said.dtype)


class FeedForwardSlots:
    """Places for such experts in a frozen network, a slot for each rank.

    Args:
        network: The network, which is hooked into.
        place: Name of the list of its blocks.
        first: The first block with an expert.
        scale: What an expert's answer is multiplied by.

    Attributes:
        layers: Names of the layers that end the feed-forward parts, which parts are named after.
        sides: Numbers that an expert reads and says at each of them, by name.
        most: The largest rank at each of them, by name: as many as the part itself has inside.

    Raises:
        ConfigError: A block has no feed-forward part.
    """

    def __init__(self, network: nn.Module, place: str, first: int, scale: float) -> None:
        ends = feed_forward_layers(network, place, first)
        self.layers = tuple(ends)
        self.sides: dict[str, tuple[int, int]] = {}
        self.most: dict[str, int] = {}
        self._beside: list[_Beside] = []
        for down, up in ends.items():
            last, begin = network.get_submodule(down), network.get_submodule(up)
            assert isinstance(last, nn.Linear)
            self._place = last.weight
            self.sides[down] = (last.out_features, last.out_features)
            self.most[down] = last.in_features
            beside = _Beside(last.out_features, scale)
            begin.register_forward_pre_hook(beside.read)
            last.register_forward_hook(beside.answer)
            self._beside.append(beside)

    def add(self, rank: int) -> dict[str, nn.Parameter]:
        """Make a slot for a rank; its parts by name.

        Args:
            rank: Numbers between the two layers, r.
        """
        return {
            f"{name}.{side}": part
            for name, beside in zip(self.layers, self._beside, strict=True)
            for side, part in beside.add(rank, self._place.device).items()
        }

    def use(self, rank: int) -> None:
        """Put the slot of a rank to work.

        Args:
            rank: One that has a slot.
        """
        for beside in self._beside:
            beside.rank = rank

    def enable(self, on: bool) -> None:
        """Let experts say something, or nothing.

        Args:
            on: Which of the two.
        """
        for beside in self._beside:
            beside.works = on
