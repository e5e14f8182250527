"""Copies of networks: as `copy.deepcopy` makes them."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nmoe_flower.config import Config
from nmoe_flower.models import configured_extractor, copy_of


class Tied(nn.Module):
    """What a network may hold beside layers: tied weights, buffers, tables, hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.again = self.first
        self.none: nn.Module | None = None
        self.empty = nn.ModuleDict()
        self.norm = nn.BatchNorm1d(3)
        self.seen: dict[str, list[int]] = {"a": [1]}
        self.first.bias.requires_grad_(False)
        self.calls: list[int] = []
        self.first.register_forward_hook(lambda *_: self.calls.append(1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [B, 3]."""
        found: torch.Tensor = self.norm(self.second(self.again(rows)))
        return found


class Alone(nn.Linear):
    """A module of which there is one."""

    def __deepcopy__(self, memo: object) -> "Alone":
        return self


def equal(one: nn.Module, other: nn.Module) -> None:
    assert [(n, type(m)) for n, m in one.named_modules()] == [
        (n, type(m)) for n, m in other.named_modules()
    ]
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name])
        assert value.stride() == theirs[name].stride()
        assert value.data_ptr() != theirs[name].data_ptr()
    moving = [[p.requires_grad for p in network.parameters()] for network in (one, other)]
    assert moving[0] == moving[1]


@pytest.mark.parametrize("name", ["digits", "narrow", "resnet18"])
def test_our_networks_are_copied_as_by_deepcopy(name: str) -> None:
    config = Config.load(None, [f"extractor.backbone={name}"])
    network = configured_extractor(config, (3, 32, 32)).to(memory_format=torch.channels_last)
    equal(copy_of(network.eval()), network)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(copy_of(network)(images), copy.deepcopy(network)(images))


def test_what_is_tied_stays_tied_and_nothing_is_shared() -> None:
    network = Tied()
    found = copy_of(network)
    equal(found, network)
    assert found.second.weight is found.first.weight
    assert found.again is found.first
    assert found.none is None
    assert found.empty is not network.empty
    found.seen["a"].append(2)
    found.empty["x"] = nn.Linear(1, 1)
    assert network.seen == {"a": [1]}
    assert len(network.empty) == 0
    found(torch.rand(4, 3)).sum().backward()
    assert network.first.weight.grad is None
    assert network.norm.num_batches_tracked == 0


def test_hooks_come_along_and_gradients_do_not() -> None:
    network = Tied()
    network(torch.rand(4, 3)).sum().backward()
    for found in (copy_of(network), copy.deepcopy(network)):
        assert len(found.first._forward_hooks) == 1
        assert found.second.bias.grad is None


def test_plain_attributes_are_copied_as_by_deepcopy() -> None:
    network: Any = nn.Linear(1, 1)
    network.scale = torch.tensor([1.0, 0.0])  # neither a parameter nor a buffer
    network.table = np.zeros(2)
    network.one = network.other = []
    for found in (copy_of(network), copy.deepcopy(network)):
        assert torch.equal(found.scale, network.scale)
        assert found.scale is not network.scale
        assert found.table is not network.table
        assert found.one is found.other
        assert found.one is not network.one


def test_who_says_how_it_is_copied_is_asked() -> None:
    alone = Alone(2, 2)
    assert copy_of(nn.Sequential(alone, nn.ReLU()))[0] is alone
    assert copy_of(alone) is alone
