"""Convolutions in tiles: the numbers of direct ones, and only where they are faster."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from nmoe_flower.models import StandardisedConv2d, winograd

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


@given(
    st.tuples(*(st.integers(1, most) for most in (3, 5, 14, 14))),
    st.integers(1, 5),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_maps_and_gradients_are_those_of_direct_sums(
    shape: tuple[int, ...], outputs: int, layout: torch.memory_format
) -> None:
    maps, filters = maps_and_filters(*shape, outputs=outputs)
    exact = with_gradients(lambda x, w: F.conv2d(x, w, padding=1), maps.double(), filters.double())
    both = (one.contiguous(memory_format=layout) for one in (maps, filters))
    found = with_gradients(winograd.convolve, *both)
    for ours, right in zip(found, exact, strict=True):
        assert_close(ours, right)


def test_maps_of_many_tiles_come_in_parts() -> None:
    maps, filters = maps_and_filters(5, 2, 33, 33, outputs=3)  # 81 tiles each, so 2 + 2 + 1 of them
    assert [part.stop - part.start for part, _ in winograd._parts(maps)] == [2, 2, 1]
    exact = with_gradients(lambda x, w: F.conv2d(x, w, padding=1), maps.double(), filters.double())
    found = with_gradients(winograd.convolve, maps, filters)
    for ours, right in zip(found, exact, strict=True):
        assert_close(ours, right)


def test_many_networks_at_once_are_convolved_one_by_one() -> None:
    maps, filters = maps_and_filters(6, 2, 5, 5, outputs=8)
    several = maps.view(3, 2, 2, 5, 5)
    found = vmap(winograd.convolve, in_dims=(0, None))(several, filters)
    for one, ours in zip(several, found, strict=True):
        assert_close(ours, F.conv2d(one, filters, padding=1))


def test_a_second_derivative_is_refused() -> None:
    maps, filters = (one.requires_grad_() for one in maps_and_filters(1, 1, 4, 4, outputs=1))
    loss = winograd.convolve(maps, filters).square().sum()
    (slope,) = torch.autograd.grad(loss, filters, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def channels_last(*shape: int) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=source).contiguous(memory_format=torch.channels_last)


def test_wide_layers_are_computed_in_tiles() -> None:
    layer, maps = StandardisedConv2d(**WIDE), channels_last(13, 64, 7, 7)
    found = layer(maps)
    assert type(found.grad_fn).__name__ == "_WinogradBackward"
    exact = F.conv2d(maps, layer.standardised_weight(), padding=1)
    assert_close(found, exact)
    assert not torch.equal(found, exact)


@pytest.mark.parametrize(
    ("maps", "pays"),
    [
        (channels_last(13, 64, 7, 7), True),  # 4 tiles each, 52; 36 x 4 products for 9 x 49
        (channels_last(12, 64, 7, 7), False),  # 48 tiles
        (channels_last(50, 64, 3, 3), True),  # 36 products for 81
        (channels_last(50, 64, 5, 5), False),  # 36 x 4 for 9 x 25
        (channels_last(50, 64, 7, 7).contiguous(), False),
        (channels_last(50, 64, 7, 7).bfloat16(), False),
        (channels_last(50, 64, 7, 7).to("meta"), False),
        (torch.zeros(32, 32, 64).permute(2, 0, 1), False),  # one map, without a batch
    ],
)
def test_it_pays_for_maps_that_fill_their_tiles(maps: Tensor, pays: bool) -> None:
    assert winograd.pays(nn.Conv2d(**WIDE), maps) is pays


@pytest.mark.parametrize(
    "change",
    [
        {"out_channels": 255},
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
    assert not winograd.pays(nn.Conv2d(**{**WIDE, **change}), channels_last(50, 64, 7, 7))


@pytest.mark.parametrize("threads", [1, 2])
def test_it_pays_for_one_thread_in_float32(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    layer, maps = nn.Conv2d(**WIDE), channels_last(50, 64, 7, 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert winograd.pays(layer, maps) is (threads == 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.pays(layer, maps)


def test_it_pays_only_where_products_are_those_of_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)  # as on ARM
    layer = nn.Conv2d(**WIDE)
    assert not winograd.pays(layer, channels_last(50, 64, 7, 7))
