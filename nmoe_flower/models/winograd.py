"""Convolutions of 3 by 3 pixels with a half to a quarter of the multiplications, on a CPU.

A tile of 4 by 4 outputs sees 6 by 6 inputs. Inputs and filters are each transformed into 36 numbers
per channel, these are multiplied and added up over the channels, and the 16 outputs are read off:
36 products where the sum over 3 by 3 pixels takes 144. Transforming the inputs costs the same for
any number of filters, so wide layers gain.

Source: Lavin & Gray 2016 (Fast algorithms for convolutional neural networks), F(4 x 4, 3 x 3).
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["convolve", "pays"]

_TILES = 200  # of a part, so that its products stay in the processor's caches
_FEWEST_TILES = 50  # fewer do not make up for transforming the filters
_FEWEST_WEIGHTS = 9 * 64 * 256  # transforming the maps of narrower layers costs as much as it saves
_LEAST_GAIN = 2  # quotient of the multiplications; maps that leave their tiles empty fall below


def _both_ways(rows: list[list[float]]) -> Tensor:
    """A matrix for the columns and the rows of a tile, as one for all its pixels."""
    one = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(one, one).float()


_INPUT_TRANSFORM: Final = _both_ways(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)  # [36, 36]
_FILTER_TRANSFORM: Final = _both_ways(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)  # [36, 9]
_OUTPUT_TRANSFORM: Final = _both_ways(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)  # [16, 36]


def pays(layer: nn.Conv2d, maps: Tensor) -> bool:
    """Whether `convolve` does to these maps what the layer does, and is faster at it.

    It is for wide layers of 3 by 3 pixels in float32, where one thread computes on an x86 processor
    in channels-last order.
    """
    if maps.ndim != 4:
        return False
    batch, _, height, width = maps.shape
    rows, columns = _tiles(height, width)
    return (
        maps.device.type == "cpu"
        and maps.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.get_num_threads() == 1
        and maps.stride(1) == 1
        and layer.weight.numel() >= _FEWEST_WEIGHTS
        and batch * rows * columns >= _FEWEST_TILES
        and 9 * height * width >= _LEAST_GAIN * 36 * rows * columns
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == layer.padding == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and layer.bias is None
    )


def convolve(maps: Tensor, filters: Tensor) -> Tensor:
    """What ``torch.nn.functional.conv2d(maps, filters, padding=1)`` gives, up to rounding.

    Its errors are some ten times those of direct sums, and a thousandth of bfloat16's. It has a
    first derivative and no second one.

    Args:
        maps: Float32 [B, in, H, W].
        filters: Float32 [out, in, 3, 3].

    Returns:
        Maps [B, out, H, W], channels last.

    >>> maps, filters = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    >>> convolve(maps, filters)[0, 0, 0].round().tolist()
    [4.0, 6.0, 6.0, 4.0]
    """
    found: Tensor = _Winograd.apply(maps, filters)
    return found


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(maps: Tensor, filters: Tensor) -> Tensor:
        transformed = _transformed(filters)
        batch, _, height, width = maps.shape
        found = maps.new_empty(batch, height, width, len(filters))
        for part, tiles in _parts(maps):
            products = tiles @ transformed.transpose(1, 2)
            _join(_OUTPUT_TRANSFORM @ products.view(36, -1), found[part])
        return found.permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Every step of the way forward, transposed."""
        maps, filters = ctx.saved_tensors
        transformed = _transformed(filters)
        of_transformed = torch.empty_like(transformed)
        of_maps = torch.empty_like(maps.permute(0, 2, 3, 1))
        for part, tiles in _parts(maps):
            products = (_OUTPUT_TRANSFORM.T @ _cut(gradient[part])).view(36, -1, len(filters))
            of_transformed.baddbmm_(products.transpose(1, 2), tiles, beta=float(part.start > 0))
            _add_up(_INPUT_TRANSFORM.T @ (products @ transformed).view(36, -1), of_maps[part])
        of_filters = (_FILTER_TRANSFORM.T @ of_transformed.view(36, -1)).view(
            3, 3, *filters.shape[:2]
        )
        return of_maps.permute(0, 3, 1, 2), of_filters.permute(2, 3, 0, 1)

    @staticmethod
    def vmap(info: Any, where: tuple[int | None, int | None], *both: Tensor) -> tuple[Tensor, int]:
        """One after the other."""
        each = (
            [one] * info.batch_size if at is None else one.unbind(at)
            for one, at in zip(both, where, strict=True)
        )
        return torch.stack([convolve(*pair) for pair in zip(*each, strict=True)]), 0


def _tiles(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles that cover a map."""
    return -(-height // 4), -(-width // 4)


def _transformed(filters: Tensor) -> Tensor:
    """Filters [out, in, 3, 3] as 36 numbers for each pair of channels, [36, out, in]."""
    pixels = filters.permute(2, 3, 0, 1).reshape(9, -1)
    return (_FILTER_TRANSFORM @ pixels).view(36, *filters.shape[:2])


def _parts(maps: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some of the maps at a time, and their tiles as 36 numbers per channel, [36, tiles, C]."""
    batch, channels, height, width = maps.shape
    rows, columns = _tiles(height, width)
    size = min(batch, max(1, _TILES // (rows * columns)))
    edged = maps.new_zeros(size, 4 * rows + 2, 4 * columns + 2, channels)
    image, row, column, _ = edged.stride()
    for start in range(0, batch, size):
        part = slice(start, min(start + size, batch))
        count = part.stop - start
        edged[:count, 1 : 1 + height, 1 : 1 + width] = maps[part].permute(0, 2, 3, 1)
        tiles = edged.as_strided(
            (6, 6, count, rows, columns, channels), (row, column, image, 4 * row, 4 * column, 1)
        )
        yield part, (_INPUT_TRANSFORM @ tiles.reshape(36, -1)).view(36, -1, channels)


def _join(outputs: Tensor, maps: Tensor) -> None:
    """Write tiles of outputs [16, tiles x C] to maps [B, H, W, C]."""
    batch, height, width, channels = maps.shape
    rows, columns = _tiles(height, width)
    tiles = outputs.view(4, 4, batch, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
    whole = tiles.reshape(batch, 4 * rows, 4 * columns, channels)
    maps.copy_(whole[:, :height, :width])


def _cut(maps: Tensor) -> Tensor:
    """Maps [B, C, H, W] as tiles of outputs [16, tiles x C], filled up with zeros."""
    batch, channels, height, width = maps.shape
    rows, columns = _tiles(height, width)
    whole = maps.new_zeros(batch, 4 * rows, 4 * columns, channels)
    whole[:, :height, :width] = maps.permute(0, 2, 3, 1)
    tiles = whole.view(batch, rows, 4, columns, 4, channels).permute(2, 4, 0, 1, 3, 5)
    return tiles.reshape(16, -1)


def _add_up(inputs: Tensor, maps: Tensor) -> None:
    """Write to maps [B, H, W, C] the sums of overlapping tiles of inputs [36, tiles x C]."""
    batch, height, width, channels = maps.shape
    rows, columns = _tiles(height, width)
    tiles = inputs.view(6, 6, batch, rows, columns, channels)
    strips = maps.new_zeros(6, batch, rows, 4 * columns + 2, channels)
    whole = maps.new_zeros(batch, 4 * rows + 2, 4 * columns + 2, channels)
    for at in range(6):
        strips[:, :, :, at : at + 4 * columns - 3 : 4] += tiles[:, at]
    for at in range(6):
        whole[:, at : at + 4 * rows - 3 : 4] += strips[at]
    maps.copy_(whole[:, 1 : 1 + height, 1 : 1 + width])
