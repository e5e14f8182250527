"""Text of several clients as windows of tokens, and what makes the tokens."""

from nmoe_flower.data.text.documents import LARGEST_DOCUMENT, units_of
from nmoe_flower.data.text.duplicates import duplicates, normalised, shingles
from nmoe_flower.data.text.labelled import configured_documents, document_row, load_documents
from nmoe_flower.data.text.sharing import (
    configured_text,
    configured_tokenizer,
    load_text,
    own_text,
)
from nmoe_flower.data.text.tokenizers import (
    ByteTokenizer,
    PieceTokenizer,
    open_tokenizer,
    tokenise,
    train_tokenizer,
    wrap_tokenizer,
)
from nmoe_flower.data.text.windows import TextData, TextSplit, Tokenizer, packed_windows

__all__ = [
    "LARGEST_DOCUMENT",
    "ByteTokenizer",
    "PieceTokenizer",
    "TextData",
    "TextSplit",
    "Tokenizer",
    "configured_documents",
    "configured_text",
    "configured_tokenizer",
    "document_row",
    "duplicates",
    "load_documents",
    "load_text",
    "normalised",
    "open_tokenizer",
    "own_text",
    "packed_windows",
    "shingles",
    "tokenise",
    "train_tokenizer",
    "units_of",
    "wrap_tokenizer",
]
