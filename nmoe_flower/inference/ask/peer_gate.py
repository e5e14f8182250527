"""A gate that knows the experts by the embeddings in the list of peers.

Who joins is in the next list with an embedding, and is routed to as soon as that arrives; who
leaves is in none. The projection, which all devices share, stays what it is.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from nmoe_flower.errors import BundleError, WireError
from nmoe_flower.inference.bundle import Bundle, TextBundle
from nmoe_flower.inference.protocol import PeerEntry, PeerList
from nmoe_flower.inference.telemetry import log_event
from nmoe_flower.models import MetricGate, Routing, metric_scores, route_known

__all__ = ["PeerGate", "projection_version", "with_embeddings"]

_log = logging.getLogger(__name__)
_MOST_EXPERTS = 1 << 17
_FLOAT = np.dtype("<f4")


@dataclass(frozen=True)
class _Table:
    """Embeddings by the number of the expert, zero for nobody's; and whose there are."""

    embeddings: Tensor  # [E, d]
    known: Tensor  # [E] bool


class PeerGate:
    """Routes to the experts of the peers that are there, and to the own. Safe in several threads.

    A peer whose entry has no embedding is known by the one that came with the bundle, if any did.
    One whose embedding cannot be used is left out, with one warning; the others are routed to.

    Args:
        gate: The gate of this device's bundle: projection, and the embeddings known when it was
            made.
        own: The id of this device's own expert.

    Attributes:
        top_k: K, the experts that ``route`` picks, if there are as many.
    """

    def __init__(self, gate: MetricGate, own: int) -> None:
        self.top_k = gate.top_k
        self._gate, self._own = gate, own
        self._version = projection_version(gate)
        self._table = self._read(PeerList(()))

    @property
    def num_experts(self) -> int:
        """The experts that can be chosen now."""
        return int(self._table.known.sum())

    def follow(self, peers: PeerList) -> None:
        """Route to the peers of this list from now on."""
        self._table = self._read(peers)

    def scores(self, latents: Tensor) -> Tensor:
        """Score latents [B, D]: logits [B, E]; minus infinity for ids that nobody has."""
        table = self._table
        scores = metric_scores(self._gate.queries(latents), table.embeddings.to(latents))
        return scores.masked_fill(~table.known.to(scores.device), -torch.inf)

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """Pick the K known experts with the nearest embeddings for latents [B, D], or all."""
        return route_known(self.scores(latents), self.top_k)

    def _read(self, peers: PeerList) -> _Table:
        dim, came = self._gate.dim, self._gate.embeddings.numpy(force=True)
        found = {self._own: came[self._own]} if self._own < len(came) else {}
        for peer in peers.peers:
            if peer.partition == self._own:
                continue
            if not peer.embedding and peer.partition < len(came):
                found[peer.partition] = came[peer.partition]
            elif why := self._unfit(peer):
                facts = {"peer": peer.name, "partition": peer.partition}
                log_event(_log, logging.WARNING, "peer-not-routed", **facts, detail=why)
            else:
                found[peer.partition] = np.frombuffer(peer.embedding, _FLOAT)
        ids = sorted(found)
        embeddings = np.zeros((max(ids, default=0) + 1, dim), np.float32)
        known = np.zeros(len(embeddings), bool)
        if ids:
            embeddings[ids], known[ids] = np.stack([found[one] for one in ids]), True
        return _Table(torch.from_numpy(embeddings), torch.from_numpy(known))

    def _unfit(self, peer: PeerEntry) -> str:
        """Why an embedding cannot be used; empty: it can."""
        numbers = np.frombuffer(peer.embedding, _FLOAT)
        if not len(numbers):
            return "its entry has no embedding"
        if peer.projection_version not in ("", self._version):
            return f"its projection is {peer.projection_version}, ours {self._version}"
        if len(numbers) != self._gate.dim:
            return f"its embedding has {len(numbers)} numbers, ours {self._gate.dim}"
        if not np.isfinite(numbers).all():
            return "its embedding is not finite"
        if peer.partition >= _MOST_EXPERTS:
            return f"its expert is {peer.partition}; routed to are 0..{_MOST_EXPERTS - 1}"
        return ""


def projection_version(gate: MetricGate) -> str:
    """The beginning of the SHA-256 of a gate's projection: embeddings of one version can meet."""
    weights = gate.projection.numpy(force=True).astype(_FLOAT)
    return hashlib.sha256(weights.tobytes()).hexdigest()[:16]


def with_embeddings(peers: PeerList, bundles: Sequence[Bundle | TextBundle]) -> PeerList:
    """The list with what the bundles say of their devices: versions and embeddings; not signed.

    Args:
        peers: A list with an entry for the device of each bundle.
        bundles: Bundles of some or all of its devices, all on one extractor.

    Raises:
        BundleError: A bundle is damaged, or on another extractor than the first: such peers refuse
            each other's questions.
        WireError: The device of a bundle is not in the list.
    """
    entries = dict(peers.by_partition)
    for bundle in bundles:
        if bundle.extractor_version != bundles[0].extractor_version:
            raise BundleError(
                f"{bundle.folder} is on the extractor {bundle.extractor_version}, "
                f"{bundles[0].folder} on {bundles[0].extractor_version}: give bundles of one run"
            )
        if bundle.partition not in entries:
            raise WireError(
                "peers",
                f"{bundle.folder} is the bundle of expert {bundle.partition}, which is not in the "
                f"list; it has {', '.join(map(str, sorted(entries)))[:200] or 'nobody'}",
            )
        gate = bundle.gate() if isinstance(bundle, Bundle) else None
        embedding, version = b"", ""
        if isinstance(gate, MetricGate):
            row = gate.embeddings[bundle.partition].numpy(force=True)
            embedding, version = row.astype(_FLOAT).tobytes(), projection_version(gate)
        entries[bundle.partition] = replace(
            entries[bundle.partition],
            expert_version=bundle.expert_version,
            extractor_version=bundle.extractor_version,
            embedding=embedding,
            projection_version=version,
        )
    return replace(peers, peers=tuple(entries.values()), signature=b"")
