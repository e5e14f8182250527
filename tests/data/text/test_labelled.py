"""Labelled documents as rows of tokens: from folders and from tables, and what is refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.config import Config
from nmoe_flower.data import configured_images, configured_partition, own_images
from nmoe_flower.data.images import ImageData, Split
from nmoe_flower.data.text import ByteTokenizer, load_documents
from nmoe_flower.errors import ConfigError, DataError

Open = Callable[..., ImageData]
FILES = {"en/bad/1.txt": "no", "en/good/1.txt": "yes", "de/bad/1.txt": "nö", "de/good/1.txt": "ja"}
TEXT = {
    "data.kind": "text",
    "text.tokenizer": "bytes",
    "text.window": 16,
    "text.prefix": 1,
    "extractor.method": "pretrained",
    "extractor.backbone": "small-lm",
}


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def open_it(folder: Path, **arguments: Any) -> ImageData:
        told = {"window": 8, "cache_dir": tmp_path / "cache", **arguments}
        return load_documents(str(folder), ByteTokenizer(), **told)

    return open_it


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def both(files: Mapping[str, str]) -> dict[str, str]:
    return {f"{split}/{name}": text for split in ("train", "test") for name, text in files.items()}


def texts(split: Split) -> list[str]:
    rows = split.images.reshape(len(split), -1).astype(np.int64)
    return [bytes(row[row >= 0].tolist()).decode() for row in rows]


def test_a_folder_says_domain_class_and_split(tmp_path: Path, opened: Open) -> None:
    data = opened(write(tmp_path / "posts", both(FILES)), by_client=True)
    assert (data.class_names, data.client_names) == (("bad", "good"), ("de", "en"))
    assert texts(data.train) == ["nö", "ja", "no", "yes"] == texts(data.test)
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert data.train.clients is not None
    assert data.train.clients.tolist() == [0, 0, 1, 1]
    assert data.train.images.shape == (4, 1, 1, 8)
    assert data.train.images.dtype == np.float32
    assert data.image_shape == (8, 1, 1)
    assert data.tokenised is not None
    assert data.tokenised.tokenizer == ByteTokenizer().hash


def test_without_domains_and_without_splits_a_fifth_of_every_class_is_for_testing(
    tmp_path: Path, opened: Open
) -> None:
    files = {f"{cls}/{n}.md": f"{cls}{n}" for cls in ("a", "b") for n in range(5)}
    data = opened(write(tmp_path / "posts", files))
    assert sorted(data.test.labels.tolist()) == [0, 1]
    assert len(data.train) == 8
    assert sorted(texts(data.train) + texts(data.test)) == sorted(files.values())


def test_lines_and_paragraphs_can_be_documents(tmp_path: Path, opened: Open) -> None:
    folder = write(tmp_path / "posts", both({"a/1.txt": "one\ntwo\n\n", "b/1.txt": "three\n"}))
    assert texts(opened(folder, unit="lines").train) == ["one\n", "two\n", "three\n"]
    assert len(opened(folder, unit="paragraphs").train) == 2


def test_a_table_has_a_column_of_text_and_one_of_labels(tmp_path: Path, opened: Open) -> None:
    pytest.importorskip("datasets")
    rows = [("fine", "good", "ann"), ("poor", "bad", "bob"), ("nice", "good", "bob")]
    named = [dict(zip(("body", "mood", "who"), row, strict=True)) for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in named)
    folder = write(tmp_path / "posts", {"train.jsonl": lines, "test.jsonl": lines})
    data = opened(folder, label_column="mood", by_client=True, client_column="who")
    assert texts(data.train) == ["fine", "poor", "nice"]
    assert (data.class_names, data.client_names) == (("bad", "good"), ("ann", "bob"))
    for arguments, said in (
        ({}, "no label column found; set data.label-column .* to one of body, mood, who"),
        ({"label_column": "x"}, "no label column 'x'; the columns are body, mood, who"),
        (
            {"label_column": "mood", "column": "said"},
            r"no column 'said' in the train split; the columns are body, mood, who \(text.column\)",
        ),
        ({"label_column": "mood", "by_client": True}, "set data.partition-column"),
        (
            {"label_column": "mood", "by_client": True, "client_column": "x"},
            r"no column 'x' \(data.partition-column\)",
        ),
    ):
        with pytest.raises(DataError, match=said):
            opened(folder, **arguments)


def test_rows_without_label_or_with_other_than_text_are_named(tmp_path: Path, opened: Open) -> None:
    pytest.importorskip("datasets")
    good = [{"text": "fine", "label": "a"}, {"text": "poor", "label": "b"}]
    for number, (odd, said) in enumerate(
        (
            ({"text": "x", "label": None}, "row 2 of the train split has no label in column"),
            ({"text": "x", "label": ""}, "row 2 of the train split has no label in column"),
        )
    ):
        lines = "".join(json.dumps(row) + "\n" for row in [*good, odd])
        folder = write(tmp_path / str(number), {"train.jsonl": lines, "test.jsonl": lines})
        with pytest.raises(DataError, match=said):
            opened(folder)
    numbers = "".join(json.dumps({"text": n, "label": "ab"[n % 2]}) + "\n" for n in range(4))
    folder = write(tmp_path / "numbers", {"train.jsonl": numbers, "test.jsonl": numbers})
    with pytest.raises(DataError, match=r"row 0 .* has 0 in column 'text' \(text.column\)"):
        opened(folder)


def test_empty_documents_are_left_out_and_counted(tmp_path: Path, opened: Open) -> None:
    more = FILES | {"en/bad/2.txt": "", "de/good/2.txt": " \n\t"}
    data = opened(write(tmp_path / "posts", both(more)), by_client=True)
    assert texts(data.train) == ["nö", "ja", "no", "yes"]
    assert data.tokenised is not None
    assert data.tokenised.empty == 4
    write(tmp_path / "none", both(FILES | {"en/odd/1.txt": "\n"}))
    with pytest.raises(DataError, match=r"class 'odd' has no text: .* the first is .*odd/1.txt"):
        opened(tmp_path / "none", by_client=True)


def test_a_document_of_one_character_is_one(tmp_path: Path, opened: Open) -> None:
    data = opened(write(tmp_path / "posts", both({"a/1.txt": "x", "b/1.txt": "y"})))
    assert texts(data.train) == ["x", "y"]


def test_longer_documents_lose_their_end_or_are_refused(tmp_path: Path, opened: Open) -> None:
    folder = write(tmp_path / "posts", both({"a/1.txt": "12345678", "b/1.txt": "123456789"}))
    data = opened(folder)
    assert texts(data.train) == ["12345678", "12345678"]
    assert data.tokenised is not None
    assert data.tokenised.shortened == 2
    said = r"b/1.txt has 9 tokens, and text.window = 8: .* or let text.too-long = truncate"
    with pytest.raises(DataError, match=said):
        opened(folder, too_long="refuse")


@pytest.mark.parametrize(
    "files",
    [{"1.txt": "x"}, {"a/1.txt": "x", "b/c/1.txt": "y"}, {"p/q/r/s/1.txt": "x"}],
    ids=["no class", "two depths", "too deep"],
)
def test_folders_that_do_not_say_the_class_are_refused(
    tmp_path: Path, opened: Open, files: dict[str, str]
) -> None:
    folder = write(tmp_path / "posts", files)
    with pytest.raises(DataError, match="do not say the class of every document; allowed: DOMAIN/"):
        opened(folder)


def test_one_class_is_too_few_and_an_empty_folder_nothing(tmp_path: Path, opened: Open) -> None:
    with pytest.raises(DataError, match="fewer than 2 classes"):
        opened(write(tmp_path / "one", both({"a/1.txt": "x"})))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="is empty"):
        opened(tmp_path / "none")


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=0, max_size=12), max_size=4))
@settings(max_examples=6, deadline=None)
def test_a_row_is_the_first_tokens_of_its_document(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    lines = [json.dumps(text)[1:-1] for text in drawn]  # no line ends
    write(folder / "posts", both({"a/1.txt": "\n".join(["first", *lines]), "b/1.txt": "x"}))
    data = load_documents(
        str(folder / "posts"), ByteTokenizer(), window=8, unit="lines", cache_dir=folder
    )
    wanted = [f"{text}\n".encode()[:8] for text in ["first", *lines] if text.strip()]
    found = [text.encode() for text in texts(data.train)[:-1]]
    assert [row.rstrip(b"\n") for row in found] == [row.rstrip(b"\n") for row in wanted]


# --- through a configuration ---


def configured(folder: Path, cache: Path, **changes: Any) -> Config:
    named = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    values = {"data.dataset": str(folder), "data.num-clients": 2, "data.cache-dir": str(cache)}
    return Config.parse(TEXT | values | named)


@pytest.mark.parametrize(
    "scheme", ["natural", "iid", "dirichlet", "flwr_datasets.partitioner:IidPartitioner"]
)
def test_every_scheme_shares_documents_out(tmp_path: Path, scheme: str) -> None:
    files = {f"{who}/{cls}/{n}.txt": f"{who}{cls}{n}" for who in "pq" for cls in "ab"
             for n in range(10)}  # fmt: skip
    folder = write(tmp_path / "posts", both(files))
    if scheme != "natural":
        folder = write(
            tmp_path / "plain",
            both({f"{cls}/{n}.txt": f"{cls}{n}" for cls in "ab" for n in range(20)}),
        )
    config = configured(folder, tmp_path / "cache", data__scheme=scheme)
    data = configured_images(config)
    clients = configured_partition(config, data, num_clients=2)
    held = np.concatenate([client.train for client in clients])
    assert len(held) == len(set(held.tolist()))
    assert all(len(client.train) for client in clients)
    if scheme == "natural":
        owned = [{text[0] for text in np.array(texts(data.train))[c.train]} for c in clients]
        assert owned == [{"p"}, {"q"}]


def test_a_device_s_own_folder_keeps_the_classes_of_all(tmp_path: Path) -> None:
    config = configured(tmp_path, tmp_path / "cache", data__scheme="natural")
    files = both({"b/1.txt": "x", "c/1.txt": "y"})
    data = own_images(config, str(write(tmp_path / "mine", files)), classes=("a", "b", "c"))
    assert data.train.labels.tolist() == [1, 2]
    assert data.num_classes == 3
    with pytest.raises(DataError, match="has the class 'c'; allowed: a, b"):
        own_images(config, str(tmp_path / "mine"), classes=("a", "b"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extractor__backbone": "narrow"}, "data.kind = text needs a backbone that reads text"),
        ({"extractor__method": "fedce"}, "use extractor.method = pretrained, got fedce"),
        ({"extractor__mirror": True}, "mirror = true is for images"),
        ({"extractor__resolution": 8}, "resolution = 8 is for images, and data.kind is text"),
        ({"extractor__cut": "blocks.0:2"}, "tokens are averaged, and have no grid; allowed: LAYER"),
        ({"extractor__start": "runs/a"}, "extractor.weights for that: leave it out"),
        ({"run__system": "aligned"}, "run.system = aligned has no backbone that reads text"),
        ({"run__system": "pfl-moe"}, "run.system = pfl-moe has a gate that reads pixels"),
        ({"data__dataset": "digits"}, "kind = text needs a folder of documents"),
        ({"gate__methods": "unigram"}, "unigram needs text: use it with run.system = language"),
    ],
)
def test_settings_that_labelled_text_cannot_have_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        configured(tmp_path, tmp_path, **changes)
