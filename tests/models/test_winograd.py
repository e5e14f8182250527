"""Convolutions in tiles: the numbers of direct ones, and only where they are faster."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from nmoe_flower.models import StandardisedConv2d, TiledConv2d, winograd
from nmoe_flower.models.blocks import convolve_and_halve

WIDE: dict[str, Any] = {
    "in_channels": 64, "out_channels": 256, "kernel_size": 3, "padding": 1, "bias": False
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)


def maps_and_filters(*shape: int, outputs: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(sum(shape))
    maps = torch.randn(*shape, generator=source)
    return maps, torch.randn(outputs, shape[1], 3, 3, generator=source) / (9 * shape[1]) ** 0.5


def assert_close(found: Tensor, exact: Tensor) -> None:
    assert (found - exact).abs().max() < 1e-4 * exact.abs().max().clamp(min=1.0)


def with_gradients(convolve: Any, *both: Tensor) -> list[Tensor]:
    leaves = [one.detach().clone().requires_grad_() for one in both]
    found: Tensor = convolve(*leaves)
    weights = torch.linspace(-1.0, 1.0, found.numel(), dtype=found.dtype).view(found.shape)
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), leaves)]


@pytest.fixture(params=winograd._SIZES)
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tiles of one size, whatever takes the fewest multiplications."""
    size: int = request.param

    def tiling(batch: int, inputs: int, outputs: int, height: int, width: int) -> winograd._Tiling:
        return winograd._Tiling(size, -(-height // size), -(-width // size))

    monkeypatch.setattr(winograd, "_tiling", tiling)
    return size


def assert_right(maps: Tensor, filters: Tensor, shape: tuple[int, ...]) -> None:
    """Maps and gradients are those of direct sums in float64."""
    height, width = shape
    exact = with_gradients(
        lambda x, w: F.conv2d(x, w, padding=1)[:, :, :height, :width],
        *(one.double() for one in (maps, filters)),
    )
    found = with_gradients(
        lambda x, w: winograd.convolve(x, w, shape)[:, :, :height, :width], maps, filters
    )
    for ours, right in zip(found, exact, strict=True):
        assert_close(ours, right)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*(st.integers(1, most) for most in (3, 5, 14, 14))),
    st.integers(1, 5),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_maps_and_gradients_are_those_of_direct_sums(
    size: int,
    shape: tuple[int, ...],
    outputs: int,
    missing: tuple[int, int],
    layout: torch.memory_format,
) -> None:
    both = maps_and_filters(*shape, outputs=outputs)
    wanted = tuple(max(1, all - few) for all, few in zip(shape[2:], missing, strict=True))
    maps, filters = (one.contiguous(memory_format=layout) for one in both)
    assert_right(maps, filters, wanted)


def test_maps_of_many_tiles_come_in_parts(size: int) -> None:
    across = 9 * size  # 81 tiles each, so 2 + 2 + 1 of the maps
    maps, filters = maps_and_filters(5, 2, across, across, outputs=3)
    tiling = winograd._tiling(5, 2, 3, across, across)
    assert [part.stop - part.start for part in tiling.parts(5)] == [2, 2, 1]
    assert_right(maps, filters, (across, across))


@pytest.mark.parametrize(
    ("outputs", "size"),
    [
        (15, 5),  # 49 x 9 products; 36 x 16 of size 4, 25 x 25 of size 3
        (14, 5),
        (7, 4),  # 36 x 4
        (6, 6),  # 64; 25 x 4 of size 3
        (4, 4),
        (3, 3),
        (2, 2),
    ],
)
def test_tiles_are_of_the_size_that_takes_the_fewest_multiplications(
    outputs: int, size: int
) -> None:
    assert winograd._tiling(50, 256, 256, outputs, outputs).size == size


def test_multiplications_are_those_of_products_and_transforms() -> None:
    tiling = winograd._tiling(50, 64, 256, 7, 7)
    assert (tiling.size, tiling.rows, tiling.columns) == (4, 2, 2)
    of_tile = 36 * 64 * 256 + 36 * 36 * 64 + 16 * 36 * 256
    assert tiling.multiplications(50, 64, 256) == 50 * 4 * of_tile + 36 * 9 * 64 * 256


def test_many_networks_at_once_are_convolved_one_by_one() -> None:
    maps, filters = maps_and_filters(6, 2, 5, 5, outputs=8)
    several = maps.view(3, 2, 2, 5, 5)
    leaf = filters.clone().requires_grad_()
    found = vmap(winograd.convolve, in_dims=(0, None))(several, leaf)
    (slope,) = torch.autograd.grad(found.sum(), leaf)
    exact = F.conv2d(maps, leaf, padding=1)
    assert_close(found.flatten(0, 1), exact)
    assert_close(slope, *torch.autograd.grad(exact.sum(), leaf))


def test_a_second_derivative_is_refused() -> None:
    maps, filters = (one.requires_grad_() for one in maps_and_filters(1, 1, 4, 4, outputs=1))
    loss = winograd.convolve(maps, filters).square().sum()
    (slope,) = torch.autograd.grad(loss, filters, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def channels_last(*shape: int) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=source).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [TiledConv2d, StandardisedConv2d])
def test_wide_layers_are_computed_in_tiles(kind: type[TiledConv2d]) -> None:
    layer, maps = kind(**WIDE), channels_last(16, 64, 7, 7)
    found = layer(maps)
    assert type(found.grad_fn).__name__ == "_WinogradBackward"
    exact = F.conv2d(maps, layer.filters(), padding=1)
    assert_close(found, exact)
    assert not torch.equal(found, exact)


def test_rows_nobody_looks_at_are_not_computed() -> None:
    layer, maps = StandardisedConv2d(**WIDE), channels_last(50, 64, 7, 7)
    found = layer(maps, even=True)
    exact = F.conv2d(maps, layer.filters(), padding=1)
    assert found.shape == (50, 256, 6, 6)
    assert_close(found, exact[:, :, :6, :6])
    assert_close(convolve_and_halve(layer, maps), F.max_pool2d(exact, 2))
    assert layer(channels_last(50, 64, 15, 15), even=True).shape[2:] == (15, 15)  # 3 tiles of 5
    with torch.autocast("cpu", torch.bfloat16):  # torch computes all
        assert layer(maps, even=True).shape == exact.shape


@pytest.mark.parametrize(
    ("maps", "across", "pays"),
    [
        # Of 9 x 49 products for a map and a pair of channels, tiles of 4 take 36 x 4 and the
        # transforms, 36 x 4 x 22,784 in all; for 16 maps with 36 x 9 x 16,384 for filters a half.
        (channels_last(16, 64, 7, 7), 7, True),
        (channels_last(15, 64, 7, 7), 7, False),
        (channels_last(4, 64, 7, 7), 6, True),  # 25 x 4, or 64
        (channels_last(50, 64, 5, 5), 5, True),  # 49 for 9 x 25
        (channels_last(50, 64, 7, 7).contiguous(), 7, False),
        (channels_last(50, 64, 7, 7).bfloat16(), 7, False),
        (channels_last(50, 64, 7, 7).to("meta"), 7, False),
        (torch.zeros(32, 32, 64).permute(2, 0, 1), 32, False),  # one map, without a batch
    ],
)
def test_it_pays_where_half_of_the_multiplications_are_left(
    maps: Tensor, across: int, pays: bool
) -> None:
    assert winograd.pays(nn.Conv2d(**WIDE), maps, (across, across)) is pays


@pytest.mark.parametrize(
    "change",
    [
        {"in_channels": 24, "out_channels": 64},
        {"kernel_size": 5},
        {"padding": 0},
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2, "out_channels": 512},
        {"padding_mode": "reflect"},
        {"bias": True},
    ],
)
def test_other_layers_are_left_to_torch(change: dict[str, Any]) -> None:
    layer = nn.Conv2d(**{**WIDE, **change})
    assert not winograd.pays(layer, channels_last(50, layer.in_channels, 7, 7), (7, 7))


@pytest.mark.parametrize("threads", [1, 2])
def test_it_pays_for_one_thread_in_float32(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    layer, maps = nn.Conv2d(**WIDE), channels_last(50, 64, 7, 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert winograd.pays(layer, maps, (7, 7)) is (threads == 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.pays(layer, maps, (7, 7))


def test_it_pays_only_where_products_are_those_of_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)  # as on ARM
    layer = nn.Conv2d(**WIDE)
    assert not winograd.pays(layer, channels_last(50, 64, 7, 7), (7, 7))
