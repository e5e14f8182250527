"""Low-rank adapters of linear layers (Hu et al. 2021), by peft: a slot for each rank."""

import re
import warnings
from typing import Any

import torch
from torch import nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.installation import install_hint

__all__ = ["LowRankSlots", "require_peft"]

_PART = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.(?P<slot>r\d+)\.weight")


def require_peft() -> Any:
    """The package peft.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError(f"adapters need peft: {install_hint('text')}") from None
    return peft


class LowRankSlots:
    """Places for low-rank adapters in a frozen network: ``scale B A x`` is added to linear layers.

    Args:
        network: The network, whose layers peft wraps.
        place: Name of the list of its blocks.
        first: The first block that is adapted.
        targets: Names of the linear layers of a block; empty: all of them.
        scale: What the product B A is multiplied by.

    Attributes:
        layers: Names of the adapted layers, in order.
        sides: Numbers that each of them reads and says, by name.
        most: The largest rank of each, its least side, by name.

    Raises:
        ConfigError: peft is not installed, or a block has no layer of a name in ``targets``.
    """

    def __init__(
        self, network: nn.Module, place: str, first: int, targets: tuple[str, ...], scale: float
    ) -> None:
        self._peft, self._network, self._scale = require_peft(), network, scale
        self.layers = _layers(network, place, first, targets)
        modules: dict[str, Any] = dict(network.named_modules())
        self.sides: dict[str, tuple[int, int]] = {
            name: (int(modules[name].in_features), int(modules[name].out_features))
            for name in self.layers
        }
        self.most = {name: min(sides) for name, sides in self.sides.items()}

    def add(self, rank: int) -> dict[str, nn.Parameter]:
        """Make a slot for a rank; its parts by name.

        Args:
            rank: Rank of the adapters, r.
        """
        settings = self._peft.LoraConfig(
            r=rank,
            lora_alpha=self._scale * rank,
            target_modules="|".join(map(re.escape, self.layers)),
        )
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of more than one adapter: that is meant
            self._peft.inject_adapter_in_model(settings, self._network, adapter_name=f"r{rank}")
        found = {}
        for name, parameter in self._network.named_parameters():
            part = _PART.fullmatch(name)
            if part and part["slot"] == f"r{rank}":
                parameter.data = parameter.data.float()  # masters are float32
                found[f"{part['layer']}.{part['side']}"] = parameter
        return found

    def use(self, rank: int) -> None:
        """Put the slot of a rank to work.

        Args:
            rank: One that has a slot.
        """
        for module in self._wrapped():
            module.set_adapter(f"r{rank}")

    def enable(self, on: bool) -> None:
        """Let adapters add something, or nothing.

        Args:
            on: Which of the two.
        """
        for module in self._wrapped():
            module.enable_adapters(on)

    def _wrapped(self) -> list[Any]:
        kind = self._peft.tuners.lora.LoraLayer
        return [module for module in self._network.modules() if isinstance(module, kind)]


def _layers(
    network: nn.Module, place: str, first: int, targets: tuple[str, ...]
) -> tuple[str, ...]:
    """Names of the linear layers that are adapted, from the block ``first`` on."""
    within = re.compile(rf"{re.escape(place)}\.(\d+)\.(.+)")
    found, known = [], dict[str, None]()
    for name, module in network.named_modules():
        match = within.fullmatch(name)
        if match is None or not isinstance(module, nn.Linear):
            continue
        last = match[2].rpartition(".")[2]
        known[last] = None
        if int(match[1]) >= first and (not targets or last in targets):
            found.append(name)
    for target in targets:
        if target not in known:
            raise ConfigError(
                f"adapter.targets: a block of the backbone has no layer {target!r}; allowed: "
                f"{', '.join(known)}"
            )
    if not found:
        raise ConfigError("extractor.backbone: its blocks have no linear layer to adapt")
    return tuple(found)
