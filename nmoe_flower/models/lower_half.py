"""The frozen lower half of a network, computed once for each window: adapters are above it."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LowerHalf", "reach"]

_MOST_BYTES = 512 * 2**20


class _Reached(Exception):  # noqa: N818
    """The blocks below are through; the rest need not be computed."""


def reach(network: nn.Module, block: nn.Module, tokens: Tensor, **named: Tensor) -> Tensor:
    """The hidden states [B, T, d] that come to a block; what is above it is not computed.

    Args:
        network: Tokens [B, T] to anything.
        block: One of its blocks, which takes hidden states first, or as ``hidden_states``.
        tokens: Whole numbers [B, T].
        named: What else the network is given.
    """
    reached: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...], told: Mapping[str, Any]) -> None:
        reached.append(given[0] if given else told["hidden_states"])
        raise _Reached

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        network(tokens, **named)
    except _Reached:
        pass
    finally:
        handle.remove()
    return reached[0]


class LowerHalf:
    """Hidden states below the first adapted block, kept for windows that come again.

    Each window is computed alone, so that it has the same states whatever came beside it.

    Args:
        network: Tokens [B, T] to anything; frozen below the cut.
        below: Blocks of the backbone below the cut, in order, at least one.
        cut: The first block above.
        most_bytes: What is kept takes so much at most; the oldest goes first.
    """

    def __init__(
        self,
        network: nn.Module,
        below: Sequence[nn.Module],
        cut: nn.Module,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        self._network, self._below, self._cut = network, below, cut
        self._most = most_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0
        self._tuples = False  # whether blocks return a tuple

    def states(self, tokens: Tensor) -> Tensor:
        """The hidden states [B, T, d] of windows [B, T]."""
        return torch.cat([self._of(window) for window in tokens[:, None]])

    def _of(self, window: Tensor) -> Tensor:
        name = window.cpu().numpy().tobytes()
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        training = self._network.training
        self._network.eval()  # what is frozen has no dropout
        handle = self._below[0].register_forward_hook(self._look)
        try:
            with torch.inference_mode(False), torch.no_grad():
                found = reach(self._network, self._cut, window.clone()).clone()
        finally:
            handle.remove()
            self._network.train(training)
        self._kept[name] = found
        self._bytes += found.nbytes
        while self._bytes > self._most and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    def _look(self, _: nn.Module, __: Any, said: Any) -> None:
        self._tuples = isinstance(said, tuple)

    @contextmanager
    def skipped(self, states: Tensor) -> Iterator[None]:
        """While it lasts the network begins at the cut, with these states.

        Args:
            states: Hidden states [B, T, d] of the windows that the network is given.
        """
        own: list[Callable[..., Any]] = [block.forward for block in self._below]

        def skip(*given: Any, **named: Any) -> Any:
            hidden = given[0] if given else named["hidden_states"]
            return (hidden,) if self._tuples else hidden

        def put(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if given:
                return (states, *given[1:]), named
            return given, {**named, "hidden_states": states}

        handle = self._cut.register_forward_pre_hook(put, with_kwargs=True)
        for block in self._below:
            block.forward = skip
        try:
            yield
        finally:
            handle.remove()
            for block, forward in zip(self._below, own, strict=True):
                block.forward = forward
