from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.models import configured_extractor
from nmoe_flower.models.blocks import NORMS, StandardisedConv2d, make_conv, make_norm, patch_cosines
from nmoe_flower.models.extractor import LATENT_SCALE, StagedExtractor, build_extractor

SMALL: dict[str, dict[str, Any]] = {
    "digits": {"in_channels": 1, "image_size": 8},
    "narrow": {"widths": (8, 16, 24), "image_size": 17},
    "narrow-residual": {"widths": (8, 16, 24), "image_size": 17},
    "resnet18": {"widths": (8, 8, 16, 24), "image_size": 16},
}


def pixels(options: dict[str, Any], batch: int = 4) -> Tensor:
    size, channels = options.get("image_size", 32), options.get("in_channels", 3)
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SMALL)
def test_latents_are_float32_and_every_parameter_learns(name: str, norm: str) -> None:
    torch.manual_seed(0)
    extractor = build_extractor(name, norm=norm, **SMALL[name])
    for parameter in extractor.parameters():  # a branch that starts at zero blocks gradients
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
    latents = extractor(pixels(SMALL[name]))
    assert latents.shape == (4, extractor.latent_dim)
    assert latents.dtype == torch.float32
    # A sum of squares would be constant, since every latent has one length.
    torch.arange(latents.numel()).view_as(latents).mul(latents).sum().backward()
    for key, parameter in extractor.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize(
    ("name", "pool", "expected"),
    [
        ("digits", "last", 64),
        ("digits", "multi", 64 + 9 * 32),
        ("narrow", "last", 24),
        ("narrow", "last-mean", 24),
        ("narrow", "multi", 24 + 9 * (8 + 16)),
        ("resnet18", "last-max", 24),
        ("resnet18", "multi", 24 + 9 * (8 + 8 + 16)),
    ],
)
def test_the_cut_sets_the_latent_size(name: str, pool: str, expected: int) -> None:
    extractor = build_extractor(name, pool=pool, **SMALL[name])
    assert extractor.latent_dim == expected
    assert extractor(pixels(SMALL[name])).shape == (4, expected)


def test_the_cut_pools_the_maps_of_the_stages() -> None:
    def latents(pool: str) -> Tensor:
        stages = [nn.Identity(), nn.MaxPool2d(2)]
        return StagedExtractor(nn.Identity(), stages, (1, 1), pool=pool).pooled(maps)

    maps = torch.arange(36.0).view(1, 1, 6, 6)
    # After pooling 2x2 the last stage holds 7 9 11 / 19 21 23 / 31 33 35: mean 21, maximum 35.
    # A 3x3 grid of the first stage has the means of its 2x2 cells: 3.5 below each maximum.
    assert latents("last-max").tolist() == [[35.0]]
    assert latents("last-mean").tolist() == [[21.0]]
    cells = [3.5, 5.5, 7.5, 15.5, 17.5, 19.5, 27.5, 29.5, 31.5]
    assert latents("multi").tolist() == [[21.0, *cells]]


@pytest.mark.parametrize("name", SMALL)
def test_latents_have_mean_zero_and_one_scale(name: str) -> None:
    latents = build_extractor(name, **SMALL[name])(5 * pixels(SMALL[name]) + 1)
    assert latents.mean(1).abs().max() < 1e-6
    rms = latents.square().mean(1).sqrt()
    assert torch.allclose(rms, torch.full_like(rms, 0.25), rtol=1e-3)


def test_a_mirror_averages_the_maps_of_both_sides_outside_training() -> None:
    config = Config.parse({"extractor.backbone": "narrow", "extractor.mirror": True})
    body = configured_extractor(config, (3, 32, 32))
    plain = configured_extractor(Config.parse({"extractor.backbone": "narrow"}), (3, 32, 32))
    plain.load_state_dict(body.state_dict())
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    turned = images.flip(-1)
    assert isinstance(body, StagedExtractor)
    with torch.inference_mode():
        assert torch.equal(body.train()(images), plain.train()(images))
        latents = body.eval()(images)
        assert torch.allclose(body(turned), latents, atol=1e-6)  # the order of a sum
        mean = (body.pooled(images) + body.pooled(turned)) / 2
        wanted = (
            LATENT_SCALE * (mean - mean.mean(1, True)) / mean.std(1, correction=0, keepdim=True)
        )
        assert torch.allclose(latents, wanted, atol=1e-4)
        assert not torch.allclose(latents, plain.eval()(images), atol=1e-3)


@pytest.mark.parametrize("backbone", ["mlp", "linear", "mine:Net"])
def test_only_images_have_a_mirror(backbone: str) -> None:
    with pytest.raises(ConfigError, match=r"(?i)mirror = true"):
        Config.parse({"extractor.backbone": backbone, "extractor.mirror": True})


def test_default_sizes() -> None:
    def count(name: str, **options: Any) -> int:
        return sum(p.numel() for p in build_extractor(name, **options).parameters())

    # stem 3*64*9; blocks 64: 4*64*64*9; then 64-128, 128-256, 256-512: (1+2+2+2)*c*c/2*9 each
    # = 4.5*c*c*7 and a 1x1 shortcut c*c/2; GroupNorm 2*c per layer: stem, 4 + 3*5 layers.
    stages = sum(63 * c * c // 2 + c * c // 2 for c in (128, 256, 512))
    norms = 2 * (5 * 64 + 5 * (128 + 256 + 512))
    assert count("resnet18") == 3 * 64 * 9 + 4 * 64 * 64 * 9 + stages + norms
    assert build_extractor("resnet18").latent_dim == 512
    assert 10_000 < count("digits", in_channels=1, image_size=8) < 40_000
    assert build_extractor("narrow").latent_dim == 256


@pytest.mark.parametrize("stem", ["cifar", "patch", "pool", "cosine"])
def test_stems_take_odd_sizes_and_grey_images(stem: str) -> None:
    extractor = build_extractor("digits", in_channels=1, image_size=19, stem=stem)
    assert extractor(torch.randn(2, 1, 19, 19)).shape == (2, 64)


@pytest.mark.parametrize("name", ["digits", "narrow", "narrow-residual", "resnet18"])
@pytest.mark.parametrize("stem", ["cifar", "patch", "pool"])
def test_smallest_image_works_and_one_less_is_refused(name: str, stem: str) -> None:
    options: dict[str, Any] = {**SMALL[name], "stem": stem}
    smallest = (4 if name == "digits" else 8) * (1 if stem == "cifar" else 2)
    options["image_size"] = smallest
    assert build_extractor(name, **options)(pixels(options)).isfinite().all()
    options["image_size"] = smallest - 1
    with pytest.raises(ConfigError, match=f"image size is {smallest - 1}; .* needs {smallest}"):
        build_extractor(name, **options)


OBLONG = [(8, 12), (12, 8), (32, 48), (9, 40)]


@pytest.mark.parametrize("size", OBLONG)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "stem"),
    [
        *[("digits", stem) for stem in ("cifar", "patch", "pool", "cosine")],
        *[("narrow", stem) for stem in ("cifar", "patch", "pool", "cosine")],
        *[("resnet18", stem) for stem in ("cifar", "patch", "pool")],
        ("linear", None),
    ],
)
def test_oblong_images_work_or_are_refused_by_name(
    name: str, stem: str | None, channels: int, size: tuple[int, int]
) -> None:
    """Every backbone, stem and cut: its latents have the length it tells, or the size is named."""
    smallest = {"digits": 4, "narrow": 8, "resnet18": 8, "linear": 1}[name]
    smallest = smallest * (2 if stem in ("patch", "pool") else 1) + (stem == "cosine")
    options: dict[str, Any] = {"in_channels": channels, "image_size": size, "stem": stem}
    if name in ("narrow", "resnet18"):
        options["widths"] = SMALL[name]["widths"]
    if min(size) < smallest:
        message = rf"image size is {size[1]}x{size[0]} \(width x height\); {name} .* {smallest} or"
        with pytest.raises(ConfigError, match=message):
            build_extractor(name, **options)
        return
    for pool in ("last", "multi"):
        extractor = build_extractor(name, pool=pool, **options).eval()
        assert extractor(torch.zeros(2, channels, *size)).shape == (2, extractor.latent_dim)


def test_linear_is_the_pixels() -> None:
    images = torch.arange(24.0).view(2, 3, 2, 2)
    extractor = build_extractor("linear", image_size=2)
    assert extractor.latent_dim == 12
    assert extractor(images).tolist() == [list(range(12)), list(range(12, 24))]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {}, "extractor is 'resnet'; allowed: digits, narrow, resnet18, mlp, linear"),
        ("narrow", {"norm": "layer"}, "norm is 'layer'; allowed: batch, frozen, group, group-ws"),
        ("narrow", {"pool": "mean"}, "pool is 'mean'; allowed: last, last-max, last-mean, multi"),
        ("resnet18", {"stem": "cosine"}, "stem of resnet18 is 'cosine'; allowed: cifar, patch"),
        ("narrow", {"widths": (8, 8)}, r"widths of narrow are \(8, 8\); allowed: 3 positive"),
        ("narrow", {"widths": (8, -8, 8)}, "allowed: 3 positive"),
        ("narrow", {"widths": (8, 20, 8)}, "width 20 cannot be split into 8 groups"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_extractor(name, **options)


def test_widths_need_no_groups_without_group_norm() -> None:
    assert build_extractor("digits", in_channels=1, norm="batch", widths=(5, 7)).latent_dim == 7


@pytest.mark.parametrize("norm", ["frozen", "group", "group-ws"])
def test_only_batch_norm_carries_state_and_mixes_samples(norm: str) -> None:
    extractor = build_extractor("digits", in_channels=1, image_size=8, norm=norm)
    assert extractor.state_dict().keys() == dict(extractor.named_parameters()).keys()
    images = torch.randn(6, 1, 8, 8)
    assert torch.allclose(extractor(images)[:2], extractor(images[:2]), atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_residual_narrow_net_starts_as_the_plain_one_and_leaves_it_at_once(norm: str) -> None:
    options = SMALL["narrow"] | {"norm": norm}
    deep, plain = (
        build_extractor("narrow-residual", **options),
        build_extractor("narrow", **options),
    )
    state = {name.replace(".0.", ".", 1): value for name, value in deep.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    images = pixels(options)
    latents = deep(images)
    assert torch.equal(latents, plain(images))
    torch.arange(latents.numel()).view_as(latents).mul(latents).sum().backward()
    scales = [p for name, p in deep.named_parameters() if name.endswith("1.norm2.weight")]
    assert len(scales) == 3
    for scale in scales:  # GELU passes half of a gradient at zero, ReLU would pass none
        assert scale.grad is not None
        assert scale.grad.abs().min() > 0


def test_same_seed_same_net_and_channels_last_same_latents() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(7)
        nets.append(build_extractor("narrow", **SMALL["narrow"]))
    images = pixels(SMALL["narrow"])
    plain = nets[0](images)
    assert torch.equal(plain, nets[1](images))
    nets[1].to(memory_format=torch.channels_last)
    last = nets[1](images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-4)


@pytest.mark.parametrize(("channels", "size"), [(64, 15), (64, 32), (128, 7), (8, 1)])
def test_norms_in_bfloat16_are_those_of_torch_however_they_are_computed(
    channels: int, size: int
) -> None:
    noise = torch.Generator().manual_seed(0)
    maps = torch.randn(5, channels, size, size, generator=noise)
    maps = maps.bfloat16().contiguous(memory_format=torch.channels_last)
    ours, theirs = make_norm(channels, norm="group"), nn.GroupNorm(8, channels)
    found = []
    for norm in (ours, theirs):
        given = maps.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            told = norm(given)
        told.backward(maps)
        found.append((told, given.grad, norm.weight.grad))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert one.is_contiguous(memory_format=torch.channels_last) or one.ndim == 1
        torch.testing.assert_close(one.float(), other.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("norm", ["frozen", "group", "group-ws"])
def test_bfloat16_autocast_stays_close_and_returns_float32(norm: str) -> None:
    torch.manual_seed(0)
    extractor = build_extractor("narrow", norm=norm, pool="multi", **SMALL["narrow"])
    exact = extractor(pixels(SMALL["narrow"]))
    with torch.autocast("cpu", torch.bfloat16):
        rough = extractor(pixels(SMALL["narrow"]))
    assert rough.dtype == torch.float32
    # bfloat16 keeps 8 bits, about 0.4 % a rounding; a few layers stay within 5 % overall.
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_standardised_filters_do_not_see_scale_or_offset() -> None:
    conv = make_conv(4, 8, 3, norm="group-ws")
    assert isinstance(conv, StandardisedConv2d)
    images = torch.randn(2, 4, 5, 5)
    before = conv(images)
    with torch.no_grad():
        conv.weight.mul_(3.0).add_(0.7)
    assert torch.allclose(conv(images), before, atol=1e-4)
    weight = conv.weight.detach()
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
    expected = (weight - mean) / (variance.sqrt() * 36**0.5)  # fan-in 4 * 3 * 3 = 36
    assert torch.allclose(conv.filters(), expected, atol=1e-5)


def test_frozen_norm_is_an_affine_map() -> None:
    layer = make_norm(2, norm="frozen")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, 3.0]))
        layer.bias.copy_(torch.tensor([1.0, -1.0]))
    assert layer(torch.ones(1, 2, 1, 1)).flatten().tolist() == [3.0, 2.0]


def test_residual_block_starts_as_its_shortcut() -> None:
    extractor = build_extractor("resnet18", **SMALL["resnet18"])
    maps = torch.randn(2, 8, 6, 6)
    block = extractor.get_submodule("stages.0.0")
    assert torch.equal(block(maps), F.relu(maps))


def test_patch_cosines_are_orthogonal_and_a_flat_grey_patch_excites_one() -> None:
    filters = patch_cosines(3).flatten(1)
    products = filters @ filters.T
    assert torch.allclose(products, torch.diag(products.diagonal()), atol=1e-4)
    # A patch of twelve ones along the unit filter of brightness: 12 / sqrt(12), over 3.2.
    response = filters @ torch.ones(12)
    assert response[0].item() == pytest.approx(12**0.5 / 3.2)
    assert response[1:].abs().max() < 1e-4
