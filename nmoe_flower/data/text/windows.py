"""Windows of tokens: what language models are trained and scored on, with the bytes they stand for.

Bits per byte compare models whatever their tokens are, so every token knows how many bytes of text
it stands for. The token that ends a document stands for none, and is never scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = ["TextData", "TextSplit", "Tokenizer", "packed_windows", "token_type"]

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.int32]
Sizes = npt.NDArray[np.uint16]
Codes = npt.NDArray[np.int64]


@runtime_checkable
class Tokenizer(Protocol):
    """Text as numbers, and back."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, V; all are below it."""

    @property
    def end(self) -> int:
        """The token that stands after every document."""

    @property
    def hash(self) -> str:
        """SHA-256, in hexadecimal, of all that decides which tokens a text becomes."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without one at its begin or end."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; what is no whole character becomes U+FFFD."""

    def sizes(self, tokens: Sequence[int]) -> Sizes:
        """How many bytes of UTF-8 each token stands for, [n]; 0 for the end of a document."""


def token_type(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """The smallest type that tokens are kept in.

    >>> token_type(2048).__name__, token_type(100_000).__name__
    ('uint16', 'int32')
    """
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


@dataclass(frozen=True, eq=False)
class TextSplit:
    """Windows of one split.

    Attributes:
        tokens: Tokens of N windows of T, uint16 or int32 [N, T].
        sizes: Bytes that each token stands for, uint16 [N, T]; 0 for the end of a document, and for
            what fills up a window.
        clients: Who each window belongs to, places in ``TextData.client_names``, int64 [N].
        domains: Domain each window is of, places in ``TextData.domain_names``, int64 [N].
        documents: Number of the document that each window begins in, int64 [N].
    """

    tokens: Tokens
    sizes: Sizes
    clients: Codes
    domains: Codes
    documents: Codes

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def window(self) -> int:
        """Tokens of a window, T."""
        return int(self.tokens.shape[1])

    def scored(self, prefix: int = 1) -> npt.NDArray[np.bool_]:
        """Which predictions count, bool [N, T - 1]; place t predicts token t + 1.

        Args:
            prefix: Tokens at the begin of a window that are given and not scored, 1 or more.
        """
        mask = self.sizes[:, 1:] > 0
        mask[:, : prefix - 1] = False
        return mask

    def scored_bytes(self, prefix: int = 1) -> Codes:
        """Bytes of the scored tokens of each window, int64 [N].

        Args:
            prefix: Tokens at the begin of a window that are given and not scored, 1 or more.
        """
        return np.asarray(self.sizes[:, max(prefix, 1) :].sum(axis=1, dtype=np.int64))

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice) -> Self:
        """Some of the windows.

        Args:
            rows: Places of the windows, int64 [n]; or for every window whether it is taken.
        """
        return type(self)(
            self.tokens[rows],
            self.sizes[rows],
            self.clients[rows],
            self.domains[rows],
            self.documents[rows],
        )

    def of_client(self, client: int) -> Self:
        """The windows of one client.

        Args:
            client: Place of its name in ``TextData.client_names``.
        """
        return self.take(self.clients == client)


@dataclass(frozen=True, eq=False)
class TextData:
    """Text of several clients, split by document and cut into windows.

    Attributes:
        name: The data set, as it was asked for.
        train: Windows to train on.
        test: Windows to test on; no document is in two splits.
        validation: Windows to choose settings on; may be empty.
        domain_names: Names of the kinds of text, in order.
        client_names: Names of the clients, in order; those of the domains if each client has one.
        tokenizer_hash: ``Tokenizer.hash`` of what made the tokens.
        vocab_size: Number of tokens that there are, V.
        end: Token after every document, and what fills up a window.
        fingerprint: SHA-256 of the tokens and of whose they are.
        left_out: How many documents were left out, by reason: ``empty``, and ``duplicate`` and
            ``near-duplicate`` for training documents that are in the test split, too.
        unheld: Names of the domains that are no client's, because there are fewer clients.
    """

    name: str
    train: TextSplit
    test: TextSplit
    validation: TextSplit
    domain_names: tuple[str, ...]
    client_names: tuple[str, ...]
    tokenizer_hash: str
    vocab_size: int
    end: int
    fingerprint: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    unheld: tuple[str, ...] = ()

    @property
    def num_clients(self) -> int:
        """Number of clients, N."""
        return len(self.client_names)


def packed_windows(
    starts: Codes,
    length: int,
    *,
    window: int,
    stride: int = 0,
    alone: bool = False,
) -> tuple[Codes, Codes]:
    """Where windows begin and end in documents that stand one after the other.

    Args:
        starts: Place of each document's first token, rising, int64 [D].
        length: Tokens in all.
        window: Tokens of a window, T.
        stride: Tokens from the begin of a window to the next one; 0: T, so that none overlap.
        alone: A window holds one document only, and may be filled up; else it runs on into the
            next one, and what is left at the end and fills no window is dropped.

    Returns:
        Place of the first token of each window, and the place after its last one, int64 [N] each.

    >>> [places.tolist() for places in packed_windows(np.array([0, 5]), 8, window=3)]
    [[0, 3], [3, 6]]
    >>> [places.tolist() for places in packed_windows(np.array([0, 5]), 8, window=3, alone=True)]
    [[0, 3, 5], [3, 5, 8]]
    """
    step = stride or window
    if not alone:
        first = np.arange(0, length - window + 1, step, dtype=np.int64)
        return first, first + window
    begins, ends = [], []
    for start, stop in zip(starts, np.append(starts, length)[1:], strict=True):
        # A window is worth having if it scores a token that the one before it did not.
        last = max(stop - (window - step), start + 1)
        own = np.arange(start, last, step, dtype=np.int64)
        begins.append(own)
        ends.append(np.minimum(own + window, stop))
    if not begins:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(begins), np.concatenate(ends)
