"""Convolutions of 3 by 3 pixels with a half to a sixth of the multiplications, on a CPU.

A tile of m by m outputs sees n by n inputs, n = m + 2. Inputs and filters are each transformed into
n^2 numbers per channel, these are multiplied and added up over the channels, and the outputs are
read off: for m = 4 this takes 36 products where sums over 3 by 3 pixels take 144. Transforming the
inputs costs the same for any number of filters, so wide layers gain. Of the sizes 2 to 6, maps are
cut into tiles of the one that takes the fewest multiplications.

Source: Lavin & Gray 2016 (Fast algorithms for convolutional neural networks), F(m x m, 3 x 3); the
transforms are those of Toom and Cook, which evaluate polynomials at points.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["convolve", "pays"]

_SIZES = range(2, 7)  # one more point, and rounding errors are ten times as large
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # and infinity
_TOGETHER = 200  # tiles of a part, so that its products stay in the processor's caches
_LEAST_GAIN = 2  # quotient of the multiplications; below, moving numbers costs what they save


class _Transforms(NamedTuple):
    """For tiles of one size m, matrices for all pixels of a tile at once."""

    inputs: Tensor  # [n^2, n^2]
    filters: Tensor  # [n^2, 9]
    outputs: Tensor  # [m^2, n^2]

    @classmethod
    def of(cls, size: int) -> Self:
        """Transforms of Toom and Cook: numbers are coefficients of polynomials, read at points."""
        points = np.array(_POINTS[: size + 1])
        others = [np.delete(points, at) for at in range(len(points))]
        scales = [np.prod(point - rest) for point, rest in zip(points, others, strict=True)]
        inputs = [np.append(np.poly(rest)[::-1], 0.0) for rest in others] + [np.poly(points)[::-1]]
        filters = [*(np.vander(points, 3, increasing=True).T / scales).T, np.eye(3)[-1]]
        outputs = [*np.vander(points, size, increasing=True), np.eye(size)[-1]]
        return cls(*map(_both_ways, (np.stack(inputs), np.stack(filters), np.stack(outputs).T)))


def _both_ways(one: np.ndarray) -> Tensor:
    """A matrix for the columns and the rows of a tile, as one for all its pixels."""
    return torch.from_numpy(np.kron(one, one).astype(np.float32))


_TRANSFORMS: Final = {size: _Transforms.of(size) for size in _SIZES}


@dataclass(frozen=True)
class _Tiling:
    """Maps cut into tiles of ``size`` by ``size`` outputs, in so many rows and columns."""

    size: int
    rows: int
    columns: int

    @property
    def seen(self) -> int:
        """Pixels across that a tile sees, n."""
        return self.size + 2

    @property
    def extent(self) -> tuple[int, int]:
        """Pixels down and across of all tiles' outputs."""
        return self.size * self.rows, self.size * self.columns

    def multiplications(self, batch: int, inputs: int, outputs: int) -> int:
        """How many a batch takes, with so many channels before and after; transforms included."""
        transforms = self.seen**2 * inputs + self.size**2 * outputs
        tiles = batch * self.rows * self.columns
        return self.seen**2 * (tiles * (inputs * outputs + transforms) + 9 * inputs * outputs)

    def parts(self, batch: int) -> list[slice]:
        """Some of the maps at a time; all parts but the last are equally large."""
        step = min(batch, max(1, _TOGETHER // (self.rows * self.columns)))
        return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


@lru_cache(maxsize=256)
def _tiling(batch: int, inputs: int, outputs: int, height: int, width: int) -> _Tiling:
    """The one with the fewest multiplications for outputs [batch, outputs, height, width]."""
    found = [_Tiling(size, -(-height // size), -(-width // size)) for size in _SIZES]
    return min(found, key=lambda one: one.multiplications(batch, inputs, outputs))


def pays(layer: nn.Conv2d, maps: Tensor, shape: Sequence[int]) -> bool:
    """Whether `convolve` does to these maps what the layer does, and is faster at it.

    It is for wide layers of 3 by 3 pixels in float32, where one thread computes on an x86 processor
    in channels-last order.

    Args:
        layer: It would be called otherwise, and computes all outputs.
        maps: What it would be given.
        shape: Height and width of the outputs that are wanted.
    """
    if not (
        maps.ndim == 4
        and maps.device.type == "cpu"
        and maps.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.get_num_threads() == 1
        and maps.stride(1) == 1
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == layer.padding == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and layer.bias is None
    ):
        return False
    channels = (len(maps), layer.in_channels, layer.out_channels)
    fewest = _tiling(*channels, *shape).multiplications(*channels)
    return maps.numel() * layer.out_channels * 9 >= _LEAST_GAIN * fewest


def convolve(maps: Tensor, filters: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """What ``torch.nn.functional.conv2d(maps, filters, padding=1)`` gives, up to rounding.

    Its errors are some ten to thirty times those of direct sums, and less than a hundredth of
    bfloat16's. It has a first derivative and no second one.

    Args:
        maps: Float32 [B, in, H, W].
        filters: Float32 [out, in, 3, 3].
        shape: Height and width of the outputs that are wanted, from the top left, each at most one
            less than H and W; None: of all.

    Returns:
        Maps [B, out, h, w], channels last: as large as ``shape``, and H and W at most.

    >>> maps, filters = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    >>> convolve(maps, filters)[0, 0, 0].round().tolist()
    [4.0, 6.0, 6.0, 4.0]
    """
    outputs, inputs, *_ = filters.shape
    tiling = _tiling(len(maps), inputs, outputs, *(maps.shape[2:] if shape is None else shape))
    return _convolved(maps, filters, tiling)


def _convolved(maps: Tensor, filters: Tensor, tiling: _Tiling) -> Tensor:
    trains = torch.is_grad_enabled() and (maps.requires_grad or filters.requires_grad)
    found: Tensor = _Winograd.apply(maps, filters, tiling, trains)[0]
    return found


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(maps: Tensor, filters: Tensor, tiling: _Tiling, trains: bool) -> tuple[Tensor, ...]:
        """Outputs; and for the way back, the transformed inputs."""
        transformed, reading = _transformed(filters, tiling), _TRANSFORMS[tiling.size].outputs
        shape = map(min, tiling.extent, maps.shape[2:])
        found = maps.new_empty(len(maps), *shape, len(filters))
        kept = []
        for part, tiles in _tiles(maps, tiling):
            products = tiles @ transformed.transpose(1, 2)
            _join(reading @ products.flatten(1), found[part], tiling)
            if trains:
                kept.append(tiles)
        return found.permute(0, 3, 1, 2), *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        maps, filters, ctx.tiling, _ = inputs
        _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(maps, filters, *kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor, Tensor, None, None]:
        """Every step of the way forward, transposed."""
        maps, filters, *kept = ctx.saved_tensors
        tiling: _Tiling = ctx.tiling
        transforms, transformed = _TRANSFORMS[tiling.size], _transformed(filters, tiling)
        of_transformed = torch.empty_like(transformed)
        of_maps = torch.empty_like(maps.permute(0, 2, 3, 1))
        parts = tiling.parts(len(maps))
        for part, tiles in zip(parts, kept, strict=True) if kept else _tiles(maps, tiling):
            products = transforms.outputs.T @ _cut(gradient[part], tiling)
            products = products.view(tiling.seen**2, -1, len(filters))
            of_transformed.baddbmm_(products.transpose(1, 2), tiles, beta=float(part.start > 0))
            of_tiles = transforms.inputs.T @ (products @ transformed).flatten(1)
            _add_up(of_tiles, of_maps[part], tiling)
        of_pixels = transforms.filters.T @ of_transformed.flatten(1)
        of_filters = of_pixels.view(3, 3, *filters.shape[:2]).permute(2, 3, 0, 1)
        return of_maps.permute(0, 3, 1, 2), of_filters, None, None

    @staticmethod
    def vmap(
        info: Any,
        where: tuple[int | None, ...],
        maps: Tensor,
        filters: Tensor,
        tiling: _Tiling,
        trains: bool,
    ) -> tuple[tuple[Tensor], tuple[int]]:
        """One after the other."""
        several, own = (
            [one] * info.batch_size if at is None else one.unbind(at)
            for one, at in zip((maps, filters), where, strict=False)
        )
        found = [_convolved(*pair, tiling) for pair in zip(several, own, strict=True)]
        return (torch.stack(found),), (0,)


def _transformed(filters: Tensor, tiling: _Tiling) -> Tensor:
    """Filters [out, in, 3, 3] as numbers of a tile for each pair of channels, [n^2, out, in]."""
    pixels = filters.permute(2, 3, 0, 1).reshape(9, -1)
    return (_TRANSFORMS[tiling.size].filters @ pixels).view(-1, *filters.shape[:2])


def _tiles(maps: Tensor, tiling: _Tiling) -> Iterator[tuple[slice, Tensor]]:
    """Some of the maps at a time, and their tiles as numbers per channel, [n^2, tiles, C]."""
    batch, channels, height, width = maps.shape
    parts, size, seen = tiling.parts(batch), tiling.size, tiling.seen
    edged = maps.new_zeros(parts[0].stop, *(whole + 2 for whole in tiling.extent), channels)
    image, row, column, _ = edged.stride()
    for part in parts:
        count = part.stop - part.start
        edged[:count, 1 : 1 + height, 1 : 1 + width] = maps[part].permute(0, 2, 3, 1)
        tiles = edged.as_strided(
            (seen, seen, count, tiling.rows, tiling.columns, channels),
            (row, column, image, size * row, size * column, 1),
        )
        transformed = _TRANSFORMS[size].inputs @ tiles.reshape(seen**2, -1)
        yield part, transformed.view(seen**2, -1, channels)


def _join(outputs: Tensor, maps: Tensor, tiling: _Tiling) -> None:
    """Write tiles of outputs [m^2, tiles x C] to maps [B, H, W, C]."""
    batch, height, width, channels = maps.shape
    order = (tiling.size, tiling.size, batch, tiling.rows, tiling.columns, channels)
    tiles = outputs.view(order).permute(2, 3, 0, 4, 1, 5)
    if (height, width) == tiling.extent:
        maps.view_as(tiles).copy_(tiles)
    else:
        maps.copy_(tiles.reshape(batch, *tiling.extent, channels)[:, :height, :width])


def _cut(maps: Tensor, tiling: _Tiling) -> Tensor:
    """Maps [B, C, H, W] as tiles of outputs [m^2, tiles x C], filled up with zeros."""
    whole = own = maps.permute(0, 2, 3, 1)
    batch, height, width, channels = own.shape
    if (height, width) != tiling.extent:
        whole = own.new_zeros(batch, *tiling.extent, channels)
        whole[:, :height, :width] = own
    size = tiling.size
    tiles = whole.view(batch, tiling.rows, size, tiling.columns, size, channels)
    return tiles.permute(2, 4, 0, 1, 3, 5).reshape(size**2, -1)


def _add_up(inputs: Tensor, maps: Tensor, tiling: _Tiling) -> None:
    """Write to maps [B, H, W, C] the sums of overlapping tiles of inputs [n^2, tiles x C]."""
    batch, height, width, channels = maps.shape
    tiles = inputs.view(-1, tiling.seen, batch, tiling.rows, tiling.columns, channels)
    strips = _overlapped(tiles.transpose(0, 1))
    whole = _overlapped(strips.flatten(-2)).view(batch, -1, strips.shape[-2], channels)
    maps.copy_(whole[:, 1 : 1 + height, 1 : 1 + width])


def _overlapped(pieces: Tensor) -> Tensor:
    """Sums [..., m T + 2, C] of T pieces [m + 2, ..., T, C] in a row; neighbours share two."""
    _, *between, count, width = pieces.shape
    size = len(pieces) - 2
    whole = pieces.new_empty(*between, size * count + 2, width)
    whole[..., -2:, :] = 0
    whole[..., :-2, :].view(*between, count, size, width).copy_(pieces[:size].movedim(0, -2))
    for at in (size, size + 1):
        whole[..., at::size, :] += pieces[at]
    return whole
