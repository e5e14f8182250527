"""FedSC: federated spectral contrastive learning (Networked MoE, section III-A.2).

Gao et al. 2025, arXiv:2511.01743, Eq. 3 and 4; Jing et al., "FedSC: Provable Federated
Self-supervised Learning with Spectral Contrastive Objective over Non-i.i.d. Data", ICML 2024.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.codec import array_of_json, json_of_array
from nmoe_flower.engine import StreamingGrid
from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.privacy import Accountant, noise_edge, sensitivity
from nmoe_flower.records import (
    CORRELATION,
    NOISE_MULTIPLIER,
    NOISE_STD,
    NUM_EXAMPLES,
    Action,
    CorrelationKey,
)
from nmoe_flower.representation import effective_rank, find_collapse
from nmoe_flower.strategies.fedsc_correlations import ClientMatrix, Correlations, claimed
from nmoe_flower.strategies.limits import require_number, require_whole
from nmoe_flower.strategies.replies import Exchange, Usable, read_reply
from nmoe_flower.strategies.stepped import SteppedFedAvg, SteppedOptions

__all__ = ["FedSC"]

log = logging.getLogger(__name__)


class FedSC(SteppedFedAvg):
    """FedAvg of an encoder whose clients push their samples away from everybody's.

    Beside the weights, the client is sent the mean correlation matrix R of all clients. It takes
    its own last R out, trains with Eq. 4 (``losses.local_spectral``), and returns its weights and,
    when asked to, a fresh R in a second ArrayRecord, ``"correlation"``: ``{"packed": svec(R)}``.
    ``clients.Contrast`` does that side. The server keeps every client's last R; that of a client
    that is not asked, or fails, stays as it was.

    Args:
        exchange: ``merged``: R rides in the reply with the weights and is one round old when it is
            used. ``two-phase``: R is asked for first, at the weights of this round, as published;
            twice the exchanges.
        correlation_action: Message type of the first phase; by default ``query.correlation``.
        share: The weight of a client's own R in its loss, in round 1, 2, ...; None takes its share
            q_i of the samples, for which the clients' gradients sum to the global one.
        first: The round of the first R. Before it, clients train on their own negatives alone.
        refresh: A new R is asked for in round ``first`` and every so many rounds.
        dim: Width of the features; None takes the one that most of the first clients have.
        clip: Largest norm of a feature.
        noise_multiplier: What the clients have agreed to; an R with less noise is refused.
        accountant: Counts every R that is asked for; none is asked beyond its budget.
        shrink: Remove what noise did to the spectrum of the mean.
        **options: What ``SteppedFedAvg``, ``StreamingFedAvg`` and FedAvg take.

    Attributes:
        correlations: The matrices there are.
        collapse: How the features have collapsed, in words; None if they have not.
    """

    purpose = "extractor"

    def __init__(
        self,
        *,
        exchange: Literal["merged", "two-phase"] = "merged",
        correlation_action: str = Action.CORRELATION,
        share: Callable[[int], float] | None = None,
        first: int = 1,
        refresh: int = 1,
        dim: int | None = None,
        clip: float = 1.0,
        noise_multiplier: float = 0.0,
        accountant: Accountant | None = None,
        shrink: bool = False,
        **options: Unpack[SteppedOptions],
    ) -> None:
        super().__init__(**options)
        if exchange not in ("merged", "two-phase"):
            raise ConfigError(f"exchange must be merged or two-phase, got {exchange!r}")
        require_whole("first", first, 1)
        require_whole("refresh", refresh, 1)
        require_number("noise_multiplier", noise_multiplier, below=True)
        require_number("clip", clip, above=True, below=True)
        if dim is not None:
            require_whole("dim", dim, 1)
        if share is not None and not callable(share):
            raise ConfigError(f"share must be a function of the round, got {share!r}")
        if accountant is not None and noise_multiplier <= 0:
            raise ConfigError(
                f"an accountant needs a noise_multiplier above 0, got {noise_multiplier}"
            )
        self.exchange = exchange
        self.correlation_action = correlation_action
        self.share = share
        self.first, self.refresh = first, refresh
        self.noise_multiplier = noise_multiplier
        self.accountant = accountant
        self.correlations = Correlations(dim=dim, clip=clip, shrink=shrink)
        self.collapse: str | None = None
        self._current_round = 0
        self._told_spent = False
        self._told_none = False
        self._asked_any = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Gather fresh matrices first if they are to be fresh, then send weights and mean."""
        if self.fraction_train == 0.0:
            return []
        nodes = self.cohort(grid, server_round, self.fraction_train, self.min_train_nodes)
        settings = self.round_config(server_round, config)
        self._current_round = server_round
        asked = self._asked(server_round, nodes)
        self._asked_any = bool(asked)
        first = Exchange()
        if self.exchange == "two-phase" and asked:
            first = self._gather(sorted(asked), arrays, settings, grid)
            asked = set()
        messages = self._messages(nodes, arrays, settings, asked)
        self.last_exchange.absorb(first)
        return messages

    def _asked(self, server_round: int, nodes: list[int]) -> set[int]:
        """The nodes to release an R this round, each paid for before it is asked."""
        if server_round < self.first or (server_round - self.first) % self.refresh:
            return set()
        if self.accountant is None:
            return set(nodes)
        asked = set()
        for node in nodes:
            client = self._client(node)
            if self.accountant.affords(client, noise_multiplier=self.noise_multiplier):
                self.accountant.spend(
                    client, noise_multiplier=self.noise_multiplier, num_examples=1
                )
                asked.add(node)
        if len(asked) < len(nodes) and not self._told_spent:
            self._told_spent = True
            log.warning(
                "round %d: the privacy budget of %d of %d clients is spent; "
                "their correlation matrices stay as they are",
                server_round, len(nodes) - len(asked), len(nodes),
            )  # fmt: skip
        return asked

    def _messages(
        self, nodes: list[int], arrays: ArrayRecord, settings: Mapping[str, Any], asked: set[int]
    ) -> list[Message]:
        """One message per node: the same records, and what the node must know about its own R."""
        self.sent = records.to_numpy(arrays)
        shared: dict[str, ArrayRecord] = {self.arrayrecord_key: arrays}
        told = dict(settings)
        mean = self.correlations.packed_mean
        if mean is not None:
            shared[CORRELATION] = records.from_numpy({CorrelationKey.MEAN: mean})
            told[CorrelationKey.TOTAL] = self.correlations.examples
            told[CorrelationKey.SHRUNK] = self.correlations.shrunk
        if self.share is not None:
            told[CorrelationKey.SHARE] = require_number(
                f"share({self._current_round})", self.share(self._current_round), most=1.0
            )
        messages = []
        for node in nodes:
            own: dict[str, Any] = {
                CorrelationKey.OWN_ROUND: self.correlations.round_of(self._client(node)),
                CorrelationKey.RELEASE: node in asked,
            }
            content = RecordDict({**shared, self.configrecord_key: ConfigRecord({**told, **own})})
            messages.append(Message(content, node, self.action or "train"))
        down = sum(records.array_bytes(message.content) for message in messages)
        self.last_exchange = Exchange(bytes_down=down)
        return messages

    def _gather(
        self, nodes: list[int], arrays: ArrayRecord, settings: Mapping[str, Any], grid: Grid
    ) -> Exchange:
        """The first phase: R at this round's weights."""
        config = ConfigRecord({**settings, CorrelationKey.RELEASE: True})
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        exchange = Exchange(bytes_down=len(nodes) * records.array_bytes(content))
        messages = [Message(content, node, self.correlation_action) for node in nodes]
        streaming = StreamingGrid.around(grid)
        for reply in streaming.send_and_receive(messages, timeout=self.round_timeout):
            client = self.partition_of(reply)
            try:
                usable = read_reply(
                    reply, weighted_by_key=NUM_EXAMPLES, arrayrecord_key=None, like=None
                )
                self._take(client, reply.content, usable.metrics)
            except ReplyError as error:
                exchange.fail(client, f"correlation: {error}")
                continue
            exchange.bytes_up += records.array_bytes(reply.content)
        self._settle(exchange)
        return exchange

    def _settle(self, exchange: Exchange) -> None:
        """Agree on the width of the features, once; name those whose R has another."""
        for client, reason in self.correlations.settle().items():
            exchange.fail(client, f"correlation: {reason}")

    def accept(self, client: int, content: RecordDict, usable: Usable) -> None:
        """Keep the R that came with the weights, if one did."""
        super().accept(client, content, usable)
        if CORRELATION in content:
            self._take(client, content, usable.metrics)

    def _take(self, client: int, content: RecordDict, metrics: MetricRecord) -> None:
        record = content.get(CORRELATION)
        if not isinstance(record, ArrayRecord) or CorrelationKey.PACKED not in record:
            raise ReplyError(
                f"the ArrayRecord {CORRELATION!r} with {CorrelationKey.PACKED!r} is missing"
            )
        noise = claimed(metrics, NOISE_MULTIPLIER, 0.0)
        if noise < self.noise_multiplier * (1 - 1e-9):
            raise ReplyError(
                f"its correlation matrix has noise multiplier {noise:g}, "
                f"{self.noise_multiplier:g} was agreed"
            )
        sent = ClientMatrix(
            packed=records.to_numpy(record)[CorrelationKey.PACKED],
            examples=claimed(metrics, NUM_EXAMPLES),
            round=self._current_round,
            noise_std=claimed(metrics, NOISE_STD, 0.0),
        )
        clip, size = self.correlations.clip, max(1, int(sent.examples))
        most = noise * sensitivity(clip, size) * (1 + 1e-6)
        if sent.noise_std > most:
            raise ReplyError(
                f"its noise is said to have deviation {sent.noise_std:g}; noise multiplier "
                f"{noise:g} and {size} samples give {most:g}"
            )
        self.correlations.keep(client, sent)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the weights; add the effective rank of the mean R to the metrics."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        self._settle(self.last_exchange)
        eigenvalues = self.correlations.eigenvalues()
        if metrics is not None and eigenvalues is None and self._asked_any:
            self._tell_none(server_round)
        if metrics is not None and eigenvalues is not None:
            metrics["effective-rank"] = effective_rank(eigenvalues)
            self._watch(server_round, eigenvalues)
        return arrays, metrics

    def _tell_none(self, server_round: int) -> None:
        """An app whose clients send no R averages weights, and nothing else would say so."""
        if not self._told_none:
            self._told_none = True
            log.warning(
                "round %d: no client sent a correlation matrix, so FedSC does what FedAvg does; "
                "clients send theirs with nmoe_flower.clients.Contrast", server_round,
            )  # fmt: skip

    def _watch(self, server_round: int, eigenvalues: np.ndarray) -> None:
        hidden = noise_edge(self.correlations.noise_std, len(eigenvalues))
        found = find_collapse(eigenvalues, hidden=hidden)
        if found is not None and self.collapse is None:
            log.warning(
                "round %d: %s; try a smaller learning rate, a fresh R (two-phase) or a projector "
                "with BatchNorm", server_round, found,
            )  # fmt: skip
        self.collapse = found

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the clients' metrics; add the spectrum of the mean R, largest first."""
        metrics = super().aggregate_evaluate(server_round, replies)
        eigenvalues = self.correlations.eigenvalues()
        if metrics is not None and eigenvalues is not None:
            metrics["effective-rank"] = effective_rank(eigenvalues)
            metrics["spectrum"] = eigenvalues.tolist()
        return metrics

    def state(self) -> dict[str, np.ndarray]:
        """Optimizer, averaged weights, every client's R, and the spent budget."""
        arrays = super().state()
        arrays |= {f"correlation/{k}": value for k, value in self.correlations.state().items()}
        if self.accountant is not None:
            arrays["accountant"] = array_of_json(self.accountant.state())
        return arrays

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state`` gave; the budget is never forgotten."""
        super().load_state(arrays)
        self.correlations.load_state(records.part_of(arrays, "correlation/"))
        if self.accountant is not None and "accountant" in arrays:
            self.accountant.load_state(json_of_array(arrays["accountant"]))

    def _client(self, node: int) -> int:
        return self.partitions.get(node, node)
