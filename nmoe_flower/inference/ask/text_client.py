"""A device that asks about text: how well it is predicted, and how it goes on."""

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nmoe_flower.certificates import Identity
from nmoe_flower.data.text import tokenise
from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.inference.ask.device_client import DeviceClient
from nmoe_flower.inference.ask.loop import LoopThread
from nmoe_flower.inference.ask.text_asking import Asking, Send, TextCost
from nmoe_flower.inference.ask.text_peers import TextPeers
from nmoe_flower.inference.ask.text_scoring import NOBODY, Scoring
from nmoe_flower.inference.ask.text_writing import Written, write
from nmoe_flower.inference.bundle import OF_ALL, TextBundle, TextExperts, Writing
from nmoe_flower.inference.protocol import Encoding, PeerList, check_encoding
from nmoe_flower.inference.settings import check_not_negative, check_seconds
from nmoe_flower.models import (
    Chunks,
    at_home,
    check_top_k,
    posterior_routes,
    text_routes,
    unigram_scores,
)

__all__ = ["Generation", "Piece", "TextAnswer", "TextClient", "WindowScores"]

T = TypeVar("T")
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_UNFINISHED = "\ufffd"  # part of a character
_SHARED = "shared"
_CHUNKED, _POSTERIOR = "unigram-chunks", "posterior"


@dataclass(frozen=True, eq=False)
class WindowScores:
    """What the mixture loses on windows.

    Attributes:
        nats: On all tokens but the first, [N, T - 1].
        asked: Experts that were chosen in each chunk, [N, C, K].
        by: Who answered in the place of each expert, [N, E]; negative: nobody was asked, or the
            adapter of all devices (`OF_ALL`).
        peers: Names of the devices that answered for each expert; this one is ``self``.
        cost: Bytes both ways, and peers that failed.
    """

    nats: Floats
    asked: Ints
    by: Ints
    peers: dict[int, list[str]]
    cost: TextCost


@dataclass(frozen=True)
class TextAnswer:
    """How well the mixture predicts a text.

    Attributes:
        bits_per_byte: What the scored tokens cost, in bits per byte of text.
        perplexity: Per scored token.
        tokens: How many are scored: all but the first ``prefix``.
        bytes: Bytes of text they stand for.
        prefix: First tokens, which are given.
        experts: Share of the decisions that each expert was chosen in.
        answered_by: Names of the devices that answered, for each expert that answered.
        fallback: Who answered in the place of an expert that did not, where one did not:
            ``next-best``, ``shared`` or ``local``.
        cost: Bytes both ways, and peers that failed.
        ms: Milliseconds.
    """

    bits_per_byte: float
    perplexity: float
    tokens: int
    bytes: int
    prefix: int
    experts: dict[int, float]
    answered_by: dict[str, list[str]]
    fallback: str | None
    cost: TextCost
    ms: float


@dataclass(frozen=True)
class Piece:
    """What one more token adds to a text.

    Attributes:
        token: Number of the token.
        text: What it adds; empty as long as a character is not whole.
        log_probability: How likely it was, in nats.
        expert: Device whose adapter wrote it; `OF_ALL`: the adapter of all devices.
        peer: Name of the device that did; this one is ``self``.
    """

    token: int
    text: str
    log_probability: float
    expert: int
    peer: str


@dataclass
class Generation:
    """A text that goes on while it is iterated over.

    Attributes:
        pieces: What was written so far.
        cost: Bytes both ways, and peers that failed, so far.
        ms: Milliseconds that each token took.
    """

    pieces: list[Piece] = field(default_factory=list)
    cost: TextCost = field(default_factory=TextCost)
    ms: list[float] = field(default_factory=list)
    _source: Iterator[Piece] = field(default=iter(()), repr=False)

    def __iter__(self) -> Iterator[Piece]:
        return self._source

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(piece.text for piece in self.pieces)


class TextClient(DeviceClient[TextBundle]):
    """Runs the lower blocks and the gate here, asks the experts wherever they are.

    Args:
        bundle: What this device has.
        peers: The list of who holds the other experts.
        identity: This device's certificate and key; None: no encryption.
        top_k: Experts per decision when text is scored; None: as in training.
        send: ``hidden``: hidden states at the cut; ``tokens``: the text itself, where the operator
            allows it.
        encoding: How hidden states travel: float32, float16 or int8.
        deadline: Seconds that an answer, or the next token, may take.
        fallbacks: How many next-best experts are asked in the place of one that does not answer.
        experts: The bundle's adapters on a backbone; None: it is opened.
        weights: Where this device keeps the backbone's weights; empty: where the run did.

    Attributes:
        bundle: What this device has.
        experts: This device's adapters on the backbone.

    Raises:
        BundleError: The backbone or the tokenizer is another one than the bundle is for.
        ConfigError: A setting is not allowed.
        WireError: The list of peers is not signed, not valid or has expired.
    """

    _kind = TextBundle

    def __init__(
        self,
        bundle: TextBundle,
        peers: PeerList,
        *,
        identity: Identity | None = None,
        top_k: int | None = None,
        send: Send = "hidden",
        encoding: Encoding = "float16",
        deadline: float = 10.0,
        fallbacks: int = 2,
        experts: TextExperts | None = None,
        weights: str = "",
    ) -> None:
        check_seconds(deadline=deadline)
        check_not_negative(fallbacks=fallbacks)
        _check_choices(bundle, send, encoding)
        check_top_k(top_k or 1, bundle.num_clients)
        self.bundle = bundle
        self._tokenizer = bundle.tokenizer()
        self._frequencies = bundle.frequencies()
        self._top_k = top_k or bundle.config.asked_for_text(bundle.manifest.gate)
        self.experts = experts or TextExperts.open(bundle, weights=weights)
        self._offsets: dict[int, tuple[str, Floats]] = {}
        self._asking = Asking(
            self.experts,
            TextPeers(peers, identity, extractor_version=bundle.extractor_version),
            send,
            encoding,
            deadline,
            fallbacks,
        )
        self._loop = LoopThread("nmoe-text")

    def score(self, text: str, *, prefix: int | None = None) -> TextAnswer:
        """How well the mixture predicts a text, all but its first tokens.

        A long text is read in windows as in training, each of which begins with the last
        ``prefix`` tokens of the one before it.

        Args:
            text: What is scored.
            prefix: First tokens, which are given; None: ``text.prefix``, or half of a shorter text.

        Raises:
            DataError: The text is empty, or a single token.
        """
        started = time.perf_counter()
        tokens, sizes = self._tokens(text)
        if len(tokens) < 2:
            raise DataError("the text is a single token, and the first one is never scored")
        window = self.bundle.config.text.window
        if prefix is None:
            prefix = min(self.bundle.config.text.prefix, len(tokens) // 2)
        elif not 1 <= prefix < min(window, len(tokens)):
            raise DataError(
                f"--prefix {prefix} of a text of {len(tokens)} tokens in windows of {window}; "
                f"allowed: 1 to {min(window, len(tokens)) - 1}"
            )
        cost = TextCost()
        nats, chosen = 0.0, Counter[int]()
        who: dict[str, set[str]] = {}
        fallbacks: set[str] = set()
        for rows in _windows(np.array(tokens), window, prefix):
            found = self.score_windows(rows, self._chunks(rows.shape[1], prefix))
            nats += float(found.nats[:, prefix - 1 :].sum(dtype=np.float64))
            chosen.update(found.asked.ravel().tolist())
            for expert, names in found.peers.items():
                who.setdefault(_called(expert), set()).update(names)
            fallbacks |= _fallbacks(found, self.bundle.partition)
            cost.add(found.cost)
        size, count = int(sizes[prefix:].sum()), len(tokens) - prefix
        if not size:
            raise DataError(f"the {count} tokens after the first {prefix} stand for no text")
        return TextAnswer(
            bits_per_byte=nats / size / float(np.log(2)),
            perplexity=float(np.exp(nats / count)),
            tokens=count,
            bytes=size,
            prefix=prefix,
            experts={e: n / chosen.total() for e, n in sorted(chosen.items())},
            answered_by={e: sorted(names) for e, names in sorted(who.items())},
            fallback=next((f for f in ("local", _SHARED, "next-best") if f in fallbacks), None),
            cost=cost,
            ms=1000 * (time.perf_counter() - started),
        )

    def score_windows(self, tokens: Ints, chunks: Chunks | None = None) -> WindowScores:
        """What the mixture loses on windows of one length.

        Args:
            tokens: N windows of T tokens, [N, T].
            chunks: Where decisions are made; None: as in training.

        Raises:
            DataError: They are longer than the backbone reads.
        """
        if tokens.shape[1] > self.experts.context:
            raise DataError(
                f"windows of {tokens.shape[1]} tokens; allowed: up to {self.experts.context}, "
                "the longest text that the backbone reads"
            )
        chunks = chunks or self._chunks(tokens.shape[1], self.bundle.config.text.prefix)
        scores = self._lean(chunks.scores(unigram_scores(tokens, self._frequencies)))
        ids, weights = text_routes(scores, self._top_k)
        ranking = np.argsort(-scores.mean(axis=1), axis=1, kind="stable")
        scoring = Scoring(self._asking, tokens, ranking, self._offsets)
        self._submit(scoring.run(ids))
        if self.bundle.manifest.gate == _POSTERIOR:
            each_token = Chunks(chunks.window, chunks.prefix, every=1)
            anew = posterior_routes(
                scoring.nats, scores, each_token, self._top_k,
                own_id=self.bundle.partition, bias=self.bundle.config.gate.home_bias,
            )  # fmt: skip
            nats = each_token.loss(scoring.nats, *anew)
        else:
            nats = chunks.loss(scoring.nats, ids, weights)
        peers = {expert: sorted(names) for expert, names in scoring.peers.items()}
        return WindowScores(nats.astype(np.float32), ids, scoring.by, peers, scoring.cost)

    def generate(
        self, text: str, count: int, *, temperature: float = 0.0, seed: int = 0
    ) -> Generation:
        """Go on with a text; the tokens come as they are written.

        Args:
            text: The beginning.
            count: The most tokens to write, 1 or more; the end of a document ends it, too.
            temperature: 0: always the likeliest token.
            seed: Seed of what is drawn.

        Raises:
            ConfigError: A number is out of range.
            DataError: The text is empty, or with what is wanted longer than the backbone reads.
        """
        check_not_negative(temperature=temperature, seed=seed)
        if count < 1:
            raise ConfigError(f"--generate {count}; allowed: 1 or more tokens")
        tokens, _ = self._tokens(text)
        context = self.experts.context
        if len(tokens) + count > context:
            allowed = [f"a text of up to {context - count} tokens"] * (count < context)
            allowed += [f"--generate up to {context - len(tokens)}"] * (len(tokens) < context)
            raise DataError(
                f"the text has {len(tokens)} tokens, and {count} are to follow: the backbone reads "
                f"{context} in all; allowed: {' or '.join(allowed) or 'less of both'}"
            )
        chunked = self.bundle.manifest.gate == _CHUNKED
        generation = Generation()
        steps = write(
            self._asking,
            list(tokens),
            count,
            Writing(temperature, seed),
            end=self._tokenizer.end,
            every=self.bundle.config.text.chunk if chunked else 0,
            rank=self._rank,
            cost=generation.cost,
        )
        generation._source = self._pieces(steps, generation)
        return generation

    def close(self) -> None:
        """Close all connections."""
        with contextlib.suppress(ConfigError):  # closed before
            self._submit(self._asking.peers.close())
        self._loop.close()

    def _pieces(self, steps: AsyncIterator[Written], generation: Generation) -> Iterator[Piece]:
        """One piece per token, as the text grows by whole characters."""
        tokens, said = list[int](), ""
        while True:
            started = time.perf_counter()
            found = self._submit(_next(steps))
            if found is None:
                return
            generation.ms.append(1000 * (time.perf_counter() - started))
            (token, log_probability), source = found
            tokens.append(token)
            whole = self._tokenizer.decode(tokens)
            new = "" if whole.endswith(_UNFINISHED) else whole[len(said) :]
            said += new
            name = self._asking.peers.name(source.peer)
            piece = Piece(token, new, log_probability, source.expert, name)
            generation.pieces.append(piece)
            yield piece

    def _tokens(self, text: str) -> tuple[list[int], npt.NDArray[np.uint16]]:
        if not text:
            raise DataError("the text is empty; allowed: one character or more")
        return tokenise(self._tokenizer, text, "the text")

    def _chunks(self, window: int, prefix: int) -> Chunks:
        settings = self.bundle.config.text
        if self.bundle.manifest.gate != _CHUNKED:
            return Chunks(window, prefix)
        return Chunks(window, prefix, settings.chunk, settings.recent)

    def _rank(self, tokens: Ints) -> list[int]:
        """Experts for what follows some tokens, best first."""
        last = self.bundle.config.text.recent
        if self.bundle.manifest.gate == _CHUNKED and last:
            tokens = tokens[-last:]
        scores = self._lean(unigram_scores(tokens[None], self._frequencies).sum(axis=2))
        return [int(e) for e in np.argsort(-scores[0], kind="stable")]

    def _lean(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        bias = self.bundle.config.gate.home_bias
        return at_home(scores, self.bundle.partition, bias) if bias else scores

    def _submit(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            running = self._loop.submit(work)
        except RuntimeError:
            raise ConfigError("this client is closed; make a new one") from None
        return running.result()


async def _next(steps: AsyncIterator[Written]) -> Written | None:
    try:
        return await anext(steps)
    except StopAsyncIteration:
        return None


def _check_choices(bundle: TextBundle, send: str, encoding: str) -> None:
    """Refuse what the operator does not allow, and what no message can be.

    Raises:
        ConfigError: Names the setting.
    """
    if send not in ("hidden", "tokens"):
        raise ConfigError(f"send = {send!r}; allowed: hidden, tokens")
    check_encoding(encoding)
    if send == "tokens" and not bundle.tokens_may_leave:
        raise ConfigError(
            "--send tokens is the text itself, and the operator of this federation does not allow "
            "it (query.send = 'hidden' in the run that made the bundles); allowed: --send hidden"
        )
    if send == "hidden" and bundle.config.adapter.blocks == "all":
        raise ConfigError(
            "--send hidden needs blocks without adapters (adapter.blocks = 'upper'), and all have "
            "one here; allowed: --send tokens"
        )


def _windows(tokens: Ints, window: int, prefix: int) -> Iterator[Ints]:
    """A text in windows [N, T], and what is left [1, less]; each begins with what is known.

    >>> [rows.tolist() for rows in _windows(np.arange(6), window=4, prefix=2)]
    [[[0, 1, 2, 3], [2, 3, 4, 5]]]
    >>> [rows.shape for rows in _windows(np.arange(7), window=4, prefix=2)]
    [(2, 4), (1, 3)]
    """
    starts = range(0, max(len(tokens) - prefix, 1), window - prefix)
    whole = [tokens[at : at + window] for at in starts if at + window <= len(tokens)]
    if whole:
        yield np.stack(whole)
    if len(whole) < len(starts):
        yield tokens[starts[-1] :][None]


def _called(expert: int) -> str:
    return _SHARED if expert == OF_ALL else str(expert)


def _fallbacks(found: WindowScores, own: int) -> set[str]:
    """Which kinds of stand-ins answered."""
    experts = np.broadcast_to(np.arange(found.by.shape[1]), found.by.shape)
    odd = np.unique(found.by[(found.by != experts) & (found.by != NOBODY)])
    return {_SHARED if by == OF_ALL else "local" if by == own else "next-best" for by in odd}
