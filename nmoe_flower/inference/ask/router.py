"""Experts on other devices behind the same call as local ones."""

import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from nmoe_flower.certificates import Identity
from nmoe_flower.errors import ConfigError
from nmoe_flower.inference.ask.breaker import Breaker
from nmoe_flower.inference.ask.channel import Channel, PeerChannel
from nmoe_flower.inference.ask.link import Health, Link
from nmoe_flower.inference.ask.links import Links, PeerState
from nmoe_flower.inference.ask.loop import LoopThread
from nmoe_flower.inference.ask.query import Bools, Call, Floats, Ints, prefer_healthy
from nmoe_flower.inference.ask.record import CallRecord, RouterMetrics
from nmoe_flower.inference.ask.send import QuerySending
from nmoe_flower.inference.protocol import (
    MAX_MESSAGE_BYTES,
    Encoding,
    PeerEntry,
    PeerList,
    check_encoding,
    unfit,
)
from nmoe_flower.inference.settings import check_not_negative, check_seconds
from nmoe_flower.models import Expert

__all__ = ["RemoteExperts"]

T = TypeVar("T")

_log = logging.getLogger(__name__)
_MOST_ROWS = 256  # in one request
_LATE = 1.1  # times the deadline: then this thread stops waiting for the loop's
_PATIENCE_SECONDS = 10.0  # for the loop's own work


class RemoteExperts:
    """An expert pool whose experts are other devices, and one that is here.

    Requests go out in parallel, grouped by peer. Whatever the peers do, a call returns soon after
    its deadline: rows whose chosen experts fail go to the next-best expert, and at last to the
    local one. Of a row with several chosen experts the silent ones are left out. Peers that fail
    three times in a row are not asked until a probe in the background finds them well.

    Calls may come from several threads; `ask` gives each its own record.

    Args:
        peers: The list of who holds which expert. With an ``identity`` it must be signed.
        own: The id of the local expert.
        local: The local expert; it says how long latents are and how many classes there are.
        identity: This device's certificate and key. None: no encryption, and anybody may answer.
        extractor_version: The extractor that makes the latents; peers with another one are not
            asked. Empty: all are.
        ranking: Scores [B, E] of latents [B, D]: the gate. It finds the next-best experts. None:
            failures go to the local expert at once.
        deadline: Seconds that a call may spend on the network.
        hedge_after: After so many seconds the next-best expert is asked besides, for rows that have
            no answer; the first answer counts. None: never.
        fallbacks: Most next-best experts asked for a row, one after the other.
        prefer_margin: Give rows to healthier experts that score less by no more than this (0 to
            keep the gate's choice): needs ``ranking``.
        encoding: How latents travel: float32, float16 or int8.
        refresh_seconds: Seconds between two looks for a newer list among the peers: needs
            ``identity``. None: nobody is asked for one.
        on_change: Called with every newer list, in a thread of its own.
        metrics: Counts every call. None: nothing is counted.
        make_breaker: Makes the breaker of a peer.
        open_channel: Makes the connection to a peer; None: gRPC.

    Attributes:
        last: The record of the last call; None before.

    Raises:
        ConfigError: A setting is out of range.
        WireError: The list of peers is not signed, not valid or has expired.
    """

    def __init__(
        self,
        peers: PeerList,
        *,
        own: int,
        local: Expert,
        identity: Identity | None = None,
        extractor_version: str = "",
        ranking: Callable[[Tensor], Tensor] | None = None,
        deadline: float = 1.0,
        hedge_after: float | None = None,
        fallbacks: int = 2,
        prefer_margin: float = 0.0,
        encoding: Encoding = "float32",
        refresh_seconds: float | None = None,
        on_change: Callable[[PeerList], None] | None = None,
        metrics: RouterMetrics | None = None,
        make_breaker: Callable[[], Breaker] = Breaker,
        open_channel: Callable[[PeerEntry], Channel] | None = None,
    ) -> None:
        check_seconds(deadline=deadline, hedge_after=hedge_after, refresh_seconds=refresh_seconds)
        check_not_negative(own=own, fallbacks=fallbacks, prefer_margin=prefer_margin)
        check_encoding(encoding)
        if prefer_margin and ranking is None:
            raise ConfigError("prefer_margin needs ranking, the scores of the gate")
        if refresh_seconds is not None and identity is None:
            raise ConfigError("refresh_seconds needs an identity: unsigned lists are not believed")
        self.own = own
        self.local = local
        self.last: CallRecord | None = None
        self._ranking = ranking
        self._deadline = deadline
        self._fallbacks = fallbacks
        self._margin = prefer_margin
        self._encoding = encoding
        self._shape = (local.latent_dim, local.num_classes)
        # Half of what a message may hold: room for names, scales and the rest.
        self._max_rows = min(_MOST_ROWS, max(1, MAX_MESSAGE_BYTES // (2 * 4 * max(self._shape))))
        self._make_breaker = make_breaker
        self._open_channel = open_channel or partial(
            PeerChannel,
            identity=identity,
            extractor_version=extractor_version,
            encoding=encoding,
        )
        self._links = Links(
            peers,
            own=own,
            connect=self._connect,
            extractor_version=extractor_version,
            authority_pem=identity.authority_pem if identity is not None else b"",
            on_change=on_change,
        )
        self._metrics = metrics
        if metrics is not None:
            metrics.watch(self._links.breakers)
        self._sending = QuerySending(self._links, deadline=deadline, hedge_after=hedge_after)
        self._loop = LoopThread("nmoe-router")
        if refresh_seconds is not None:
            self._loop.submit(self._links.keep_fresh(refresh_seconds, timeout=deadline))

    def __call__(self, latents: Tensor, expert_ids: Tensor) -> Tensor:
        """Answer latents [B, D] by expert_ids [B, K]: logits [B, K, C]; NaN where nobody did.

        Raises:
            ConfigError: The shapes do not fit the local expert and the gate.
        """
        logits, self.last = self.ask(latents, expert_ids)
        return logits

    @torch.inference_mode()
    def ask(self, latents: Tensor, expert_ids: Tensor) -> tuple[Tensor, CallRecord]:
        """As a call, with the record of this very call."""
        started = time.perf_counter()
        _check_query(latents, expert_ids, width=self._shape[0])
        scores = None
        if self._ranking is not None:
            scores = _floats(self._ranking(latents))
            _check_scores(scores, expert_ids)
        ids, rows = expert_ids.long().numpy(force=True), _floats(latents)
        chosen = ids if scores is None else self._preferred(ids, scores)
        call = self._call(chosen, scores, keep=unfit(rows, self._encoding))
        work = self._submit(self._sending.run(call, rows, started))
        own_logits = self._local(latents, call.own_cells.rows)
        try:
            sent = work.result(_LATE * self._deadline)
        except TimeoutError:  # this machine has no time for our own loop
            work.cancel()
            _log.warning("the router's loop is late: all %d rows are answered here", len(ids))
            sent, call = [], self._call(chosen, None, keep=np.ones(len(ids), bool))
        outcome = call.finish(lambda lost: self._local(latents, lost), own_logits)
        record = CallRecord(
            own=self.own,
            expert_ids=chosen,
            answered_by=outcome.answered_by,
            ms=1000 * (time.perf_counter() - started),
            deadline_ms=1000 * self._deadline,
            sent=sent,
            moved=int((chosen != ids).sum()),
        )
        if self._metrics is not None:
            self._metrics.observe(record)
        return torch.from_numpy(outcome.logits).to(latents.device), record

    @property
    def peers(self) -> PeerList:
        """The list of peers that holds."""
        return self._links.peers

    def states(self) -> list[PeerState]:
        """What is known of each peer, by partition."""
        return self._submit(self._links.states()).result(_PATIENCE_SECONDS)

    def update(self, peers: PeerList) -> bool:
        """Take over a list of peers, without a restart; whether it was newer.

        Raises:
            WireError: The list is not signed, not valid, has expired, or is older.
        """
        return self._submit(self._links.update(peers)).result(_PATIENCE_SECONDS)

    def refresh(self) -> bool:
        """Ask a few peers for a newer list, each time the next ones; whether there was one.

        Raises:
            ConfigError: Without certificates nobody's list can be believed.
        """
        if not self._links.can_verify:
            raise ConfigError("refresh needs an identity: unsigned lists are not believed")
        work = self._submit(self._links.refresh(timeout=self._deadline))
        return work.result(self._deadline + _PATIENCE_SECONDS)

    def close(self) -> None:
        """Close all connections and stop the thread."""
        try:
            self._submit(self._links.close()).result(_PATIENCE_SECONDS)
        except (ConfigError, TimeoutError):  # closed before, or the loop is stuck
            _log.debug("the links could not be closed")
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, peer: PeerEntry) -> Link:
        health = Health(self._make_breaker())
        channel = self._open_channel(peer)
        return Link(peer, channel, health, shape=self._shape, deadline=self._deadline)

    def _submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        try:
            return self._loop.submit(work)
        except RuntimeError:
            raise ConfigError("this router is closed; make a new one") from None

    def _preferred(self, ids: Ints, scores: Floats) -> Ints:
        if not self._margin:
            return ids
        penalties = self._links.penalties(scores.shape[1], 1000 * self._deadline)
        return prefer_healthy(ids, scores, penalties, margin=self._margin)

    def _call(self, ids: Ints, scores: Floats | None, *, keep: Bools) -> Call:
        return Call(
            ids,
            self.local.num_classes,
            own=self.own,
            available=self._links.available,
            scores=scores,
            fallbacks=self._fallbacks,
            max_rows=self._max_rows,
            keep=keep,
        )

    def _local(self, latents: Tensor, rows: Ints) -> Floats:
        """The local expert's logits [n, C] of some rows [n]."""
        if not len(rows):
            return np.empty((0, self.local.num_classes), np.float32)
        logits: Tensor = self.local(latents[torch.from_numpy(rows).to(latents.device)])
        return _floats(logits)


def _check_query(latents: Tensor, expert_ids: Tensor, *, width: int) -> None:
    """Refuse shapes and ids that cannot be.

    Args:
        latents: What is asked about, must be [B, D].
        expert_ids: Who is asked, must be [B, K].
        width: D, the length of a latent.

    Raises:
        ConfigError: A shape is wrong, or an id is negative.
    """
    batch = len(latents)
    if latents.shape != (batch, width) or expert_ids.ndim != 2 or len(expert_ids) != batch:
        raise ConfigError(
            f"latents must be [B, {width}] and expert_ids [B, K], got shapes "
            f"{tuple(latents.shape)} and {tuple(expert_ids.shape)}"
        )
    if expert_ids.numel() and int(expert_ids.min()) < 0:
        raise ConfigError(f"expert ids must be 0 or more, got {int(expert_ids.min())}")


def _check_scores(scores: Floats, expert_ids: Tensor) -> None:
    """Refuse a ranking that does not fit the query.

    Args:
        scores: The ranking, must be [B, E].
        expert_ids: [B, K], which `_check_query` let through.

    Raises:
        ConfigError: The shape is wrong, or an id is not below E.
    """
    if scores.ndim != 2 or len(scores) != len(expert_ids):
        raise ConfigError(f"ranking must give [{len(expert_ids)}, E], got shape {scores.shape}")
    if expert_ids.numel() and int(expert_ids.max()) >= scores.shape[1]:
        raise ConfigError(
            f"expert ids must be in 0..{scores.shape[1] - 1}, got {int(expert_ids.max())}"
        )


def _floats(tensor: Tensor) -> Floats:
    """A tensor as a float32 array, wherever it lies."""
    return np.asarray(tensor.float().numpy(force=True))
