"""A frozen backbone in two: what lies below its last blocks, and these, with other weights.

What lies below is the same for ever, so its answers to an image can be kept: a row of numbers, from
which the blocks go on. A network can be entered so wherever its modules are a chain.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.given import FrozenBackbone, keep_maps

__all__ = ["Halves"]

_FORM: Final = 1  # of a row
_SAME: Final = 1e-3  # of the largest latent: other orders of summation
_KEY: Final = "extractor.adapter-blocks"
_CONTAINERS: Final = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class _Call:
    """One pass through a module.

    Attributes:
        name: The module's name.
        input: First thing that went in; None if another one depends on the images, too.
        rest: What else went in by position.
        named: What else went in by name.
        output: What came out.
    """

    name: str
    input: Any
    rest: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Any


class Halves:
    """A backbone that can be entered at its last blocks. It is no module, and has no weights.

    A block is a module of the network's chain that has a 1x1 convolution or a linear layer: those
    are its adaptable layers. Blocks above the highest stage of the cut count for nothing.

    Args:
        backbone: Frozen network, with a cut.
        blocks: How many of the last blocks are the upper half.

    Attributes:
        layers: Weights of the adaptable layers of the upper half, by the layer's name, in order.
        width: Numbers of a row.
        digest: SHA-256 of what decides a row.

    Raises:
        ConfigError: There is no cut, there are fewer blocks, or something other than the modules
            computes between the blocks.
    """

    def __init__(self, backbone: FrozenBackbone, blocks: int) -> None:
        self._backbone = backbone
        if not backbone.layers:
            raise ConfigError(
                f"extractor.backbone = {backbone.name} is not cut, and {_KEY} counts from the last "
                "stage of a cut: set extractor.cut"
            )
        calls, maps = self._traced()
        ends = self._ends(calls, maps)
        last = max(ends)
        adaptable = [at for at, call in enumerate(calls[: last + 1]) if self._adaptable(call.name)]
        if not 1 <= blocks <= len(adaptable):
            allowed = f"1 to {len(adaptable)}" if adaptable else "another backbone"
            raise ConfigError(
                f"{_KEY} = {blocks}: {backbone.name} has {len(adaptable)} blocks with 1x1 "
                f"convolutions or linear layers up to its cut; allowed: {allowed}"
            )
        first = adaptable[-blocks]
        self._pieces = calls[first : last + 1]
        self._check_chain(blocks)
        self._check_once([calls[at].name for at in adaptable[-blocks:]], calls)
        self._adapted = {
            calls[at].name: self._adaptable(calls[at].name) for at in adaptable[-blocks:]
        }
        self.layers: dict[str, Tensor] = {
            layer: backbone.network.get_parameter(f"{layer}.weight")
            for layers in self._adapted.values()
            for layer in layers
        }
        self._shape = tuple(calls[first].input.shape[1:])
        self._entry = math.prod(self._shape)
        self._grids = [
            _Grid(number, end - first, backbone.gridded(maps[layer], number).shape[1])
            for number, (end, (layer, _)) in enumerate(zip(ends, backbone.layers, strict=True))
        ]
        below = [grid for grid in self._grids if grid.end < 0]
        self._below = [(backbone.layers[grid.number][0], grid.number) for grid in below]
        self.width = self._entry + sum(grid.width for grid in below)
        told = [_FORM, self._pieces[0].name, [grid.end < 0 for grid in self._grids]]
        text = json.dumps(told).encode()
        self.digest = hashlib.sha256(backbone.digest + text).digest()
        self._check_whole(blocks)

    def __deepcopy__(self, memo: object) -> "Halves":
        return self

    def lower(self, images: Tensor) -> Tensor:
        """Rows [B, width], float32, of images [B, C, H, W] as ``data.normalise`` makes them."""
        backbone = self._backbone
        seen = backbone.as_wanted(images)
        maps: dict[str, Any] = {}
        entries: list[Tensor] = []

        def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            entries.append(inputs[0])
            raise _EnteredError

        with backbone.passing, torch.no_grad(), ExitStack() as hooks:
            network = backbone.network.to(images.device)
            keep_maps(hooks, network, maps, [layer for layer, _ in self._below])
            entry = network.get_submodule(self._pieces[0].name)
            hooks.callback(entry.register_forward_pre_hook(stop).remove)
            with suppress(_EnteredError):
                network(seen)
        grids = [backbone.gridded(maps[layer], number) for layer, number in self._below]
        return torch.cat([_flat(entries[0].float()), *grids], dim=1)

    def upper(self, rows: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Latents [B, D], float32, of rows [B, width].

        Args:
            rows: What `lower` gave.
            weights: What adaptable layers have, by name, in place of the backbone's; gradients
                reach them.
        """
        backbone, outputs = self._backbone, list[Any]()
        hidden = _shaped(rows[:, : self._entry], self._shape)
        with backbone.passing:  # the weights are the network's for the time of a pass
            network = backbone.network.to(rows.device)
            for piece in self._pieces:
                own = {
                    f"{layer}.weight".removeprefix(f"{piece.name}."): weights[layer]
                    for layer in self._adapted.get(piece.name, ())
                }
                module = network.get_submodule(piece.name)
                outputs.append(
                    functional_call(module, own, (hidden, *piece.rest), dict(piece.named))
                )
                hidden = _first(outputs[-1])
        found, at = [], self._entry
        for grid in self._grids:
            if grid.end < 0:
                found.append(rows[:, at : at + grid.width])
                at += grid.width
            else:
                found.append(backbone.gridded(outputs[grid.end], grid.number))
        return torch.cat(found, dim=1)

    def _adaptable(self, piece: str) -> list[str]:
        """Names of a piece's 1x1 convolutions and linear layers, in order."""
        module = self._backbone.network.get_submodule(piece)
        return [
            f"{piece}.{name}".rstrip(".")
            for name, part in module.named_modules()
            if isinstance(part, nn.Linear)
            or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1)
        ]

    def _traced(self) -> tuple[list[_Call], dict[str, Any]]:
        """What the modules of the chain do to one image, in order, and the maps of the cut."""
        backbone, calls, maps = self._backbone, list[_Call](), dict[str, Any]()
        network = backbone.network
        with backbone.passing, torch.no_grad(), ExitStack() as hooks:
            cut = [layer for layer, _ in backbone.layers]
            keep_maps(hooks, network, maps, cut)
            for name in _pieces_of(network, cut):
                module = network.get_submodule(name)
                handle = module.register_forward_hook(_note(calls, name), with_kwargs=True)
                hooks.callback(handle.remove)
            network(backbone.as_wanted(backbone.probe))
        return calls, maps

    def _ends(self, calls: list[_Call], maps: Mapping[str, Any]) -> list[int]:
        """Which call gives the maps of each stage of the cut."""
        found = []
        for layer, _ in self._backbone.layers:
            ends = [at for at, call in enumerate(calls) if call.output is maps[layer]]
            if not ends:
                raise ConfigError(
                    f"{_KEY}: {self._backbone.name} cannot be entered in the middle: {layer}, "
                    "where it is cut, is no end of a module of its chain; allowed: another "
                    "extractor.cut"
                )
            found.append(ends[-1])
        return found

    def _check_once(self, adapted: Sequence[str], calls: list[_Call]) -> None:
        """Refuse a block that a pass goes through twice: it has one adapter, and one place.

        Raises:
            ConfigError: With the block.
        """
        for name in adapted:
            if (times := sum(call.name == name for call in calls)) > 1:
                raise ConfigError(
                    f"{_KEY}: {self._backbone.name} goes through {name} {times} times in a pass; "
                    "allowed: networks whose blocks are each gone through once"
                )

    def _check_chain(self, blocks: int) -> None:
        """Refuse a network that computes something between its modules.

        Raises:
            ConfigError: With the two modules.
        """
        if not isinstance(self._pieces[0].input, Tensor):
            raise ConfigError(
                f"{_KEY} = {blocks}: {self._backbone.name} cannot be entered there: "
                f"{self._pieces[0].name} reads more than one tensor; allowed: networks whose "
                "blocks read one"
            )
        for one, next_one in pairwise(self._pieces):
            if next_one.input is not _first(one.output):
                raise ConfigError(
                    f"{_KEY} = {blocks}: {self._backbone.name} cannot be entered so low: what "
                    f"{next_one.name} reads is not what {one.name} gave; allowed: fewer blocks, or "
                    "another extractor.cut"
                )

    @torch.no_grad()
    def _check_whole(self, blocks: int) -> None:
        """Refuse halves that are not the whole, with the backbone's own weights.

        Raises:
            ConfigError: The latents of one image differ.
        """
        backbone = self._backbone
        whole = backbone(backbone.probe)
        both = self.upper(self.lower(backbone.probe), self.layers)
        if (both - whole).abs().max() > _SAME * whole.abs().max():
            cut = ", ".join(layer for layer, _ in backbone.layers)
            raise ConfigError(
                f"{_KEY} = {blocks}: {backbone.name} in two halves is not the same network: what "
                f"follows a layer of its cut ({cut}) changes what that gave, as an in-place ReLU "
                "does; allowed: another extractor.cut"
            )


@dataclass(frozen=True)
class _Grid:
    """One stage of the cut.

    Attributes:
        number: Place of the stage in the cut, from 0.
        end: Which piece of the upper half gives the maps; below 0: the lower half does.
        width: How many numbers of a latent come from the stage.
    """

    number: int
    end: int
    width: int


class _EnteredError(Exception):
    """The lower half of a pass is over."""


def _pieces_of(network: nn.Module, cut: Sequence[str]) -> list[str]:
    """Names of the modules of the chain: the network's children.

    Containers are opened, and so is what a layer of the cut lies in.
    """
    found, open_ones = list[str](), [""]
    while open_ones:
        at = open_ones.pop(0)
        for name, child in network.get_submodule(at).named_children():
            path = f"{at}.{name}".lstrip(".")
            opened = any(layer.startswith(f"{path}.") for layer in cut)
            opened |= isinstance(child, _CONTAINERS)
            (open_ones if opened else found).append(path)
    return found


def _note(calls: list[_Call], name: str) -> Any:
    """A hook that notes what a module did."""

    def note(
        module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> None:
        rest = inputs[1:]
        alone = inputs and not any(isinstance(one, Tensor) for one in (*rest, *named.values()))
        calls.append(_Call(name, inputs[0] if alone else None, rest, named, output))

    return note


def _first(output: Any) -> Any:
    """What the next module reads of what one gave."""
    return output[0] if isinstance(output, tuple | list) and output else output


def _flat(hidden: Tensor) -> Tensor:
    """[B, ...] to [B, n]; maps with the channels last, as they are computed."""
    return (hidden.permute(0, 2, 3, 1) if hidden.ndim == 4 else hidden).flatten(1)


def _shaped(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`_flat` taken back."""
    if len(shape) == 3:
        channels, height, width = shape
        return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)
    return rows.view(-1, *shape)
