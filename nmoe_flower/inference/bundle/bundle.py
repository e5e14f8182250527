"""A bundle: everything a device serves and asks with, in one folder.

::

    bundle.json             who it is of, and the versions of the three files
    extractor.safetensors   shared by all devices
    gate.safetensors        shared by all devices
    expert.safetensors      this device's own

A version is the beginning of the SHA-256 of a file: two devices that name the same version hold
the same bytes, and a damaged file is found when it is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from nmoe_flower.config import Config, Scalar
from nmoe_flower.errors import BundleError
from nmoe_flower.files import pack_arrays, read_json, write_bytes, write_json
from nmoe_flower.inference.bundle.bundle_files import (
    MANIFEST,
    arrays_of,
    checked,
    read_part,
    version_of,
)
from nmoe_flower.models import (
    DiscriminantGate,
    Expert,
    Gate,
    MetricGate,
    TrainedGate,
    finished_extractor,
    trained_gate,
)

__all__ = ["BUNDLE_PARTS", "MANIFEST", "Bundle", "Manifest"]

_FORMAT = 1

_Count = Annotated[int, Field(ge=1)]
_Version = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]

_Arrays = Mapping[str, np.ndarray[Any, Any]]
BUNDLE_PARTS = ("extractor", "gate", "expert")


class Manifest(BaseModel):
    """The content of ``bundle.json``.

    Attributes:
        format: The version of this file's form, 1.
        partition: Which expert of the federation this is; the gate calls it by this number.
        num_clients: E, the experts the gate knows.
        classes: The names of the C classes.
        latent_dim: D, the length of a latent.
        image_shape: (channels, height, width) of an image.
        extractor_version: The version of ``extractor.safetensors``, 16 hexadecimal digits.
        gate_version: The version of ``gate.safetensors``.
        expert_version: The version of ``expert.safetensors``.
        config: The configuration of the run that made it, by dotted keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal[1]
    partition: Annotated[int, Field(ge=0)]
    num_clients: _Count
    classes: Annotated[list[str], Field(min_length=1)]
    latent_dim: _Count
    image_shape: Annotated[list[_Count], Field(min_length=3, max_length=3)]
    extractor_version: _Version
    gate_version: _Version
    expert_version: _Version
    config: dict[str, Scalar]

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.partition >= self.num_clients:
            raise ValueError(f"partition {self.partition} of {self.num_clients} clients")
        return self

    @classmethod
    def parse(cls, path: Path, values: Any) -> tuple[Self, Config]:
        """Check the values of the file at ``path``, and the configuration in it.

        Raises:
            BundleError: A value is missing, unknown or not allowed; every one is named.
        """
        return checked(cls, path, values)


def _read_manifest(path: Path) -> tuple[Manifest, Config]:
    """Read ``bundle.json``.

    Raises:
        BundleError: It is missing, no JSON, or holds what it may not.
    """
    values = read_json(path, what="the bundle", raises=BundleError)
    if isinstance(values, Mapping) and "kind" in values:
        raise BundleError(f"{path.parent} is a bundle of text, not of images: ask with --text TEXT")
    return Manifest.parse(path, values)


class Bundle:
    """A checked bundle. The networks are built when they are asked for.

    Attributes:
        folder: The folder it lies in.
        manifest: What ``bundle.json`` says.
        config: The configuration of the run that made it.
    """

    def __init__(self, folder: Path, manifest: Manifest, config: Config) -> None:
        """Use `load` or `write`."""
        self.folder = folder
        self.manifest = manifest
        self.config = config

    @property
    def partition(self) -> int:
        """Which expert this is, 0..num_clients-1."""
        return self.manifest.partition

    @property
    def num_clients(self) -> int:
        """E, the experts the gate knows."""
        return self.manifest.num_clients

    @property
    def classes(self) -> list[str]:
        """The names of the C classes."""
        return self.manifest.classes

    @property
    def num_classes(self) -> int:
        """C, the length of an answer."""
        return len(self.manifest.classes)

    @property
    def latent_dim(self) -> int:
        """D, the length of a latent."""
        return self.manifest.latent_dim

    @property
    def extractor_version(self) -> str:
        """Latents of one extractor must never meet an expert of another."""
        return self.manifest.extractor_version

    @property
    def gate_version(self) -> str:
        """Version of the shared gate."""
        return self.manifest.gate_version

    @property
    def expert_version(self) -> str:
        """Version of the device's expert."""
        return self.manifest.expert_version

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``bundle.json`` and check the three files against it.

        Raises:
            BundleError: A file is missing, damaged, leads out of the folder, or is not what
                ``bundle.json`` says.
        """
        bundle = cls(folder, *_read_manifest(folder / MANIFEST))
        for part in BUNDLE_PARTS:
            bundle._bytes(part)
        return bundle

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        partition: int,
        config: Config,
        classes: list[str],
        image_shape: tuple[int, int, int],
        extractor: _Arrays,
        gate: _Arrays,
        expert: _Arrays,
        num_clients: int | None = None,
    ) -> Self:
        """Write a bundle, over an older one if there is one; ``bundle.json`` comes last.

        Args:
            folder: Where to write; made if missing.
            partition: Which expert this is, 0..E-1.
            config: The configuration of the run that made it.
            classes: Names of the C classes.
            image_shape: (channels, height, width) of an image.
            extractor: State of the shared extractor, by name.
            gate: State of the shared gate, by name.
            expert: State of the device's expert, by name.
            num_clients: E, the experts the gate knows; None: as in ``config``.

        Raises:
            BundleError: The parts do not fit together.
            NMoEError: A file cannot be written.
        """
        states = (extractor, gate, expert)
        packed = {
            part: pack_arrays(state) for part, state in zip(BUNDLE_PARTS, states, strict=True)
        }
        values = {
            "format": _FORMAT,
            "partition": partition,
            "num_clients": config.data.num_clients if num_clients is None else num_clients,
            "classes": list(classes),
            "image_shape": list(image_shape),
            "latent_dim": _latent_dim(config, image_shape),
            **{f"{part}_version": version_of(data) for part, data in packed.items()},
            "config": config.flat(),
        }
        bundle = cls(folder, *Manifest.parse(folder / MANIFEST, values))
        for part, data in packed.items():
            bundle._build(part, data)
        for part, data in packed.items():
            write_bytes(folder / f"{part}.safetensors", data)
        write_json(folder / MANIFEST, values)
        return bundle

    def extractor(self) -> nn.Module:
        """The shared extractor: images [B, channels, H, W] -> latents [B, D].

        Raises:
            BundleError: The file has changed since the bundle was loaded, or does not fit.
        """
        return self._build("extractor", self._bytes("extractor"))

    def gate(self) -> TrainedGate:
        """The shared gate: latents [B, D] -> scores [B, E]. Raises as `extractor`."""
        gate = self._build("gate", self._bytes("gate"))
        assert isinstance(gate, Gate | DiscriminantGate | MetricGate)
        return gate

    def expert(self) -> Expert:
        """This device's expert: latents [B, D] -> logits [B, C]. Raises as `extractor`."""
        expert = self._build("expert", self._bytes("expert"))
        assert isinstance(expert, Expert)
        return expert

    def _bytes(self, part: str) -> bytes:
        return read_part(self.folder, part, getattr(self.manifest, f"{part}_version"))

    def _build(self, part: str, data: bytes) -> nn.Module:
        manifest = self.manifest
        module: nn.Module
        arrays = arrays_of(data, f"{part} in {self.folder}")
        if part == "extractor":
            module = finished_extractor(self.config, manifest.image_shape)
        elif part == "gate":
            module = trained_gate(
                self.config, manifest.latent_dim, arrays, num_experts=manifest.num_clients
            )
        else:
            hidden = self.config.expert.hidden
            module = Expert(manifest.latent_dim, len(manifest.classes), hidden=hidden)
        try:
            state = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
            module.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            raise BundleError(f"{part} in {self.folder} does not fit its config: {error}") from None
        return module.eval().requires_grad_(False)


def _latent_dim(config: Config, image_shape: tuple[int, int, int]) -> int:
    return int(finished_extractor(config, image_shape).latent_dim)
