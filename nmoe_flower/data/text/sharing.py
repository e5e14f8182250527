"""Which client holds which text: documents are dealt whole, then cut into windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from nmoe_flower.backbone_files import converted_folder, given_source
from nmoe_flower.data.cache import cache_root
from nmoe_flower.data.text.corpus import Corpus, OnTokens, Stream, open_corpus
from nmoe_flower.data.text.documents import ALL, TextRequest
from nmoe_flower.data.text.tokenizers import BYTES, open_tokenizer
from nmoe_flower.data.text.windows import (
    Codes,
    Sizes,
    TextData,
    TextSplit,
    Tokenizer,
    Tokens,
    packed_windows,
)
from nmoe_flower.errors import DataError
from nmoe_flower.plurals import how_many
from nmoe_flower.seeds import numpy_stream

if TYPE_CHECKING:
    from nmoe_flower.config import Config

__all__ = ["configured_text", "configured_tokenizer", "load_text", "own_text"]

Packing = Literal["stream", "document"]
Scheme = Literal["natural", "iid"]


@dataclass(frozen=True)
class _Cut:
    """How documents become windows, see `load_text`."""

    window: int
    stride: int
    packing: Packing
    end: int


def load_text(
    dataset: str,
    tokenizer: Tokenizer,
    *,
    window: int = 128,
    stride: int = 0,
    packing: Packing = "stream",
    unit: Literal["files", "lines", "paragraphs"] = "files",
    column: str = "",
    client_column: str = "",
    domains: Sequence[str] = (),
    train_split: str = "train",
    test_split: str = "test",
    test_share: float = 0.1,
    near_duplicates: float = 0.5,
    scheme: Scheme = "natural",
    mixed: float = 0.0,
    num_clients: int = 0,
    without: Sequence[int] = (),
    train_per_client: int = 0,
    test_per_client: int = 0,
    validation_per_client: int = 0,
    seed: int = 0,
    alone: bool = False,
    cache_dir: Path | str | None = None,
    progress: OnTokens | None = None,
) -> TextData:
    """Open text, share it out among clients and cut it into windows.

    A folder holds ``train/DOMAIN/...`` and ``test/DOMAIN/...``, or ``DOMAIN/...``, whose documents
    are then split; every domain is a client's. Anything else is read by `datasets`, and a column
    says whose a row is. No document is in two splits, and training documents that are in the test
    split, too, are left out and counted.

    Args:
        dataset: A local folder, or a name on the hub.
        tokenizer: What makes tokens.
        window: Tokens of a window, T.
        stride: Tokens between the begins of windows; 0: ``window``, so that none overlap.
        packing: ``stream``: documents of a domain follow each other through the windows;
            ``document``: a window holds one document, and is filled up with ends.
        unit: What of a file is a document: all of it, each line, or each paragraph.
        column: Column of the text in a table; "" finds it.
        client_column: Column of a table that says whose a row is.
        domains: The domains to take; () takes all.
        train_split: Name of the train split.
        test_split: Name of the test split.
        test_share: Share of a domain's text to test on, where there is no test split.
        near_duplicates: Share of its shingles in the test split that makes a training document a
            near duplicate; 0: only exact ones are left out.
        scheme: ``natural``: a client holds a domain; ``iid``: documents are dealt to all alike.
        mixed: For ``natural``: share of a client's text that comes from all others alike; of 2
            clients or more.
        num_clients: How many there are; for ``natural`` those with most text. 0: all.
        without: Shares of clients that have left, which are nobody's; all others stay as they are.
        train_per_client: Training windows of each client at most; 0: all.
        test_per_client: Test windows of each client at most; 0: all.
        validation_per_client: Windows of validation documents, which nobody trains on.
        seed: Seed of who holds what and in which order; test documents do not move.
        alone: All is one device's own, whatever folders it is in.
        cache_dir: Folder of the data cache; None: `cache_root` says where it is.
        progress: Called with (documents done, documents in all) while tokens are made.

    Raises:
        DataError: There is no text, or it cannot be read or split; the tokenizer does not fit it;
            or a client has less than a window of it.
    """
    request = TextRequest(
        dataset,
        unit,
        column,
        client_column,
        tuple(domains),
        train_split,
        test_split,
        test_share,
        near_duplicates,
        alone,
    )
    corpus = open_corpus(request, tokenizer, cache_dir=cache_dir, progress=progress)
    shares = num_clients + len(without) if num_clients else 0
    kept = _kept(corpus, shares if scheme == "natural" else 0, dataset)
    clients = len(kept) if scheme == "natural" else shares or len(kept)
    if mixed and scheme == "natural" and clients == 1:
        raise DataError(
            f"text.mixed is {mixed}, and there is 1 client; allowed: 0, or 2 clients and more"
        )
    owned = scheme == "natural" and not mixed  # who leaves takes a domain along
    known = tuple(code for at, code in enumerate(kept) if not (owned and at in without))
    cut = _Cut(window, stride, packing, tokenizer.end)
    deal = _Deal(corpus, kept, clients, scheme, mixed, cut, frozenset(without), known)
    domain_names = tuple(corpus.domain_names[code] for code in known)
    share_names = (
        tuple(corpus.domain_names[code] for code in kept)
        if scheme == "natural"
        else tuple(map(str, range(clients)))
    )
    client_names = tuple(name for at, name in enumerate(share_names) if at not in without)
    train, validation = deal.training(seed, validation_per_client, share_names)
    return TextData(
        name=dataset,
        train=deal.windows("train", train, train_per_client, seed, share_names),
        test=deal.windows("test", deal.owned("test", 0), test_per_client, 0, share_names),
        validation=deal.windows(
            validation.split, validation.held, validation_per_client, seed, share_names
        ),
        domain_names=domain_names,
        client_names=client_names,
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        end=tokenizer.end,
        fingerprint=corpus.fingerprint,
        left_out=corpus.left_out,
        unheld=tuple(n for code, n in enumerate(corpus.domain_names) if code not in kept),
    )


def configured_text(config: "Config", *, progress: OnTokens | None = None) -> TextData:
    """The text that a configuration names, shared out as it says; opened once a process.

    Args:
        config: The run's configuration.
        progress: Called with (documents done, documents in all) while tokens are made.

    Raises:
        DataError: As `load_text`, or the tokenizer cannot be opened.
    """
    return _opened(_Wanted.of(config, config.data.dataset), progress)


def own_text(config: "Config", folder: str) -> TextData:
    """A device's own text, cut into windows as a configuration says: one client, one domain.

    Args:
        config: The run's configuration; its ``data.dataset`` is not looked at.
        folder: What only this device has: ``train/...`` and ``test/...``, or any files, split.

    Raises:
        DataError: As `load_text`.
    """
    return _opened(_Wanted.of(config, folder, alone=True), None)


@dataclass(frozen=True)
class _Wanted:
    """What a configuration asks `load_text` for."""

    tokenizer: str
    arguments: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, config: "Config", dataset: str, *, alone: bool = False) -> Self:
        data, text = config.data, config.text
        arguments = {
            "dataset": dataset,
            "window": text.window,
            "stride": text.stride,
            "packing": text.packing,
            "unit": text.unit,
            "column": text.column,
            "client_column": data.partition_column,
            "domains": () if alone else text.domains,
            "train_split": data.train_split,
            "test_split": data.test_split,
            "test_share": text.test_share,
            "near_duplicates": text.near_duplicates,
            "scheme": "natural" if alone else data.scheme,
            "mixed": 0.0 if alone else text.mixed,
            "num_clients": 1 if alone else data.num_clients,
            "without": () if alone else data.without,
            "train_per_client": data.train_per_client,
            "test_per_client": data.test_per_client,
            "validation_per_client": data.validation_per_client,
            "seed": config.run.seed,
            "alone": alone,
            "cache_dir": data.cache_dir or None,
        }
        return cls(_tokenizer_of(config), tuple(arguments.items()))


def configured_tokenizer(config: "Config") -> Tokenizer:
    """The tokenizer that a configuration names, or that of its backbone.

    Args:
        config: The run's configuration.

    Raises:
        DataError: It cannot be opened.
    """
    return open_tokenizer(_tokenizer_of(config))


def _tokenizer_of(config: "Config") -> str:
    return config.text.tokenizer or _of_the_backbone(config)


def _of_the_backbone(config: "Config") -> str:
    """Where the tokenizer of the backbone lies; one without any reads bytes."""
    source = given_source(config.extractor.backbone, config.extractor.weights)
    if source and Path(source).is_file():
        folder = converted_folder(Path(source), cache_root(config.data.cache_dir))
        return str(folder) if (folder / "tokenizer.json").is_file() else source
    return source or BYTES


_OPENED: dict[_Wanted, TextData] = {}
_MOST_OPENED = 4


def _opened(wanted: _Wanted, progress: OnTokens | None) -> TextData:
    if wanted not in _OPENED:
        tokenizer = open_tokenizer(wanted.tokenizer)
        data = load_text(tokenizer=tokenizer, progress=progress, **dict(wanted.arguments))
        while len(_OPENED) >= _MOST_OPENED:
            _OPENED.pop(next(iter(_OPENED)))
        _OPENED[wanted] = data
    return _OPENED[wanted]


def _kept(corpus: Corpus, clients: int, dataset: str) -> list[int]:
    """The domains that clients hold: those with most training text, in the order of their names.

    Args:
        corpus: All there is.
        clients: How many are wanted; 0: all.
        dataset: What it is called in errors.
    """
    there = len(corpus.domain_names)
    if clients > there and corpus.domain_names == (ALL,):
        raise DataError(
            f"text {dataset!r} does not say whose its rows are: set data.partition-column"
        )
    if clients > there:
        raise DataError(
            f"data.num-clients is {clients}, but {dataset!r} has text of "
            f"{how_many(there, 'domain or client', 'domains or clients')}: "
            f"{', '.join(corpus.domain_names)}"
        )
    train = corpus.streams["train"]
    held = np.bincount(train.domains, weights=train.lengths, minlength=there)
    order = np.argsort(-held, kind="stable")
    return sorted(int(code) for code in order[: clients or there])


@dataclass(frozen=True)
class _Held:
    """Who holds which documents of a stream."""

    split: str
    held: list[Codes]


@dataclass(frozen=True)
class _Deal:
    """What is dealt, and how; ``kept`` are domains, ``known`` those that clients still have."""

    corpus: Corpus
    kept: list[int]
    clients: int
    scheme: Scheme
    mixed: float
    cut: _Cut
    without: frozenset[int]
    known: tuple[int, ...]

    def owned(self, split: str, seed: int) -> list[Codes]:
        """Each client's documents of a split in the order they are read in, one array each."""
        stream = self.corpus.streams[split]
        rng = numpy_stream(seed, "text", split)
        order = rng.permutation(len(stream.starts))
        order = order[np.isin(stream.domains[order], self.kept)]
        if self.scheme == "iid":
            return _alike(order, stream, self.clients)
        own = [order[stream.domains[order] == code] for code in self.kept]
        return _mix(own, stream.lengths, self.mixed) if self.mixed else own

    def training(
        self, seed: int, validation: int, names: Sequence[str]
    ) -> tuple[list[Codes], _Held]:
        """Training documents of each client, and what settings are chosen on.

        That is the validation split's, if there is one, else documents that clients give up.
        """
        train = self.owned("train", seed)
        nothing = [np.zeros(0, np.int64)] * self.clients
        if not validation:
            return train, _Held("train", nothing)
        if len(self.corpus.streams["validation"].starts):
            return train, _Held("validation", self.owned("validation", seed))
        given = [
            self._given_up(held, validation, name) for held, name in zip(train, names, strict=True)
        ]
        stream = self.corpus.streams["train"]
        # Nobody trains on another copy of what somebody gave up.
        gone = np.isin(stream.numbers, stream.numbers[np.concatenate(given)])
        return [held[~gone[held]] for held in train], _Held("train", given)

    def _given_up(self, held: Codes, windows: int, name: str) -> Codes:
        """The first documents of a client that fill so many windows; at most half of its text."""
        stream = self.corpus.streams["train"]
        lengths = stream.lengths[held]
        most = int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2, side="right"))
        for count in range(1, most + 1):
            if len(self._places(stream, held[:count])) >= windows:
                return held[:count]
        there = len(self._places(stream, held[:most]))
        raise DataError(
            f"data.validation-per-client is {windows}, but client {name!r} can give up documents "
            f"of {there} windows and keep half of its training text; allowed: 0 to {there}"
        )

    def _places(self, stream: Stream, held: Codes) -> list[tuple[int, int, int]]:
        """Windows of documents: domain, and first and last place in that domain's text."""
        found = []
        for domain in np.unique(stream.domains[held]):
            lengths = stream.lengths[held[stream.domains[held] == domain]]
            starts = np.cumsum(lengths) - lengths
            cut = self.cut
            first, after = packed_windows(
                starts,
                int(lengths.sum()),
                window=cut.window,
                stride=cut.stride,
                alone=cut.packing == "document",
            )
            found += [(int(domain), int(a), int(b)) for a, b in zip(first, after, strict=True)]
        return found

    def windows(
        self, split: str, held: Sequence[Codes], limit: int, seed: int, names: Sequence[str]
    ) -> TextSplit:
        """Windows of the documents that clients hold, some at random where there are too many.

        Raises:
            DataError: A client has less than a window.
        """
        stream = self.corpus.streams[split]
        parts: list[tuple[Tokens, Sizes, Codes, Codes, Codes]] = []
        for client, documents in enumerate(held):
            if client in self.without:
                continue
            places = self._places(stream, documents)
            if len(documents) and not places:
                raise DataError(
                    f"{names[client]!r} has {int(stream.lengths[documents].sum())} tokens of "
                    f"{split} text, less than a window: text.window is {self.cut.window}"
                )
            if not len(documents) and split in ("train", "test") and any(map(len, held)):
                raise DataError(
                    f"client {names[client]!r} has no {split} text: fewer clients "
                    "(data.num-clients), or more documents, are needed"
                )
            if limit and len(places) > limit:
                rng = numpy_stream(seed, "text-windows", split, client)
                chosen = np.sort(rng.permutation(len(places))[:limit])
                places = [places[row] for row in chosen]
            parts.append(self._filled(stream, documents, places, len(parts)))
        return TextSplit(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _filled(
        self, stream: Stream, held: Codes, places: list[tuple[int, int, int]], client: int
    ) -> tuple[Tokens, Sizes, Codes, Codes, Codes]:
        """The arrays of a client's `TextSplit`."""
        shape = len(places), self.cut.window
        tokens = np.full(shape, self.cut.end, stream.tokens.dtype)
        sizes = np.zeros(shape, np.uint16)
        domains = np.array([domain for domain, _, _ in places], np.int64)
        documents = np.zeros(len(places), np.int64)
        for domain in np.unique(domains):
            own = held[stream.domains[held] == domain]
            text, size = (_joined(array, stream, own) for array in (stream.tokens, stream.sizes))
            starts = np.cumsum(stream.lengths[own]) - stream.lengths[own]
            for row in np.flatnonzero(domains == domain):
                _, first, after = places[row]
                tokens[row, : after - first] = text[first:after]
                sizes[row, : after - first] = size[first:after]
                documents[row] = own[np.searchsorted(starts, first, side="right") - 1]
        codes = np.searchsorted(self.known, domains)
        return tokens, sizes, np.full(len(places), client, np.int64), codes, documents


def _joined(array: Any, stream: Stream, documents: Codes) -> Any:
    """Some documents of a stream, one after the other."""
    after = stream.starts + stream.lengths
    return np.concatenate([array[stream.starts[one] : after[one]] for one in documents])


def _alike(order: Codes, stream: Stream, clients: int) -> list[Codes]:
    """Deal documents one by one to the client that has least."""
    held: list[list[int]] = [[] for _ in range(clients)]
    tokens = np.zeros(clients)
    for document in order:
        poorest = int(tokens.argmin())
        held[poorest].append(int(document))
        tokens[poorest] += stream.lengths[document]
    return [np.array(documents, np.int64) for documents in held]


def _mix(own: Sequence[Codes], lengths: Codes, share: float) -> list[Codes]:
    """Each client gives this share of its text away, to all others in turn."""
    kept: list[list[int]] = []
    given: list[list[int]] = [[] for _ in own]
    for client, documents in enumerate(own):
        reached = np.cumsum(lengths[documents])
        count = (
            int(np.searchsorted(reached, share * reached[-1], side="right")) if len(reached) else 0
        )
        for number, document in enumerate(documents[:count]):
            given[(client + 1 + number % (len(own) - 1)) % len(own)].append(int(document))
        kept.append([int(document) for document in documents[count:]])
    # what came from others stands among the own: limits take some of both
    return [np.array([*mine, *others], np.int64) for mine, others in zip(kept, given, strict=True)]
