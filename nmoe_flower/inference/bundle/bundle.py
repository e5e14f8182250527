"""A bundle: everything a device serves and asks with, in one folder.

::

    bundle.json             who it is of, and the versions of the three files
    extractor.safetensors   shared by all devices
    gate.safetensors        shared by all devices
    expert.safetensors      this device's own

A version is the beginning of the SHA-256 of a file: two devices that name the same version hold
the same bytes, and a damaged file is found when it is read.
"""

from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import nn

from nmoe_flower.config import Config
from nmoe_flower.errors import BundleError, ConfigError
from nmoe_flower.files import pack_arrays
from nmoe_flower.inference.bundle.bundle_files import (
    Arrays,
    Count,
    DeviceBundle,
    DeviceManifest,
    FileVersion,
    arrays_of,
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

__all__ = ["BUNDLE_PARTS", "Bundle", "Manifest"]

_FORMAT = 1

BUNDLE_PARTS = ("extractor", "gate", "expert")


class Manifest(DeviceManifest):
    """The content of ``bundle.json``, beside what every bundle says.

    Attributes:
        classes: The names of the C classes.
        latent_dim: D, the length of a latent.
        image_shape: (channels, height, width) of an image.
        extractor_version: The version of ``extractor.safetensors``, 16 hexadecimal digits.
        tokenizer: SHA-256 of what makes tokens of the text it classifies; empty: it is about
            images, or older.
    """

    classes: Annotated[list[str], Field(min_length=1)]
    latent_dim: Count
    image_shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    extractor_version: FileVersion
    tokenizer: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


class Bundle(DeviceBundle[Manifest]):
    """A checked bundle of images. The networks are built when they are asked for."""

    _form = Manifest
    _other = "text, not of images: ask with --text TEXT"

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
    def reads_text(self) -> bool:
        """Whether it classifies documents."""
        return self.config.data.kind == "text"

    @property
    def tokenizer_hash(self) -> str:
        """SHA-256 of what makes tokens of the text it classifies; empty: there is none."""
        return self.manifest.tokenizer

    def with_weights(self, weights: str) -> Self:
        """The same bundle where this device keeps the weights of a given extractor elsewhere.

        Args:
            weights: Where they are.

        Raises:
            ConfigError: The extractor is in the bundle itself.
        """
        if not self.config.extractor.stands_on_given:
            raise ConfigError(
                f"--weights {weights}: the weights of the extractor are in {self.folder} itself"
            )
        config = Config.parse({**self.config.flat(), "extractor.weights": weights})
        return type(self)(self.folder, self.manifest, config)

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        partition: int,
        config: Config,
        classes: list[str],
        image_shape: tuple[int, int, int],
        extractor: Arrays,
        gate: Arrays,
        expert: Arrays,
        num_clients: int | None = None,
        tokenizer: str = "",
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
            tokenizer: SHA-256 of what makes tokens, where it classifies text.

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
            **({"tokenizer": tokenizer} if tokenizer else {}),
        }
        bundle = cls._parsed(folder, values)
        for part, data in packed.items():
            bundle._build(part, data)
        bundle._write(packed, values)
        return bundle

    def extractor(self) -> nn.Module:
        """The shared extractor: images [B, channels, H, W] -> latents [B, D].

        Raises:
            BundleError: The file has changed since the bundle was loaded, or does not fit.
        """
        return self._build("extractor", self._part("extractor"))

    def gate(self) -> TrainedGate:
        """The shared gate: latents [B, D] -> scores [B, E]. Raises as `extractor`."""
        gate = self._build("gate", self._part("gate"))
        assert isinstance(gate, Gate | DiscriminantGate | MetricGate)
        return gate

    def expert(self) -> Expert:
        """This device's expert: latents [B, D] -> logits [B, C]. Raises as `extractor`."""
        expert = self._build("expert", self._part("expert"))
        assert isinstance(expert, Expert)
        return expert

    def _check_files(self) -> None:
        for part in BUNDLE_PARTS:
            self._part(part)

    def _part(self, part: str) -> bytes:
        return self._bytes(part, getattr(self.manifest, f"{part}_version"))

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
