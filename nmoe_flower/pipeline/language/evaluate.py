"""The last exchange: every client scores its text by every adapter; the rows of results.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.pipeline.ask import Holding, gather, holdings, message, train_counts
from nmoe_flower.pipeline.rows import all_found, row
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import EXPERT, GATE, SHARED, TEXT, Action, Score, TextKey

__all__ = ["evaluate_language"]

Arrays = dict[str, np.ndarray]
EXTRACTOR = "pretrained"
_TOKEN_BYTES = 2  # of a token's id on its way out, and of its log-probability on the way back


def evaluate_language(run: Run) -> dict[str, Any]:
    """Bits per byte of every gate and control: the content of ``results.json``."""
    held = holdings(run)
    answers = gather(run, "evaluation", Action.ADAPTER_SCORE, _question(run, held), wanted=[TEXT])
    told = {
        p: records.to_numpy(records.of_kind(content, ArrayRecord)[TEXT])
        for p, content in answers.items()
    }
    domains = next(iter(held.values())).classes
    # an expert that stays at home has scored no text but its owner's
    alone = run.config.expert.sharing == "none"
    rows, routing = [], {}
    nats = f"/{TextKey.NATS}"
    for key in sorted(k.removesuffix(nats) for k in told[min(told)] if k.endswith(nats)):
        gate, _, test = key.rpartition("/")
        tested = _Tested.of(told, key, test)
        everybodys = test == "local" and not (alone and gate == "local")
        for name in (test, "iid") if everybodys else (test,):
            rows.append(_row(run, gate, name, tested, domains))
            if (routes := tested.routes_of(name == "iid")) is not None:
                routing[f"{gate}/{name}"] = routes.tolist()
    more = {"learning_rates": run.artifacts.chosen_rates} if run.artifacts.chosen_rates else {}
    return all_found(run, held, rows=rows, routing=routing, **more)


def _question(run: Run, held: Mapping[int, Holding]) -> RecordDict:
    """All adapters there are, and what gates need."""
    arrays: Arrays = {TextKey.DOMAINS: train_counts(held).argmax(axis=1)}
    if run.artifacts.frequencies is not None:
        arrays[TextKey.FREQUENCIES] = run.artifacts.frequencies
    content = message(arrays)
    if run.artifacts.adapters:
        content[EXPERT] = records.from_numpy(run.artifacts.adapters)
    if gates := run.artifacts.gates:
        content[GATE] = _together(gates)
    if shared := run.artifacts.shared_adapters:
        content[SHARED] = _together(shared)
    return content


def _together(named: Mapping[str, Arrays]) -> ArrayRecord:
    return records.together({name: records.from_numpy(parts) for name, parts in named.items()})


@dataclass(frozen=True)
class _Tested:
    """What all clients told of one gate in one test.

    Attributes:
        nats: By client, asking client (1: all would ask alike) and domain of the text, [N, A, D].
        bytes: Bytes of the scored text, by client and domain, [N, D].
        tokens: Scored tokens, by client and domain, [N, D].
        routes: Share of each client's text that goes to each expert, by who asks, [N, A, E]; None:
            there is no routing.
    """

    nats: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray
    routes: np.ndarray | None

    @classmethod
    def of(cls, told: Mapping[int, Arrays], key: str, test: str) -> "_Tested":
        """Read it from the clients' answers; ``key`` is ``<gate>/<test>``."""

        def stacked(name: str) -> np.ndarray:
            return np.stack([arrays[name] for arrays in told.values()])

        routed = f"{key}/{Score.ROUTING}"
        return cls(
            stacked(f"{key}/{TextKey.NATS}"),
            stacked(f"{test}/{TextKey.BYTES}"),
            stacked(f"{test}/{TextKey.TOKENS}"),
            stacked(routed) if routed in told[min(told)] else None,
        )

    def asked(self, everybodys: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nats, bytes and tokens of each domain, by the client that asks, [N, D] each.

        Args:
            everybodys: Whether clients ask about everybody's text, or about their own.
        """
        clients, asking, _ = self.nats.shape
        if not everybodys:
            who = np.arange(clients) % asking
            return self.nats[np.arange(clients), who], self.bytes, self.tokens
        shape = clients, self.nats.shape[2]
        nats = np.broadcast_to(self.nats.sum(axis=0), shape)
        sizes = np.broadcast_to(self.bytes.sum(axis=0), shape)
        return nats, sizes, np.broadcast_to(self.tokens.sum(axis=0), shape)

    def routes_of(self, everybodys: bool) -> np.ndarray | None:
        """Share of the questions of each client that goes to each expert, [N, E].

        Args:
            everybodys: Whether clients ask about everybody's text, each client's counting alike,
                or about their own.
        """
        if self.routes is None:
            return None
        clients, asking, _ = self.routes.shape
        own = np.arange(clients)
        if everybodys:
            return np.asarray(self.routes[:, own % asking].mean(axis=0))
        return np.asarray(self.routes[own, own % asking])


def _row(run: Run, gate: str, test: str, tested: _Tested, domains: list[str]) -> dict[str, Any]:
    """The row of a gate in a test.

    Of the test ``iid`` a client's bits per byte are the mean over the domains, each counting alike;
    of its own text they are those of all of it.
    """
    everybodys = test == "iid"
    nats, sizes, tokens = tested.asked(everybodys)
    there = sizes > 0
    by_domain = np.divide(nats, sizes * np.log(2), out=np.full(nats.shape, np.nan), where=there)
    if everybodys:
        bits = np.nanmean(by_domain, axis=1)
        per_token = np.divide(nats, tokens, out=np.full(nats.shape, np.nan), where=there)
        loss = np.nanmean(per_token, axis=1)
    else:
        bits = nats.sum(axis=1) / sizes.sum(axis=1) / np.log(2)
        loss = nats.sum(axis=1) / tokens.sum(axis=1)
    per_client = {"bits_per_byte": bits.tolist(), "perplexity": np.exp(loss).tolist()}
    text, top_k = run.config.text, run.config.asked_for_text(gate)
    if (routes := tested.routes_of(everybodys)) is not None:
        ratio = routes.diagonal()
        moved = _TOKEN_BYTES * (2 * text.window - text.prefix) * top_k
        per_client |= {
            "local_ratio": ratio.tolist(),
            "bytes_per_sample": ((1 - ratio) * moved).tolist(),
        }
    totals = nats.sum(axis=0), sizes.sum(axis=0)
    each = {
        name: float(totals[0][at] / totals[1][at] / np.log(2))
        for at, name in enumerate(domains)
        if totals[1][at] > 0
    }
    found = row(run, extractor=EXTRACTOR, gate=gate, test=test, top_k=top_k, per_client=per_client)
    return found | {
        "accuracy": None,  # of images alone; every row has it
        "worst_bits_per_byte": float(bits.max()),
        "pooled_bits_per_byte": float(totals[0].sum() / totals[1].sum() / np.log(2)),
        "domains": each,
    }
