"""Documents as tokens in the data cache: a stream for each split, made once for a tokenizer."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.cache import cache_root, put_entry
from nmoe_flower.data.text.documents import (
    SPLITS,
    Document,
    TextRequest,
    read_documents,
    split_by_document,
)
from nmoe_flower.data.text.duplicates import duplicates, normalised, text_number
from nmoe_flower.data.text.tokenizers import tokenise
from nmoe_flower.data.text.windows import Codes, Sizes, Tokenizer, Tokens, token_type
from nmoe_flower.errors import DataError
from nmoe_flower.files import read_json

__all__ = ["Corpus", "Stream", "open_corpus"]

OnTokens = Callable[[int, int], None]
"""Called with (documents done, documents in all)."""
_LARGEST_SIZE = np.iinfo(np.uint16).max


@dataclass(frozen=True, eq=False)
class Stream:
    """The documents of one split, one after the other, each with its end.

    Attributes:
        tokens: All tokens, a read-only memory map, [n].
        sizes: Bytes each token stands for, uint16 [n].
        starts: Place of each document's first token, int64 [D].
        domains: Domain of each document, places in ``Corpus.domain_names``, int64 [D].
        numbers: One number for each document's normalised text, uint64 [D].
    """

    tokens: Tokens
    sizes: Sizes
    starts: Codes
    domains: Codes
    numbers: npt.NDArray[np.uint64]

    @property
    def lengths(self) -> Codes:
        """Tokens of each document with its end, int64 [D]."""
        return np.diff(np.append(self.starts, len(self.tokens)))

    def _fits(self, domains: int) -> bool:
        count = len(self.starts)
        return (
            self.sizes.shape == self.tokens.shape
            and self.domains.shape == self.numbers.shape == (count,)
            and (not count or bool(self.lengths.min() > 0 and self.domains.max() < domains))
        )


@dataclass(frozen=True, eq=False)
class Corpus:
    """A data set's documents as tokens.

    Attributes:
        streams: The documents of each split, by ``train``, ``test`` and ``validation``.
        domain_names: Names of the domains, sorted.
        left_out: How many documents were left out, by reason.
        fingerprint: SHA-256 of all of it and of the tokenizer.
    """

    streams: Mapping[str, Stream]
    domain_names: tuple[str, ...]
    left_out: Mapping[str, int]
    fingerprint: str

    @classmethod
    def open(cls, entry: Path) -> Self | None:
        """What a cache entry holds; None if it is absent, half written or does not fit together.

        Args:
            entry: The entry's folder.
        """
        try:
            meta = read_json(entry / "meta.json")
            names = tuple(meta["domain_names"])
            streams = {
                split: Stream(
                    *(
                        np.load(entry / f"{split}-{part}.npy", mmap_mode="r", allow_pickle=False)
                        for part in ("tokens", "sizes", "starts", "domains", "numbers")
                    )
                )
                for split in SPLITS
            }
            if not all(stream._fits(len(names)) for stream in streams.values()):
                return None
            return cls(streams, names, meta["left_out"], meta["fingerprint"])
        except (OSError, EOFError, KeyError, TypeError, ValueError):
            return None


def open_corpus(
    request: TextRequest,
    tokenizer: Tokenizer,
    *,
    cache_dir: Path | str | None = None,
    progress: OnTokens | None = None,
) -> Corpus:
    """Open a data set's documents as tokens; they are read on first use, and when a file changes.

    Args:
        request: Which documents.
        tokenizer: What makes tokens of them.
        cache_dir: Folder of the data cache; None: `cache_root` says where it is.
        progress: Called with (documents done, documents in all).

    Raises:
        DataError: There is no text, or it cannot be read or split; the tokenizer changes texts; or
            the cache cannot be written.
    """
    said = json.dumps([*request.identity(), tokenizer.hash, tokenizer.end])
    digest = hashlib.sha256(said.encode()).hexdigest()[:24]
    stem = Path(request.dataset).expanduser().resolve().name
    readable = "".join(c if c.isalnum() else "-" for c in stem)[:40]
    entry = cache_root(cache_dir) / "text" / f"{readable}-{digest}"

    def write(building: Path) -> None:
        _write(request, tokenizer, building, progress or (lambda done, total: None))

    return Corpus.open(entry) or put_entry(entry, write, Corpus.open)


def _write(request: TextRequest, tokenizer: Tokenizer, building: Path, progress: OnTokens) -> None:
    documents, empty = read_documents(request, building / "arrow")
    documents = split_by_document(documents, request)
    documents, left_out = _without_duplicates(documents, request)
    names = sorted({document.domain for document in documents})
    digest = hashlib.sha256(json.dumps([tokenizer.hash, names]).encode())
    done = 0
    for split in SPLITS:
        arrays = _Growing(tokenizer)
        for document in documents:
            if document.split == split:
                arrays.add(document, names.index(document.domain))
                done += 1
                progress(done, len(documents))
        for part, array in arrays.parts().items():
            np.save(building / f"{split}-{part}.npy", array)
            digest.update(array.data)
    meta = {
        "domain_names": names,
        "left_out": {"empty": empty, **left_out},
        "fingerprint": digest.hexdigest(),
    }
    (building / "meta.json").write_text(json.dumps(meta, indent=1))


class _Growing:
    """The stream of a split while it is made."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kind = token_type(tokenizer.vocab_size)
        self._tokens: list[npt.NDArray[Any]] = []
        self._sizes: list[Sizes] = []
        self._starts: list[int] = []
        self._domains: list[int] = []
        self._numbers: list[int] = []
        self._length = 0

    def add(self, document: Document, domain: int) -> None:
        """Put a document and its end at the end."""
        place = f"{document.domain}: {document.name}"
        tokens, sizes = tokenise(self._tokenizer, document.text, place)
        self._tokens.append(np.fromiter((*tokens, self._tokenizer.end), self._kind))
        self._sizes.append(np.append(sizes, np.uint16(0)))
        self._starts.append(self._length)
        self._domains.append(domain)
        self._numbers.append(text_number(normalised(document.text)))
        self._length += len(tokens) + 1

    def parts(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a `Stream`."""
        return {
            "tokens": np.concatenate([np.zeros(0, self._kind), *self._tokens]),
            "sizes": np.concatenate([np.zeros(0, np.uint16), *self._sizes]),
            "starts": np.array(self._starts, np.int64),
            "domains": np.array(self._domains, np.int64),
            "numbers": np.array(self._numbers, np.uint64),
        }


def _without_duplicates(
    documents: list[Document], request: TextRequest
) -> tuple[list[Document], dict[str, int]]:
    """Documents without those of training and validation that are in the test split, too.

    Nor does a training document stay that is in the validation split.
    """
    plain = {id(document): normalised(document.text) for document in documents}
    counts: Counter[str] = Counter({"duplicate": 0, "near-duplicate": 0})
    gone: set[int] = set()
    for split, others in (("validation", ("test",)), ("train", ("test", "validation"))):
        own = [document for document in documents if document.split == split]
        held_out = [
            plain[id(document)]
            for document in documents
            if document.split in others and id(document) not in gone
        ]
        texts = [plain[id(document)] for document in own]
        for document, reason in zip(own, duplicates(texts, held_out, request.near), strict=True):
            if reason:
                counts[reason] += 1
                gone.add(id(document))
    kept = [document for document in documents if id(document) not in gone]
    left = {document.domain for document in kept if document.split == "train"}
    if lost := sorted({document.domain for document in documents} - left):
        raise DataError(
            f"domain {lost[0]!r} of {request.dataset!r} has no training text beside what is in the "
            "test split, too (text.near-duplicates says what counts as the same)"
        )
    return kept, dict(counts)
