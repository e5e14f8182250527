"""Experts on a frozen language model, one at work at a time: low-rank adapters, or networks beside.

A low-rank adapter adds ``scale B A x`` to what a linear layer says, with A [r, in] and B [out, r];
one of kind ``ffn`` adds ``scale B gelu(A x)`` to what the feed-forward part of a block says of x.
Where asked for, both add an offset to the logit of every token. Parts are named ``<layer>.A``,
``<layer>.B`` and ``bias``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.models.feed_forward import FeedForwardSlots
from nmoe_flower.models.low_rank import LowRankSlots
from nmoe_flower.models.lower_half import LowerHalf, reach

__all__ = ["AdaptedLM", "blocks_of"]

BIAS = "bias"
SLICE = 16  # windows whose logits are held at once
_MORE_THAN = "; allowed: 1 to {most}, {what} {layer}"


def blocks_of(network: nn.Module) -> tuple[str, int]:
    """Where the blocks of a network stand, and how many there are.

    Args:
        network: The longest list of like modules in it are its blocks.

    Raises:
        ConfigError: It has no such list.

    >>> blocks_of(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])}))
    ('layers', 2)
    """
    found = [
        (len(part), name)
        for name, part in network.named_modules()
        if isinstance(part, nn.ModuleList) and len({type(one) for one in part}) == 1
    ]
    if not found:
        raise ConfigError(
            f"extractor.backbone: {type(network).__name__} has no list of blocks that adapters "
            "could be put into"
        )
    count, name = max(found, key=lambda one: (one[0], -len(one[1])))
    return name, count


class AdaptedLM(nn.Module):
    """A frozen causal language model with one adapter at work, which is loaded in place.

    Args:
        network: Tokens [B, T] to logits [B, T, V], or to something with ``logits``; frozen here.
        vocab_size: Number of tokens, V.
        blocks: ``upper``: adapters in the upper half of the blocks; ``all``: in all of them.
        targets: Names of the linear layers of a block; empty: all of them.
        scale: What the product B A is multiplied by.
        bias: Whether an adapter has an offset of the logits, too.
        bf16: Whether frozen layers of the blocks are kept in bfloat16, for autocast.
        kind: ``adapter``: low-rank ones of linear layers; ``ffn``: a small network of two layers
            beside the feed-forward part of each block, which ``targets`` say nothing of.

    Attributes:
        layers: Names of the adapted layers, in order.
        cut: How many blocks stand before the first one with an adapter.
        rank: Rank of the adapter at work; 0: none has been loaded.
        bf16: Whether frozen layers of the blocks are kept in bfloat16.

    Raises:
        ConfigError: peft is not installed, a block has no layer of a name in ``targets``, or no
            feed-forward part.
    """

    def __init__(
        self,
        network: nn.Module,
        vocab_size: int,
        *,
        blocks: str = "upper",
        targets: tuple[str, ...] = (),
        scale: float = 2.0,
        bias: bool = True,
        bf16: bool = False,
        kind: str = "adapter",
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.cut = _first_adapted(network, blocks)
        place, count = blocks_of(network)
        self._places: LowRankSlots | FeedForwardSlots = (
            FeedForwardSlots(network, place, self.cut, scale)
            if kind == "ffn"
            else LowRankSlots(network, place, self.cut, targets, scale)
        )
        self.layers = self._places.layers
        below = [network.get_submodule(f"{place}.{block}") for block in range(count // 2)]
        self._cut = network.get_submodule(f"{place}.{count // 2}")
        frozen = below and blocks == "upper"
        self._lower = LowerHalf(network, below, self._cut) if frozen else None
        self.scale, self.kind = scale, kind
        self.bias = nn.Parameter(torch.zeros(vocab_size), requires_grad=bias)
        self.rank = 0
        self._slots: dict[int, dict[str, nn.Parameter]] = {}
        self.bf16 = bf16
        modules = dict(network.named_modules())
        most = self._places.most
        self._narrowest = min(most, key=most.__getitem__)
        self._most = most[self._narrowest]
        if bf16:
            for module in network.modules():
                if isinstance(module, nn.Linear) and any(module is modules[n] for n in self.layers):
                    module.to(torch.bfloat16)

    @property
    def has_bias(self) -> bool:
        """Whether an adapter has an offset of the logits."""
        return self.bias.requires_grad

    def check_rank(self, rank: int, key: str = "adapter.rank") -> None:
        """Refuse a rank that is not in 1..the least side of an adapted layer.

        Args:
            rank: Rank of the adapter, r.
            key: What it is called in the error.

        Raises:
            ConfigError: It is not.
        """
        if not 1 <= rank <= self._most:
            what = (
                "the width inside the part that ends in"
                if self.kind == "ffn"
                else "the least side of the layer"
            )
            allowed = _MORE_THAN.format(most=self._most, what=what, layer=self._narrowest)
            raise ConfigError(f"{key} = {rank}{allowed}")

    def fresh(self, rank: int) -> dict[str, Tensor]:
        """A new adapter, which changes nothing yet: A drawn from torch's global stream, B zero.

        Args:
            rank: Rank of the adapter, r.

        Raises:
            ConfigError: As `check_rank`.
        """
        self.check_rank(rank)
        found: dict[str, Tensor] = {}
        for name, sides in self._places.sides.items():
            bound = sides[0] ** -0.5
            found[f"{name}.A"] = torch.empty(rank, sides[0]).uniform_(-bound, bound)
            found[f"{name}.B"] = torch.zeros(sides[1], rank)
        if self.has_bias:
            found[BIAS] = torch.zeros(len(self.bias))
        return found

    def learners(self) -> dict[str, nn.Parameter]:
        """The parts of the adapter at work, as they are trained."""
        parts = dict(self._slots[self.rank])
        return parts | ({BIAS: self.bias} if self.has_bias else {})

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the adapter at work."""
        return {n: p.detach().cpu().numpy().copy() for n, p in self.learners().items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Put an adapter to work in place of the one before.

        Args:
            arrays: All of its parts.

        Raises:
            ReplyError: Parts are missing, unknown or of other shapes: it is for another backbone.
        """
        rank = _rank_of(arrays, self.layers)
        self._activate(rank)
        parts = self.learners()
        if odd := sorted(parts.keys() ^ arrays.keys()):
            raise ReplyError(
                f"the adapter is for another backbone, or for another expert.kind, adapter.blocks, "
                f"targets or bias: it differs in {', '.join(odd[:3])}"
            )
        with torch.no_grad():
            for name, part in parts.items():
                value = torch.from_numpy(np.array(arrays[name], np.float32))
                if value.shape != part.shape:
                    raise ReplyError(
                        f"the adapter is for another backbone: {name} has shape "
                        f"{tuple(value.shape)}, wanted {tuple(part.shape)}"
                    )
                part.copy_(value)

    def _activate(self, rank: int) -> None:
        """Let the layers use the slot for adapters of this rank, which is made if missing."""
        if rank == self.rank:
            return
        if rank not in self._slots:
            try:
                self.check_rank(rank)
            except ConfigError as error:
                raise ReplyError(f"an adapter of {error}") from None
            self._slots[rank] = self._places.add(rank)
        self._places.use(rank)
        self.rank = rank

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of what follows each of the tokens [B, T]."""
        if self._lower is None:
            said = self.network(tokens)
        else:
            with self._lower.skipped(self._lower.states(tokens)):
                said = self.network(tokens)
        logits: Tensor = said if isinstance(said, Tensor) else said.logits
        return logits + self.bias.to(logits.dtype) if self.has_bias else logits

    def losses(self, tokens: Tensor) -> Tensor:
        """Negative log-likelihood of every token but the first, in nats: float32 [B, T - 1].

        Args:
            tokens: Whole numbers [B, T].
        """
        logits = self.logits(tokens)[:, :-1].float()
        truth = tokens[:, 1:].long()
        lost = F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="none")
        return lost.view(truth.shape)

    forward = losses

    def states(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """What the lower half of the frozen blocks says of each token, without adapters.

        A state is brought to norm sqrt(d): the first tokens of a text have states a thousand times
        as large as the others in many models, and would decide alone.

        Args:
            tokens: Whole numbers [N, T].

        Yields:
            The states of a few windows at a time, float32 [n, T, d].
        """
        for at in range(0, len(tokens), SLICE):
            yield self._states(tokens[at : at + SLICE])

    @torch.inference_mode()
    def _states(self, tokens: np.ndarray) -> np.ndarray:
        with self._without_adapters():
            tensor = torch.from_numpy(tokens.astype(np.int64)).to(self.bias.device)
            hidden = reach(self.network, self._cut, tensor).float()
        unit = F.normalize(hidden, dim=2) * hidden.shape[2] ** 0.5
        found: np.ndarray = unit.cpu().numpy()
        return found

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        """The frozen network alone."""
        self._places.enable(False)
        try:
            yield
        finally:
            self._places.enable(True)

    @torch.inference_mode()
    def score(self, tokens: np.ndarray) -> np.ndarray:
        """`losses` of many windows, a few at a time: float32 [N, T - 1].

        Args:
            tokens: Whole numbers [N, T].
        """
        place = self.bias.device
        found = [
            self.losses(torch.from_numpy(tokens[at : at + SLICE].astype(np.int64)).to(place)).cpu()
            for at in range(0, len(tokens), SLICE)
        ]
        shape = (0, tokens.shape[1] - 1)
        return torch.cat(found).numpy() if found else np.zeros(shape, np.float32)


def _first_adapted(network: nn.Module, blocks: str) -> int:
    """The first block with an adapter."""
    return 0 if blocks == "all" else blocks_of(network)[1] // 2


def _rank_of(arrays: Mapping[str, np.ndarray], layers: tuple[str, ...]) -> int:
    first = arrays.get(f"{layers[0]}.A")
    if first is None or first.ndim != 2:
        raise ReplyError(
            "the adapter is for another backbone, or for another expert.kind, adapter.blocks or "
            f"targets: it has no {layers[0]}.A"
        )
    return int(first.shape[0])
