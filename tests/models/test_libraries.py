"""Backbones of libraries, with weights drawn here in place of trained ones: nothing is fetched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.models import PretrainedExtractor, configured_extractor

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")
models = pytest.importorskip("torchvision.models")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def given(backbone: str, **changes: Any) -> PretrainedExtractor:
    values = {f"extractor.{key}": value for key, value in changes.items()}
    method = {"extractor.method": "pretrained", "extractor.backbone": backbone}
    found = configured_extractor(Config.parse(method | values), (3, 16, 16))
    assert isinstance(found, PretrainedExtractor)
    return found


def images(found: PretrainedExtractor) -> tuple[Tensor, Tensor]:
    """Two images as a run makes them, and as the backbone sees them."""
    some = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return some, found.backbone.as_wanted(some)


def saved(network: nn.Module, path: Path) -> str:
    torch.save(network.state_dict(), path)
    return str(path)


def test_torchvision_gives_what_its_last_layer_reads_at_its_own_norm(tmp_path: Path) -> None:
    network = models.mobilenet_v3_small(weights=None).eval()
    path = saved(network, tmp_path / "net.pth")
    found = given("torchvision:mobilenet_v3_small", weights=path, resolution=32)
    some, seen = images(found)
    with torch.inference_mode():
        wanted = network.classifier[:-1](network.avgpool(network.features(seen)).flatten(1))
    assert found.latent_dim == 1024
    torch.testing.assert_close(found(some), wanted)
    white = found.backbone.as_wanted(torch.full((1, 3, 32, 32), 2.0))[0, :, 0, 0]
    of_imagenet = [(1 - m) / s for m, s in [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]]
    torch.testing.assert_close(white, torch.tensor(of_imagenet))
    assert given("torchvision:mobilenet_v3_small", weights=path).backbone._resolution == 224


def test_timm_gives_its_pooled_features_and_can_be_cut(tmp_path: Path) -> None:
    path = saved(timm.create_model("test_resnet"), tmp_path / "net.pth")
    found = given("timm:test_resnet", weights=path)
    some, seen = images(found)
    assert found.backbone._resolution == 160
    torch.testing.assert_close(found(some), found.backbone._network(seen))
    cut = given("timm:test_resnet", weights=path, cut="layer2:2,layer4:1")
    layers = found.backbone._network
    maps = seen
    with torch.inference_mode():
        for name in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2"):
            maps = layers.get_submodule(name)(maps)
    torch.testing.assert_close(
        cut(some)[:, : maps.shape[1] * 4],
        nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1),
    )


def test_a_folder_of_transformers_gives_tokens_and_no_pooler_that_nobody_trained(
    tmp_path: Path,
) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**shape, intermediate_size=32, image_size=16, patch_size=8)
    network = transformers.ViTModel(config, add_pooling_layer=False).eval()
    network.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"no folder of a vision model .*preprocessor_config"):
        given("transformers:mine", weights=str(tmp_path))
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    found = given("transformers:mine", weights=str(tmp_path))
    some, seen = images(found)
    with torch.inference_mode():
        hidden = network(seen).last_hidden_state
    torch.testing.assert_close(found(some), hidden.mean(dim=1))
    first = given(f"transformers:{tmp_path}", cut="layers.0:1")
    with torch.inference_mode():
        states = network(seen, output_hidden_states=True).hidden_states
    torch.testing.assert_close(first(some), states[1].mean(dim=1))
    with pytest.raises(ConfigError, match=r"tokens .* with the grid 1"):
        given("transformers:mine", weights=str(tmp_path), cut="layers.1:2")


@pytest.mark.parametrize(
    ("backbone", "text"),
    [
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; close to it: resnet"),
        ("timm:resnet19", "timm has no model 'resnet19'; close to it: resnet"),
        ("torchvision:resnet18", "these weights are not in torch's cache here and cannot be"),
        ("timm:resnet18", "these weights are not in the hub's cache here and cannot be fetched"),
        ("transformers:some/net", "these weights are not in the hub's cache here and cannot be"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_one_sentence(
    backbone: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"extractor.backbone = {backbone}: .*{text}"):
        given(backbone)
