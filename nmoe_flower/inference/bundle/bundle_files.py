"""The files of a bundle: each is known by the beginning of its SHA-256, its version."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ValidationError

from nmoe_flower.config import Config
from nmoe_flower.errors import BundleError, ConfigError, NMoEError
from nmoe_flower.files import safe_child

__all__ = ["MANIFEST", "arrays_of", "checked", "read_part", "version_of"]

MANIFEST = "bundle.json"

M = TypeVar("M", bound=BaseModel)


def version_of(data: bytes) -> str:
    """The version of a file with this content."""
    return hashlib.sha256(data).hexdigest()[:16]


def read_part(folder: Path, part: str, wanted: str) -> bytes:
    """The content of ``<part>.safetensors``.

    Args:
        folder: The bundle's.
        part: Name of the file, without its end.
        wanted: The version that ``bundle.json`` says.

    Raises:
        BundleError: It is missing, leads out of the folder, or has another version.
    """
    path = folder / f"{part}.safetensors"
    try:
        path = safe_child(folder, path.name)
        if path.exists() and not path.is_file():  # a pipe would never end
            raise BundleError(f"cannot read {path}: it is no file")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None
    except BundleError:
        raise
    except NMoEError as error:
        raise BundleError(str(error)) from None
    if version_of(data) != wanted:
        raise BundleError(
            f"{path} has version {version_of(data)}, bundle.json says {wanted}: "
            "it is damaged, or a new bundle was written only in part"
        )
    return data


def arrays_of(data: bytes, name: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays in a file with this content.

    Args:
        data: The content.
        name: What it is called in errors.

    Raises:
        BundleError: It is no safetensors file, or of types NumPy does not know.
    """
    try:
        return safetensors.numpy.load(data)
    except (TypeError, ValueError, safetensors.SafetensorError) as error:
        raise BundleError(f"{name} does not fit its config: {error}") from None


def checked(kind: type[M], path: Path, values: Any) -> tuple[M, Config]:
    """Check the values of the file at ``path``, and the configuration in it.

    Args:
        kind: What the values must be; with ``config`` and ``num_clients``.
        path: What the file is called in errors.
        values: As they were read.

    Raises:
        BundleError: A value is missing, unknown or not allowed; every one is named.
    """
    try:
        manifest = kind.model_validate(values)
        told: Mapping[str, Any] = values["config"]
        config = Config.parse({**told, "data.num-clients": values["num_clients"]})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'bundle'}: {one['msg']}" for one in error.errors()
        )
        raise BundleError(f"{path}: {problems}") from None
    except ConfigError as error:
        raise BundleError(f"{path}: config: {error}") from None
    return manifest, config
