"""Copies of networks, several times as fast as `copy.deepcopy` makes them."""

import copy
from collections import OrderedDict
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["copy_of"]

_M = TypeVar("_M", bound=nn.Module)
_PLAIN = {bool, int, float, str, type(None), torch.dtype, torch.device}
_TABLES = {k for k, v in vars(nn.Module()).items() if type(v) in (dict, OrderedDict, set)}
_HOW = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
_READS_OLD_FILES = _ConvNd.__setstate__  # adds a setting that copies have


def copy_of(network: _M) -> _M:
    """What `copy.deepcopy` gives of a network: weights, settings, hooks; what is tied stays tied.

    Most of the time of a deep copy of a small network goes into the dozen empty tables that each
    module has for hooks; here they are made anew. Whatever else is neither numbers nor modules
    is copied as there, and so are modules that say how they want to be copied.
    """
    return cast(_M, _copy(network, {}))


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    kind = type(module)
    if id(module) in memo or _has_its_way(cast(Hashable, kind)):
        return copy.deepcopy(module, memo)
    found = kind.__new__(kind)
    memo[id(module)] = found
    own = found.__dict__
    for name, value in vars(module).items():  # a thousand, even in a small network
        if type(value) in _PLAIN:
            own[name] = value
        elif name in _TABLES and not value:
            own[name] = type(value)()
        else:
            own[name] = _part(name, value, memo)
    return found


@lru_cache(maxsize=256)
def _has_its_way(kind: Hashable) -> bool:
    """Whether a class says how it wants to be copied."""
    return any(
        getattr(kind, name, None) not in (getattr(nn.Module, name, None), _READS_OLD_FILES)
        for name in _HOW
    )


def _part(name: str, value: Any, memo: dict[int, Any]) -> Any:
    if type(value) is tuple and all(type(one) in _PLAIN for one in value):
        return value
    if name == "_modules":
        return {key: None if one is None else _copy(one, memo) for key, one in value.items()}
    if name == "_parameters":
        return {key: None if one is None else _parameter(one, memo) for key, one in value.items()}
    return copy.deepcopy(value, memo)


def _parameter(value: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(value) in memo or type(value) is not nn.Parameter:
        return copy.deepcopy(value, memo)
    own = value.detach().clone(memory_format=torch.preserve_format)
    memo[id(value)] = found = nn.Parameter(own, value.requires_grad)
    return found
