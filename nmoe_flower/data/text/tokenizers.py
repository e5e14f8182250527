"""Text as tokens: raw bytes, byte pairs trained on given text, or a backbone's own tokenizer.

Bytes need no package. The others need ``tokenizers``, and what has no ``tokenizer.json`` (GGUF
files, names on the hub) ``transformers``: both come with the extra ``text``.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from nmoe_flower.data.text.windows import Sizes, Tokenizer
from nmoe_flower.errors import DataError, did_you_mean
from nmoe_flower.files import read_json, read_text, write_text
from nmoe_flower.installation import install_hint

__all__ = [
    "BYTES",
    "ByteTokenizer",
    "PieceTokenizer",
    "open_tokenizer",
    "tokenise",
    "train_tokenizer",
    "wrap_tokenizer",
]

BYTES = "bytes"
END = "<|end|>"
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_KEY = "text.tokenizer"
_FILE = "tokenizer.json"
_SPACE = "\u2581"  # how pieces of SentencePiece write a space
# What any two tokenizers of one vocabulary would say differently if they differed at all.
_PROBE = (
    "The quick brown fox jumps over the lazy dog; 3.14159e-10 != 0x7f\n\n\tdef f(self, *args):\r\n"
    "  return self._x[i + 1] // 2  # Größe, naïve, œuvre, ¿qué?\n"
    "Съешь ещё этих мягких французских булок. 色は匂へど散りぬるを。 العربية हिन्दी 🙂\n"
    "And it came to pass, when   the people removed from their tents...</p> && ||"
)


class ByteTokenizer:
    """Every byte of UTF-8 is a token; 256 ends a document.

    >>> ByteTokenizer().encode("hé")
    [104, 195, 169]
    """

    vocab_size = 257
    end = 256

    @property
    def hash(self) -> str:
        """Always the same."""
        return hashlib.sha256(b"bytes of UTF-8, then the end of a document").hexdigest()

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of bytes; ends of documents are left out."""
        return bytes(token for token in tokens if token < self.end).decode(errors="replace")

    def sizes(self, tokens: Sequence[int]) -> Sizes:
        """One byte each, and none for the end of a document."""
        return np.asarray(np.asarray(tokens) != self.end, dtype=np.uint16)


class PieceTokenizer:
    """A tokenizer of the library ``tokenizers``: byte pairs, or pieces of SentencePiece.

    Text that looks like a special token is text. Texts are never cut or filled up.

    Args:
        library: A ``tokenizers.Tokenizer``; it is changed so.
        end: Name of the token after every document; "" takes the first of the usual names.
        name: What it is called in errors.

    Raises:
        DataError: It has no such token.
    """

    def __init__(self, library: Any, end: str = "", name: str = "the tokenizer") -> None:
        self._library = library
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True
        known = [END, *_ENDS] if not end else [end]
        found = [token for token in known if library.token_to_id(token) is not None]
        if not found:
            raise DataError(
                f"{_KEY}: {name} has no token that ends a document; looked for {', '.join(known)}"
            )
        self.end = int(library.token_to_id(found[0]))
        self.vocab_size = 1 + max(library.get_vocab(with_added_tokens=True).values())

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the vocabulary, the end and what becomes of a text in many scripts."""
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        words = sorted((number, word) for word, number in vocabulary.items())
        said = json.dumps([words, self.end, self.encode(_PROBE)])
        return hashlib.sha256(said.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without any at its begin or end."""
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; ends of documents are left out."""
        kept = [int(token) for token in tokens if token != self.end]
        return str(self._library.decode(kept, skip_special_tokens=False))

    def sizes(self, tokens: Sequence[int]) -> Sizes:
        """Bytes of UTF-8 that each token stands for, [n]."""
        found: Sizes = self._sizes.take(np.asarray(tokens, dtype=np.int64))
        return found

    @cached_property
    def _description(self) -> dict[str, Any]:
        return dict(json.loads(self._library.to_str()))

    @cached_property
    def _spells_bytes(self) -> bool:
        """Whether each character of a token stands for one byte."""
        parts = _parts(self._description.get("decoder"))
        return any(part.get("type") == "ByteLevel" for part in parts)

    @cached_property
    def _sizes(self) -> Sizes:
        """Bytes of every token, [V]."""
        table = np.zeros(self.vocab_size, np.uint16)
        added = {int(t["id"]) for t in self._description.get("added_tokens", ())}
        for word, number in self._library.get_vocab(with_added_tokens=True).items():
            if self._spells_bytes and number not in added:
                table[number] = len(word)
            elif len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
                table[number] = 1
            else:
                table[number] = len(word.replace(_SPACE, " ").encode())
        table[self.end] = 0
        return table

    def save(self, path: Path) -> None:
        """Write it as a ``tokenizer.json``.

        Args:
            path: The file.

        Raises:
            NMoEError: The file cannot be written.
        """
        write_text(path, self._library.to_str(pretty=True))


def _parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A step of a tokenizer, or the steps it is a sequence of."""
    if not step:
        return []
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in step:
            return [part for one in step[key] for part in _parts(one)]
    return [step]


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> PieceTokenizer:
    """Learn byte pairs from texts; the same texts in the same order give the same tokens.

    Args:
        texts: What to learn from.
        vocab_size: Tokens in all, 257 or more: 256 bytes, the end of a document, and pairs.

    Raises:
        DataError: ``tokenizers`` is not installed, or the size is too small.
    """
    if vocab_size < 257:
        raise DataError(
            f"a vocabulary of {vocab_size} tokens is too small; allowed: 257 or more (256 bytes "
            "and the end of a document)"
        )
    library = _import("tokenizers", "byte pairs")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PieceTokenizer(tokenizer)


def open_tokenizer(source: str) -> Tokenizer:
    """The tokenizer that a setting names.

    Args:
        source: ``bytes``; a ``tokenizer.json``; a folder with one, or with a model that
            ``transformers`` reads; a ``.gguf`` file; or a name on the hub.

    Raises:
        DataError: It cannot be read, or lacks the package that reads it.
    """
    if source == BYTES:
        return ByteTokenizer()
    path = Path(source).expanduser()
    if path.is_dir() and (path / _FILE).is_file():
        return _from_file(path / _FILE, _named_end(path / "tokenizer_config.json"))
    local = path.is_absolute() or path.suffix == ".json" or source.startswith((".", "~"))
    if local and not path.exists():
        raise DataError(f"{_KEY} = {source}: there is no such file or folder")
    if path.suffix == ".json":
        return _from_file(path, _named_end(path.with_name("tokenizer_config.json")))
    return _from_transformers(source, path)


def _from_file(path: Path, end: str) -> PieceTokenizer:
    text = read_text(path, what="the tokenizer", raises=DataError)
    library = _import("tokenizers", f"{_KEY} = {path}")
    try:
        found = library.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no other class
        raise DataError(f"{_KEY} = {path} is no tokenizer: {error}") from None
    return PieceTokenizer(found, end, str(path))


def _named_end(path: Path) -> str:
    """The end of a document that the file beside a tokenizer names, or nothing."""
    if not path.is_file():
        return ""
    about = read_json(path, what="the tokenizer's settings", raises=DataError)
    token = about.get("eos_token") if isinstance(about, dict) else None
    named = token.get("content") if isinstance(token, dict) else token
    return named if isinstance(named, str) else ""


def _from_transformers(source: str, path: Path) -> PieceTokenizer:
    library = _import("transformers", f"{_KEY} = {source}")
    where = (str(path.parent), {"gguf_file": path.name}) if path.is_file() else (source, {})
    try:
        found = library.AutoTokenizer.from_pretrained(where[0], **where[1])
    except Exception as error:  # every format and the hub fail in their own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        meant = did_you_mean(source, ["bytes"])
        raise DataError(f"{_KEY} = {source} cannot be read: {reason}{meant}") from None
    return wrap_tokenizer(found, source)


def wrap_tokenizer(tokenizer: Any, name: str) -> PieceTokenizer:
    """A tokenizer of ``transformers`` as one of this package.

    Args:
        tokenizer: A fast one, which is one of ``tokenizers`` inside.
        name: What it is called in errors.

    Raises:
        DataError: It is no fast one, or has no token that ends a document.
    """
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise DataError(
            f"{_KEY} = {name} is a tokenizer in Python ({type(tokenizer).__name__}); one of "
            "`tokenizers` is needed (tokenizer.json)"
        )
    return PieceTokenizer(inner, str(tokenizer.eos_token or ""), name)


def tokenise(tokenizer: Tokenizer, text: str, name: str) -> tuple[list[int], Sizes]:
    """The tokens of a document and the bytes of each, whose sum is exactly that of the text.

    Args:
        tokenizer: What makes the tokens.
        text: The document.
        name: What it is called in errors.

    Returns:
        Tokens, and bytes of each, uint16 [n].

    Raises:
        DataError: The tokens do not stand for the text: the tokenizer drops or changes some of it.
    """
    tokens = tokenizer.encode(text)
    sizes = tokenizer.sizes(tokens)
    surplus = int(sizes.sum(dtype=np.int64)) - len(text.encode())
    if surplus == 1 and sizes[0] > 0:
        sizes[0] -= 1  # a space that some tokenizers put before every text
    elif surplus:
        raise DataError(
            f"the tokenizer does not fit {name}: its {len(tokens):,} tokens stand for "
            f"{len(text.encode()) + surplus:,} bytes, and the text has {len(text.encode()):,}; "
            "one that keeps all of a text is needed (byte pairs, or pieces with bytes to fall "
            "back on)"
        )
    return tokens, sizes


def _import(package: str, purpose: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise DataError(f"{purpose} needs {package}: {install_hint('text')}") from error
