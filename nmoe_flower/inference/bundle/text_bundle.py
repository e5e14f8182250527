"""A bundle of the language system: a device's adapter, and what routes text to all of them.

::

    bundle.json                who it is of, who holds which adapter, the versions of the files
    gate.safetensors           how likely each token is at each device, shared by all devices
    expert.safetensors         this device's own adapter
    replica-3.safetensors      the adapter of device 3, where this one stands in for it
    shared.safetensors         the adapter of all devices, where the run has one

The backbone is not in it: every device has it already, and it is named by the hash of its weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

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

__all__ = ["FREQUENCIES", "TextBundle", "TextManifest"]

FREQUENCIES = "frequencies"
_SHARED = "shared"
_FORMAT, _KIND = 1, "text"
_EXPERT, _GATE, _REPLICA = "expert", "gate", "replica-{}"

_Count = Annotated[int, Field(ge=1)]
_Id = Annotated[int, Field(ge=0)]
_Version = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Arrays = Mapping[str, np.ndarray[Any, Any]]


class TextManifest(BaseModel):
    """The content of ``bundle.json``.

    Attributes:
        format: The version of this file's form, 1.
        kind: ``text``; bundles of images have no such key.
        partition: Number of this device, whose adapter is its own, 0..num_clients-1.
        num_clients: E, the experts the gate knows.
        backbone: SHA-256 of the backbone's weights.
        tokenizer: SHA-256 of what makes the tokens.
        vocab_size: V, how many tokens the backbone knows.
        width: d, numbers per token at the cut and after the last block.
        gate: Who decides: ``unigram``, or ``unigram-chunks`` again and again.
        holders: Devices that hold each expert, its own first.
        gate_version: The version of ``gate.safetensors``, 16 hexadecimal digits.
        expert_version: The version of ``expert.safetensors``.
        replica_versions: By expert, the versions of those that this device stands in for.
        shared_version: The version of ``shared.safetensors``; empty: there is none.
        config: The configuration of the run that made it, by dotted keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal[1]
    kind: Literal["text"]
    partition: _Id
    num_clients: _Count
    backbone: _Hash
    tokenizer: _Hash
    vocab_size: _Count
    width: _Count
    gate: Literal["unigram", "unigram-chunks"]
    holders: list[Annotated[list[_Id], Field(min_length=1)]]
    gate_version: _Version
    expert_version: _Version
    replica_versions: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], _Version]
    shared_version: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")]
    config: dict[str, Scalar]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.partition >= self.num_clients:
            raise ValueError(f"partition {self.partition} of {self.num_clients} clients")
        ids = range(self.num_clients)
        wanted = len(self.holders) == self.num_clients and all(
            devices[0] == expert and len({*devices}) == len(devices) and max(devices) in ids
            for expert, devices in enumerate(self.holders)
        )
        if not wanted:
            raise ValueError(
                f"holders must name, for each of {self.num_clients} experts, its own device and "
                "then others"
            )
        held = {e for e in ids if self.partition in self.holders[e]} - {self.partition}
        if held != {int(e) for e in self.replica_versions}:
            raise ValueError(
                f"holders say that device {self.partition} stands in for {sorted(held)}, and "
                f"replica_versions has {sorted(map(int, self.replica_versions))}"
            )
        return self


class TextBundle:
    """A checked bundle of the language system.

    Attributes:
        folder: The folder it lies in.
        manifest: What ``bundle.json`` says.
        config: The configuration of the run that made it.
    """

    def __init__(self, folder: Path, manifest: TextManifest, config: Config) -> None:
        """Use `load` or `write`."""
        self.folder = folder
        self.manifest = manifest
        self.config = config

    @property
    def partition(self) -> int:
        """Number of this device, whose adapter is its own, 0..num_clients-1."""
        return self.manifest.partition

    @property
    def num_clients(self) -> int:
        """E, the experts the gate knows."""
        return self.manifest.num_clients

    @property
    def latent_dim(self) -> int:
        """Numbers per token that travel, d."""
        return self.manifest.width

    @property
    def num_classes(self) -> int:
        """How many tokens there are, V."""
        return self.manifest.vocab_size

    @property
    def extractor_version(self) -> str:
        """Hidden states of one backbone must never meet an adapter of another."""
        return self.manifest.backbone[:16]

    @property
    def gate_version(self) -> str:
        """Version of the shared gate."""
        return self.manifest.gate_version

    @property
    def expert_version(self) -> str:
        """Version of the device's own adapter."""
        return self.manifest.expert_version

    @property
    def tokens_may_leave(self) -> bool:
        """Whether the operator allows tokens in questions (``query.send = "tokens"``)."""
        return self.config.query.send == "tokens"

    def version_of(self, expert: int) -> str:
        """The version of an adapter this device holds; empty: it does not hold it.

        Args:
            expert: Device whose adapter is meant.
        """
        if expert == self.partition:
            return self.expert_version
        return self.manifest.replica_versions.get(str(expert), "")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``bundle.json`` and check the files against it.

        Raises:
            BundleError: A file is missing, damaged, leads out of the folder, or is not what
                ``bundle.json`` says.
        """
        path = folder / MANIFEST
        values = read_json(path, what="the bundle", raises=BundleError)
        if isinstance(values, Mapping) and "kind" not in values:
            raise BundleError(f"{folder} is a bundle of images, not of text: leave out --text")
        bundle = cls(folder, *checked(TextManifest, path, values))
        bundle.frequencies()
        bundle.adapters()
        return bundle

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        config: Config,
        frequencies: np.ndarray[Any, Any],
        adapters: Mapping[int, Arrays],
        shared: Arrays | None,
        **facts: Any,
    ) -> Self:
        """Write a bundle, over an older one if there is one; ``bundle.json`` comes last.

        Args:
            folder: Where to write; made if missing.
            config: The configuration of the run that made it.
            frequencies: Log-probability of every token at each device, [E, V].
            adapters: The device's own, and those it stands in for, by whose they are.
            shared: The adapter of all devices; None: there is none.
            facts: ``partition``, ``backbone``, ``tokenizer``, ``vocab_size``, ``width``, ``gate``
                and ``holders`` of the manifest.

        Raises:
            BundleError: The parts do not fit together.
            NMoEError: A file cannot be written.
        """
        own = facts["partition"]
        packed = {_GATE: pack_arrays({FREQUENCIES: frequencies})}
        for expert, adapter in adapters.items():
            packed[_EXPERT if expert == own else _REPLICA.format(expert)] = pack_arrays(adapter)
        if shared is not None:
            packed[_SHARED] = pack_arrays(shared)
        versions = {part: version_of(data) for part, data in packed.items()}
        values = {
            "format": _FORMAT,
            "kind": _KIND,
            **facts,
            "num_clients": len(frequencies),
            "gate_version": versions[_GATE],
            "expert_version": versions[_EXPERT],
            "replica_versions": {
                str(e): versions[_REPLICA.format(e)] for e in sorted(adapters) if e != own
            },
            "shared_version": versions.get(_SHARED, ""),
            "config": config.flat(),
        }
        bundle = cls(folder, *checked(TextManifest, folder / MANIFEST, values))
        for part, data in packed.items():
            write_bytes(folder / f"{part}.safetensors", data)
        write_json(folder / MANIFEST, values)
        return bundle

    def frequencies(self) -> np.ndarray[Any, Any]:
        """Log-probability of every token at each device, float32 [E, V].

        Raises:
            BundleError: The file has changed since the bundle was loaded, or does not fit.
        """
        found = self._arrays(_GATE, self.gate_version).get(FREQUENCIES)
        if found is None or found.ndim != 2 or len(found) != self.num_clients:
            raise BundleError(
                f"gate in {self.folder} does not fit its manifest: it must hold {FREQUENCIES} "
                f"[{self.num_clients}, tokens of the text]"
            )
        return found.astype(np.float32)

    def adapters(self) -> dict[int, dict[str, np.ndarray[Any, Any]]]:
        """The adapters this device holds, by whose they are. Raises as `frequencies`."""
        found = {self.partition: self._arrays(_EXPERT, self.expert_version)}
        for expert, version in self.manifest.replica_versions.items():
            found[int(expert)] = self._arrays(_REPLICA.format(expert), version)
        return found

    def shared(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The adapter of all devices; None: there is none. Raises as `frequencies`."""
        version = self.manifest.shared_version
        return self._arrays(_SHARED, version) if version else None

    def _arrays(self, part: str, version: str) -> dict[str, np.ndarray[Any, Any]]:
        data = read_part(self.folder, part, version)
        return arrays_of(data, f"{part} in {self.folder}")
