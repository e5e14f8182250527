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
from pydantic import Field, model_validator

from nmoe_flower.config import Config
from nmoe_flower.errors import BundleError
from nmoe_flower.files import pack_arrays
from nmoe_flower.inference.bundle.bundle_files import (
    Arrays,
    Count,
    DeviceBundle,
    DeviceManifest,
    FileVersion,
    PartitionId,
    arrays_of,
    version_of,
)

__all__ = ["FREQUENCIES", "TextBundle", "TextManifest"]

FREQUENCIES = "frequencies"
_SHARED = "shared"
_FORMAT, _KIND = 1, "text"
_EXPERT, _GATE, _REPLICA = "expert", "gate", "replica-{}"

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TextManifest(DeviceManifest):
    """The content of ``bundle.json``, beside what every bundle says.

    Attributes:
        kind: ``text``; bundles of images have no such key.
        backbone: SHA-256 of the backbone's weights.
        tokenizer: SHA-256 of what makes the tokens.
        vocab_size: V, how many tokens the backbone knows.
        width: d, numbers per token at the cut and after the last block.
        gate: Who decides: ``unigram``, or ``unigram-chunks`` again and again; ``posterior`` asks
            several and weighs them at each token.
        holders: Devices that hold each expert, its own first.
        replica_versions: By expert, the versions of those that this device stands in for.
        shared_version: The version of ``shared.safetensors``; empty: there is none.
    """

    kind: Literal["text"]
    backbone: _Hash
    tokenizer: _Hash
    vocab_size: Count
    width: Count
    gate: Literal["unigram", "unigram-chunks", "posterior"]
    holders: list[Annotated[list[PartitionId], Field(min_length=1)]]
    replica_versions: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], FileVersion]
    shared_version: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")]

    @model_validator(mode="after")
    def _is_held(self) -> Self:
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


class TextBundle(DeviceBundle[TextManifest]):
    """A checked bundle of the language system."""

    _form = TextManifest
    _other = "images, not of text: leave out --text"

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
    def tokenizer_hash(self) -> str:
        """SHA-256 of what makes the tokens."""
        return self.manifest.tokenizer

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
        bundle = cls._parsed(folder, values)
        bundle._write(packed, values)
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

    def _check_files(self) -> None:
        self.frequencies()
        self.adapters()
        self.shared()

    def _arrays(self, part: str, version: str) -> dict[str, np.ndarray[Any, Any]]:
        return arrays_of(self._bytes(part, version), f"{part} in {self.folder}")
