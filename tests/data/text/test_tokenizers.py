"""Tokens stand for the bytes of a text, all of them, whatever the tokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.data.text import (
    ByteTokenizer,
    PieceTokenizer,
    Tokenizer,
    open_tokenizer,
    tokenise,
    train_tokenizer,
    wrap_tokenizer,
)
from nmoe_flower.errors import DataError

TEXTS = ["der die das und der Hund\n" * 5, "def f(x):\n    return x\n" * 5, "ああ、そう。" * 9]


@pytest.fixture(scope="module")
def pairs() -> PieceTokenizer:
    return train_tokenizer(TEXTS, 280)


def pieces(**changes: Any) -> Any:
    """A tokenizer like those of SentencePiece: a space first, bytes where a piece lacks."""
    library = pytest.importorskip("tokenizers")
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "ö"]
    model = {"type": "BPE", "vocab": {word: n for n, word in enumerate(words)}, "merges": ["▁ a"],
             "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}  # fmt: skip
    prepend = {"type": "Prepend", "prepend": "▁"}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    whole = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, spaces]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    return library.Tokenizer.from_str(json.dumps(whole | changes))


def test_a_trained_one_is_a_tokenizer_and_so_are_bytes(pairs: PieceTokenizer) -> None:
    assert isinstance(pairs, Tokenizer)
    assert isinstance(ByteTokenizer(), Tokenizer)
    assert pairs.vocab_size == 280
    assert pairs.end == 0
    assert len(pairs.encode("der Hund")) < len("der Hund")


@given(st.text())
def test_tokens_stand_for_every_byte(pairs: PieceTokenizer, text: str) -> None:
    for tokenizer in (pairs, ByteTokenizer()):
        tokens, sizes = tokenise(tokenizer, text, "a text")
        assert int(sizes.sum()) == len(text.encode())
        assert tokenizer.decode(tokens) == text
        assert all(0 <= token < tokenizer.vocab_size for token in tokens)
        assert tokenizer.end not in tokens


@pytest.mark.parametrize("text", ["", "a", " a", "  a  ö", "日本 a", "\n\n"])
def test_a_space_put_before_a_text_is_none_of_its_bytes(text: str) -> None:
    tokens, sizes = tokenise(PieceTokenizer(pieces()), text, "a text")
    assert int(sizes.sum()) == len(text.encode())
    assert len(tokens) == len(sizes)


def test_text_that_looks_like_the_end_is_text(pairs: PieceTokenizer) -> None:
    tokens, sizes = tokenise(pairs, "<|end|>", "a text")
    assert pairs.end not in tokens
    assert sizes.sum() == 7
    assert pairs.sizes([pairs.end]).tolist() == [0]


def test_one_that_changes_the_text_is_refused() -> None:
    """Lower case has as many bytes; what drops spaces does not."""
    drops = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
    with pytest.raises(DataError, match=r"does not fit notes.txt: its 2 tokens stand for 2 bytes"):
        tokenise(PieceTokenizer(pieces(normalizer=drops)), "a a", "notes.txt")


def test_the_same_texts_give_the_same_tokenizer(pairs: PieceTokenizer, tmp_path: Path) -> None:
    assert train_tokenizer(TEXTS, 280).hash == pairs.hash
    assert train_tokenizer(TEXTS, 281).hash != pairs.hash
    assert train_tokenizer(TEXTS[:2], 280).hash != pairs.hash
    pairs.save(tmp_path / "tokenizer.json")
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        assert open_tokenizer(str(source)).hash == pairs.hash
    assert open_tokenizer("bytes").hash == ByteTokenizer().hash


def test_the_end_of_a_document_is_that_of_the_settings_beside(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(pieces().to_str())
    assert open_tokenizer(str(tmp_path)).end == 1  # </s>, a usual name
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "ö"}}')
    assert open_tokenizer(str(tmp_path)).end == 261
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<stop>"}')
    with pytest.raises(DataError, match=r"no token that ends a document; looked for <stop>"):
        open_tokenizer(str(tmp_path))


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "tokenizer.json"
    wrong.write_text("{}")
    with pytest.raises(DataError, match=r"text.tokenizer = .*tokenizer.json is no tokenizer"):
        open_tokenizer(str(wrong))
    for absent in (str(tmp_path / "absent"), "./no/such", "no/such.json"):
        with pytest.raises(DataError, match=rf"text.tokenizer = {absent}: there is no such file"):
            open_tokenizer(absent)
    with pytest.raises(DataError, match=r"is a tokenizer in Python \(object\)"):
        wrap_tokenizer(object(), "mine")
    with pytest.raises(DataError, match=r"vocabulary of 256 tokens is too small"):
        train_tokenizer([], 256)


def test_sizes_take_arrays_too(pairs: PieceTokenizer) -> None:
    tokens = np.array(pairs.encode("der Hund"), np.uint16)
    assert pairs.sizes(tokens).sum() == 8  # type: ignore[arg-type]


def test_a_misspelt_name_is_told_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")

    def absent(name: str, **options: Any) -> None:
        raise OSError("there is no such model")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", absent)
    with pytest.raises(DataError, match=r"text\.tokenizer = byte .*; did you mean bytes\?"):
        open_tokenizer("byte")
