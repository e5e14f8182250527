"""The files of a bundle of either kind: how they are written, and how they are checked.

Each is known by the beginning of its SHA-256, its version; ``bundle.json`` names them all.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nmoe_flower.config import Config, Scalar
from nmoe_flower.errors import BundleError, ConfigError, NMoEError
from nmoe_flower.files import read_json, safe_child, write_bytes, write_json

if TYPE_CHECKING:
    from nmoe_flower.data.text import Tokenizer

__all__ = [
    "MANIFEST",
    "Arrays",
    "Count",
    "DeviceBundle",
    "DeviceManifest",
    "FileVersion",
    "PartitionId",
    "arrays_of",
    "read_manifest",
    "version_of",
]

MANIFEST = "bundle.json"

Count = Annotated[int, Field(ge=1)]
PartitionId = Annotated[int, Field(ge=0)]
FileVersion = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Arrays = Mapping[str, np.ndarray[Any, Any]]


class DeviceManifest(BaseModel):
    """What ``bundle.json`` says of every device.

    Attributes:
        format: The version of this file's form, 1.
        partition: Which device of the federation this is, 0..num_clients-1.
        num_clients: E, the experts the gate knows.
        gate_version: The version of ``gate.safetensors``, 16 hexadecimal digits.
        expert_version: The version of ``expert.safetensors``.
        config: The configuration of the run that made it, by dotted keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal[1]
    partition: PartitionId
    num_clients: Count
    gate_version: FileVersion
    expert_version: FileVersion
    config: dict[str, Scalar]

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.partition >= self.num_clients:
            raise ValueError(f"partition {self.partition} of {self.num_clients} clients")
        return self


M = TypeVar("M", bound=DeviceManifest)


class DeviceBundle(ABC, Generic[M]):
    """A checked bundle of either kind.

    Attributes:
        folder: The folder it lies in.
        manifest: What ``bundle.json`` says.
        config: The configuration of the run that made it.
    """

    _form: ClassVar[type[DeviceManifest]]
    _other: ClassVar[str]  # what a bundle of the other kind is told

    def __init__(self, folder: Path, manifest: M, config: Config) -> None:
        """Use ``load`` or ``write``."""
        self.folder = folder
        self.manifest = manifest
        self.config = config

    @property
    def partition(self) -> int:
        """Which device this is, whose expert is its own, 0..num_clients-1."""
        return self.manifest.partition

    @property
    def num_clients(self) -> int:
        """E, the experts the gate knows."""
        return self.manifest.num_clients

    @property
    def gate_version(self) -> str:
        """Version of the shared gate."""
        return self.manifest.gate_version

    @property
    def expert_version(self) -> str:
        """Version of the device's own expert."""
        return self.manifest.expert_version

    @property
    @abstractmethod
    def latent_dim(self) -> int:
        """How many numbers travel for an image or a token."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many classes or tokens an answer tells apart."""

    @property
    @abstractmethod
    def extractor_version(self) -> str:
        """What an extractor makes must never meet an expert of another."""

    @property
    @abstractmethod
    def tokenizer_hash(self) -> str:
        """SHA-256 of what makes tokens of the text it is for; empty: of images, or not known."""

    def tokenizer(self) -> "Tokenizer":
        """What makes tokens of text, as it is here.

        Raises:
            BundleError: It is another one than the bundle is for.
            DataError: It cannot be opened.
        """
        from nmoe_flower.data.text import configured_tokenizer

        found, wanted = configured_tokenizer(self.config), self.tokenizer_hash
        if wanted and found.hash != wanted:
            raise BundleError(
                f"{self.folder} is for the tokenizer {wanted[:12]}, and that of text.tokenizer "
                f"here is {found.hash[:12]}"
            )
        return found

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``bundle.json`` and check the files against it.

        Args:
            folder: Where it lies.

        Raises:
            BundleError: A file is missing, damaged, leads out of the folder, or is not what
                ``bundle.json`` says.
        """
        values = read_manifest(folder)
        if isinstance(values, Mapping) and ("kind" in values) != ("kind" in cls._form.model_fields):
            raise BundleError(f"{folder} is a bundle of {cls._other}")
        bundle = cls._parsed(folder, values)
        bundle._check_files()
        return bundle

    @classmethod
    def _parsed(cls, folder: Path, values: Any) -> Self:
        """The bundle that these values of ``bundle.json`` tell of.

        Raises:
            BundleError: A value is missing, unknown or not allowed; every one is named.
        """
        manifest, config = _checked(cls._form, folder / MANIFEST, values)
        return cls(folder, manifest, config)  # type: ignore[arg-type]  # its own form

    @abstractmethod
    def _check_files(self) -> None:
        """Read every file once. Raises as `load`."""

    def _bytes(self, part: str, version: str) -> bytes:
        return _read_part(self.folder, part, version)

    def _write(self, packed: Mapping[str, bytes], values: Mapping[str, Any]) -> None:
        """Write the parts by name, and ``bundle.json`` last."""
        for part, data in packed.items():
            write_bytes(self.folder / f"{part}.safetensors", data)
        write_json(self.folder / MANIFEST, values)


def read_manifest(folder: Path) -> Any:
    """What the ``bundle.json`` of a bundle holds, not checked yet.

    Args:
        folder: The bundle's.

    Raises:
        BundleError: There is none, or it is no JSON.
    """
    return read_json(folder / MANIFEST, what="the bundle", raises=BundleError)


def version_of(data: bytes) -> str:
    """The version of a file with this content."""
    return hashlib.sha256(data).hexdigest()[:16]


def _read_part(folder: Path, part: str, wanted: str) -> bytes:
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


def _checked(kind: type[M], path: Path, values: Any) -> tuple[M, Config]:
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
