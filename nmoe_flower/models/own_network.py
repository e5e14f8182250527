"""Somebody's own network, named in the configuration and built for the images of a run."""

from itertools import chain

from torch import nn
from torch.nn.parameter import is_lazy

from nmoe_flower.errors import ConfigError
from nmoe_flower.own_code import call_own, load_own

__all__ = ["own_network"]


def own_network(key: str, name: str, *, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Build ``Name(in_channels=, image_size=)``, see `nmoe_flower.models.Backbone`.

    Args:
        key: The configuration's key, for errors.
        name: Value of the key, ``package.module:Name``.
        in_channels: Channels of an image.
        image_size: Height and width of an image.

    Raises:
        ConfigError: It cannot be imported or built, is no network, or has weights without a size.
    """
    kind = load_own(key, name)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigError(f"{key} = {name} is no subclass of torch.nn.Module; see models.Backbone")
    network: nn.Module = call_own(key, name, kind, in_channels=in_channels, image_size=image_size)
    for weight, values in chain(network.named_parameters(), network.named_buffers()):
        if is_lazy(values):
            raise ConfigError(
                f"{key} = {name}: {weight} has no size before its first images: give a lazy layer "
                f"its sizes, from in_channels = {in_channels} and image_size = {image_size}"
            )
    return network
