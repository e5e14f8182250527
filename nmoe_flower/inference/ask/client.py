"""A device that asks: images in, probabilities out, with the help of its peers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nmoe_flower.certificates import Identity
from nmoe_flower.data import features_of, normalise, standardise
from nmoe_flower.data.text import document_row
from nmoe_flower.errors import DataError, WireError
from nmoe_flower.inference.ask.device_client import DeviceClient
from nmoe_flower.inference.ask.peer_gate import PeerGate
from nmoe_flower.inference.ask.query import Floats
from nmoe_flower.inference.ask.record import CallRecord
from nmoe_flower.inference.ask.router import RemoteExperts
from nmoe_flower.inference.bundle import Bundle
from nmoe_flower.inference.protocol import PeerList
from nmoe_flower.models import HomeBias, MetricGate, NMoE, check_top_k

__all__ = ["Answer", "Client"]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the mixture says of a batch of images.

    Attributes:
        probabilities: One for each class, [B, C], float32; uniform where no expert answered.
        classes: The name of the likeliest class of each image, B of them.
        record: Which experts answered, and what it cost.
    """

    probabilities: Floats
    classes: list[str]
    record: CallRecord


class Client(DeviceClient[Bundle]):
    """Extracts and routes here, asks the experts wherever they are. Safe in several threads.

    A client that was opened with the file of the list of peers writes over it a newer list that is
    learnt on the way.

    Args:
        bundle: What this device has: the shared extractor and gate, and its own expert.
        peers: The list of who holds the other experts.
        identity: This device's certificate and key; None: no encryption.
        top_k: Experts per image; None: as the gate was trained.
        settings: Further arguments of `RemoteExperts`: ``deadline``, ``encoding``, ``metrics`` ...

    Attributes:
        bundle: What this device has.
        experts: The pool of experts, this device's own among them.

    Raises:
        BundleError: The bundle is damaged.
        ConfigError: A setting is out of range.
        WireError: The list of peers is not signed, not valid or has expired.
    """

    _kind = Bundle

    def __init__(
        self,
        bundle: Bundle,
        peers: PeerList,
        *,
        identity: Identity | None = None,
        top_k: int | None = None,
        **settings: Any,
    ) -> None:
        self.bundle = bundle
        self._tokenizer = bundle.tokenizer() if bundle.reads_text else None
        self._extractor = bundle.extractor()
        gate = bundle.gate()
        if top_k is not None:
            check_top_k(top_k, gate.num_experts)
            gate.top_k = top_k
        known: PeerGate | None = None
        if isinstance(gate, MetricGate):
            known = PeerGate(gate, bundle.partition)
            settings["on_change"] = _each(known.follow, settings.get("on_change"))
        leaning = gate if known is None else known
        self._gate = HomeBias(leaning, bundle.partition, bundle.config.gate.home_bias)
        self.experts = RemoteExperts(
            peers,
            own=bundle.partition,
            local=bundle.expert(),
            identity=identity,
            extractor_version=bundle.extractor_version,
            ranking=self._gate.scores,
            **settings,
        )
        if known is not None:
            known.follow(self.experts.peers)  # which the pool has checked

    @classmethod
    def _of_list(cls, path: Path) -> dict[str, Any]:
        return {"on_change": partial(_keep, path)}

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[Any] | Sequence[str]) -> Answer:
        """Classify images, uint8 [B, H, W, channels]; [B, H, W] will do for one channel.

        A bundle that was trained on a table takes rows of it, [B, F], with the features as they
        stand there, in the order of ``data.feature-columns``. One that classifies text takes B
        documents, or the rows of them that `row` makes, [B, 1, 1, T].

        Raises:
            DataError: The images have another type or shape, or a document has no text.
        """
        pool = _Recording(self.experts)
        found = NMoE(self._extractor, self._gate, pool)(normalise(self._checked(images)))
        probabilities = found.probabilities.float().numpy(force=True)
        names = self.bundle.classes
        return Answer(probabilities, [names[c] for c in probabilities.argmax(axis=1)], pool.record)

    def row(self, text: str, *, place: str = "the document") -> Floats:
        """A document as the row of tokens that the extractor reads, [1, 1, T].

        Args:
            text: What it says.
            place: What it is called in errors.

        Raises:
            DataError: It has no text, or is longer than ``text.window`` where that is refused; or
                the bundle is about images.
        """
        if self._tokenizer is None:
            raise DataError(f"{self.bundle.folder} is about images, not about text")
        settings = self.bundle.config.text
        return document_row(
            text, self._tokenizer, window=settings.window, too_long=settings.too_long, place=place
        )

    def close(self) -> None:
        """Close all connections."""
        self.experts.close()

    def _checked(self, images: npt.NDArray[Any] | Sequence[str]) -> npt.NDArray[Any]:
        if self.bundle.reads_text:
            return self._documents(images)
        channels, height, width = self.bundle.manifest.image_shape
        given, section = np.asarray(images), self.bundle.config.data
        if section.kind == "features":
            if given.dtype.kind not in "fiu" or given.shape[1:] != (channels,):
                raise DataError(
                    f"features are {given.dtype} of shape {given.shape}; allowed: numbers of shape "
                    f"[B, {channels}], the columns {', '.join(section.feature_columns)}"
                )
            return standardise(given.astype(np.float64), features_of(section))
        batch = given[..., None] if given.ndim == 3 and channels == 1 else given
        if batch.dtype != np.uint8 or batch.shape[1:] != (height, width, channels):
            raise DataError(
                f"images are {given.dtype} of shape {given.shape}; "
                f"allowed: uint8 of shape [B, {height}, {width}, {channels}]"
            )
        return batch

    def _documents(self, texts: npt.NDArray[Any] | Sequence[str]) -> npt.NDArray[Any]:
        if not isinstance(texts, np.ndarray) and len(texts):
            texts = np.stack([self.row(one, place=f"document {n}") for n, one in enumerate(texts)])
        given, shape = np.asarray(texts), (1, 1, self.bundle.manifest.image_shape[0])
        if given.dtype != np.float32 or given.shape[1:] != shape:
            raise DataError(
                f"documents are {given.dtype} of shape {given.shape}; allowed: strings, or rows of "
                f"tokens, float32 of shape [B, {', '.join(map(str, shape))}]"
            )
        return given


def _each(
    *told: Callable[[PeerList], None] | None,
) -> Callable[[PeerList], None]:
    """Tell each of a newer list."""

    def tell(newer: PeerList) -> None:
        for one in told:
            if one is not None:
                one(newer)

    return tell


def _keep(path: Path, newer: PeerList) -> None:
    """Write a list over the file, unless another process was there with one as new."""
    try:
        known = PeerList.load(path).serial
    except WireError:
        known = -1
    if newer.serial > known:
        newer.write(path)


class _Recording:
    """The pool of one call: remembers the record of this call, whatever other threads do."""

    record: CallRecord

    def __init__(self, experts: RemoteExperts) -> None:
        self._experts = experts

    def __call__(self, latents: Tensor, expert_ids: Tensor) -> Tensor:
        logits, self.record = self._experts.ask(latents, expert_ids)
        return logits
