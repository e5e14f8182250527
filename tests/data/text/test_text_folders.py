"""Folders and tables of text: what is read, split, left out and refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nmoe_flower.config import Config, DataConfig, RunConfig, TextConfig
from nmoe_flower.data.text import (
    ByteTokenizer,
    TextData,
    TextSplit,
    configured_text,
    load_text,
    own_text,
    units_of,
)
from nmoe_flower.errors import ConfigError, DataError


def sentences(word: str, number: int, count: int = 12) -> str:
    """A text unlike those of other numbers, of about 20 bytes times the count."""
    rng = np.random.default_rng([number, *word.encode()])
    return "".join(f"{word} {rng.integers(10**12)} is it.\n" for _ in range(count))


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def domains(**count: int) -> dict[str, str]:
    return {
        f"{name}/{number}.txt": sentences(name, number)
        for name, documents in count.items()
        for number in range(documents)
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(folder: Path, **more: Any) -> TextData:
    return load_text(str(folder), ByteTokenizer(), **{"window": 32, **more})


def configuration(dataset: str, window: int) -> Any:
    """The sections that are read, without what else a run needs."""
    data = {"kind": "text", "scheme": "natural", "dataset": dataset, "num-clients": 2}
    return SimpleNamespace(
        data=DataConfig.model_validate(data),
        text=TextConfig.model_validate({"tokenizer": "bytes", "window": window}),
        run=RunConfig.model_validate({}),
    )


def text_of(split: TextSplit) -> str:
    return ByteTokenizer().decode(split.tokens.ravel().tolist())


def documents_of(data: TextData, split: TextSplit) -> set[str]:
    """Which of ``sentences`` are seen in a split, by their long numbers."""
    return {part for part in text_of(split).split() if len(part) > 9 and part.isdigit()}


# --- layouts ---


@pytest.mark.parametrize("layout", ["{split}/{name}", "{domain}/{split}/{file}"])
def test_splits_are_those_of_the_folders(layout: str, tmp_path: Path, cache: Path) -> None:
    """Whatever else lies beside them, and folders called test below, decide nothing."""
    files = {}
    for split, first in (("train", 0), ("test", 50)):
        for name in domains(de=3, py=2):
            domain, file = name.split("/")
            deep = f"{domain}/test/{file}" if "{name}" in layout else file
            where = layout.format(split=split, name=deep, domain=domain, file=file)
            files[where] = sentences(domain, first + int(file[0]))
    if "{name}" in layout:
        files["LICENSES"] = "not read"
    data = opened(write(tmp_path / "text", files))
    assert data.client_names == data.domain_names == ("de", "py")
    assert data.left_out == {"empty": 0, "duplicate": 0, "near-duplicate": 0}
    seen = documents_of(data, data.test)
    for number in (0, 1):
        assert seen & set(sentences("py", 50 + number).split())
        assert not seen & set(sentences("py", number).split())
    # 3 documents of 12 lines: the bytes of the windows are those of the texts, less the rest
    whole = sum(len(sentences("de", number)) + 1 for number in range(3))
    assert len(data.train.of_client(0)) == whole // 32


def test_documents_are_split_whole_where_no_folder_says(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "text", domains(de=10, py=20))
    data = opened(folder, test_share=0.2)
    assert not documents_of(data, data.train) & documents_of(data, data.test)
    share = [len(data.test.of_client(c)) / len(data.train.of_client(c)) for c in (0, 1)]
    assert share == pytest.approx([0.25, 0.25], abs=0.05)  # 2 of 10, and 4 of 20
    again = opened(folder, test_share=0.2, seed=5)  # another seed moves no test document
    assert (again.test.tokens == data.test.tokens).all()
    assert not (again.train.tokens == data.train.tokens).all()
    assert again.fingerprint == data.fingerprint


def test_validation_text_is_of_documents_that_nobody_trains_on(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "text", domains(de=10, py=10))
    data = opened(folder, validation_per_client=9)
    assert [len(data.validation.of_client(c)) for c in (0, 1)] == [9, 9]
    held = documents_of(data, data.validation)
    assert held
    assert not held & (documents_of(data, data.train) | documents_of(data, data.test))
    with pytest.raises(DataError, match=r"validation-per-client is 999, but client 'de' can give"):
        opened(folder, validation_per_client=999)


def test_a_validation_folder_is_taken(tmp_path: Path, cache: Path) -> None:
    files = {f"{split}/{name}": f"{split} {text}" for split in ("train", "test", "validation")
             for name, text in domains(de=2).items()}  # fmt: skip
    for number, name in enumerate(files):
        files[name] = sentences(name, number)
    data = opened(write(tmp_path / "text", files), validation_per_client=4)
    assert len(data.validation) == 4
    assert "validation/de" in text_of(data.validation)


def test_lines_and_paragraphs_are_documents(tmp_path: Path, cache: Path) -> None:
    text = "".join(f"line {number} of it\n\n" for number in range(100, 200))
    folder = write(tmp_path / "text", {"de/all.txt": text})
    with pytest.raises(DataError, match=r"single document \(de/all.txt\).*text.unit = lines"):
        opened(folder)
    lines, paragraphs = opened(folder, unit="lines"), opened(folder, unit="paragraphs")
    assert lines.left_out["empty"] == 100
    assert paragraphs.left_out["empty"] == 1  # after the last one
    assert len(lines.train) == 90 * 16 // 32  # "line 100 of it\n" and its end are 16 tokens
    alone = opened(folder, unit="paragraphs", packing="document")
    assert len(alone.train) == 90
    assert (alone.train.sizes.sum(axis=1) == len("line 100 of it")).all()
    assert (alone.train.tokens[:, 14:] == 256).all()


@pytest.mark.parametrize("within", ["\f", "\v", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_ends_of_lines_end_one(within: str) -> None:
    lines = ["one\n", "\n", f"two{within}three\r\n", "four\r", f"five{within}"]
    assert units_of("".join(lines), "lines") == lines
    assert units_of("", "lines") == []


def test_a_table_has_a_column_of_text_and_one_that_says_whose(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("datasets")
    written = {"ann": 6, "bob": 4, "eve": 6}
    rows = [
        {"body": sentences(who, number), "writer": who}
        for who, count in written.items()
        for number in range(count)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    folder = write(tmp_path / "table", {"train.jsonl": lines})
    data = opened(folder, client_column="writer", num_clients=2)
    assert data.client_names == ("ann", "eve")  # who have most
    assert "ann" in text_of(data.train.of_client(0))
    assert opened(folder).domain_names == ("all",)
    with pytest.raises(DataError, match=r"no column 'who' \(data.partition-column\) in the train"):
        opened(folder, client_column="who")
    with pytest.raises(DataError, match=r"whose its rows are: set data.partition-column"):
        opened(folder, num_clients=2)
    with pytest.raises(DataError, match=r"is a file; a folder that holds it is needed$"):
        opened(folder / "train.jsonl")
    with pytest.raises(DataError, match=r"no column 'story' in the train split; the columns are"):
        opened(folder, column="story")


def test_a_device_reads_its_own_folder(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "mine", {f"{n}.txt": sentences("mine", n) for n in range(5)})
    data = own_text(configuration("elsewhere", window=40), str(folder))
    assert data.client_names == ("mine",)
    assert data.train.window == 40


# --- who holds what ---


def test_text_is_dealt_to_all_alike(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "text", domains(de=30, py=30))
    data = opened(folder, scheme="iid", num_clients=3)
    assert data.client_names == ("0", "1", "2")
    sizes = np.bincount(data.train.clients)
    assert sizes.max() - sizes.min() <= 12  # a document
    for client in range(3):
        assert set(data.train.of_client(client).domains) == {0, 1}
    together = [documents_of(data, data.train.of_client(client)) for client in range(3)]
    assert not together[0] & together[1]


def test_one_client_alone_has_no_text_of_others(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "text", domains(de=30, py=30))
    for options in ({"domains": ("de",)}, {"num_clients": 1}):
        with pytest.raises(DataError, match=r"text.mixed is 0.5, and there is 1 client"):
            opened(folder, mixed=0.5, **options)
        assert len(opened(folder, **options).client_names) == 1


def test_clients_hold_some_of_each_others_text(tmp_path: Path, cache: Path) -> None:
    """Of 27 training documents of each of three, a third goes to the two others in turn."""
    folder = write(tmp_path / "text", domains(de=30, fr=30, py=30))
    data = opened(folder, mixed=1 / 3)
    assert data.client_names == ("de", "fr", "py")
    for client in range(3):
        shares = np.bincount(data.train.of_client(client).domains, minlength=3)
        assert shares[client] / shares.sum() == pytest.approx(2 / 3, abs=0.05)
        assert np.delete(shares, client).min() > 0


def test_limits_take_windows_at_random(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "text", domains(de=10, py=10))
    everything = opened(folder)
    data = opened(folder, train_per_client=5, test_per_client=3)
    assert np.bincount(data.train.clients).tolist() == [5, 5]
    assert np.bincount(data.test.clients).tolist() == [3, 3]
    rows = {row.tobytes() for row in everything.train.tokens}
    assert {row.tobytes() for row in data.train.tokens} <= rows
    other = opened(folder, train_per_client=5, test_per_client=3, seed=1)
    assert (other.test.tokens == data.test.tokens).all()


# --- what is left out ---


def test_training_documents_that_are_tested_on_are_left_out(tmp_path: Path, cache: Path) -> None:
    """The same but for case and spaces; most of it; a seventh of it, which stays."""
    tested = sentences("de", 1, 40)
    lines = tested.splitlines(keepends=True)
    files = {
        "test/de/1": tested,
        "test/py/1": sentences("py", 1),
        "train/de/again": tested.upper().replace(" ", "\n  "),
        "train/py/most": "".join(lines[:30]) + sentences("py", 7, 10),  # in another domain
        "train/py/some": "".join(lines[:5]) + sentences("py", 8, 30),
        "train/de/other": sentences("de", 2),
        "train/de/empty": " \n",
    }
    folder = write(tmp_path / "text", files)
    data = opened(folder)
    assert data.left_out == {"empty": 1, "duplicate": 1, "near-duplicate": 1}
    assert len(data.train) == sum(
        (len(files[name]) + 1) // 32 for name in ("train/de/other", "train/py/some")
    )
    assert opened(folder, near_duplicates=0.0).left_out["near-duplicate"] == 0


def test_a_domain_of_nothing_but_duplicates_is_refused(tmp_path: Path, cache: Path) -> None:
    files = {f"{split}/de/1": sentences("de", 1) for split in ("train", "test")}
    with pytest.raises(DataError, match=r"'de' .* has no training text beside what is in the test"):
        opened(write(tmp_path / "text", files))


# --- what is refused ---


def odd_folders() -> dict[str, tuple[dict[str, str | bytes], str]]:
    good = {f"train/{n}": t for n, t in domains(de=3).items()}
    tests = {f"test/{n}": sentences("t", 9) for n in domains(de=1)}
    return {
        "no-test": ({**good, **tests, "train/fr/1": "bonjour"}, r"'fr' .* has no test part"),
        "no-train": ({**good, **tests, "test/fr/1": "bonjour"}, r"'fr' .* has no train part"),
        "empty": ({"train/de/1": "", "test/de/1": "\n"}, r"has no text: 2 documents, all of them"),
        "latin-1": (
            {**good, **tests, "train/de/old.txt": "a\nfür".encode("latin-1")},
            r"train/de/old.txt is not UTF-8 text: byte 0xfc in line 2",
        ),
        "binary": ({**good, **tests, "train/de/x.bin": b"a\0b"}, r"x.bin is not UTF-8 .*0x00"),
        "flat": ({"1.txt": "a", "2.txt": "b"}, r"1.txt is in no domain's folder; allowed: train/D"),
        "short": ({"train/de/1": "short", **tests}, r"'de' has 6 tokens of train text, less than"),
        "one": ({"de/1": sentences("de", 1)}, r"'de' has a single document \(de/1\)"),
    }  # fmt: skip


@pytest.mark.parametrize("name", odd_folders())
def test_odd_folders_are_refused(name: str, tmp_path: Path, cache: Path) -> None:
    files, said = odd_folders()[name]
    folder = tmp_path / "text"
    for file, content in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        opened(folder)
    assert not list((cache / "text").glob(".*"))  # nothing half made is left


def test_domains_and_clients_that_are_not_there_are_refused(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "text", domains(de=3, py=3))
    assert opened(folder, domains=("py",)).domain_names == ("py",)
    with pytest.raises(DataError, match=r"text.domains names 'fr', of which .*; it has de, py"):
        opened(folder, domains=("py", "fr"))
    with pytest.raises(DataError, match=r"data.num-clients is 3, but .* 2 domains .*: de, py"):
        opened(folder, num_clients=3)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.dataset=digits", r"kind = text needs a folder of documents"),
        ("data.flip=true", r"flip = True is for images; kind = text has none"),
        ("data.renamings=2", r"renamings = 2 is for images, got kind = text"),
        ("text.prefix=128", r"prefix = 128 leaves nothing of window = 128 to score"),
        ("text.stride=200", r"stride = 200 leaves text between windows of 128 out"),
    ],
)
def test_settings_that_text_cannot_have_are_refused(setting: str, said: str) -> None:
    text = ["data.kind=text", "data.scheme=natural", "data.dataset=mine"]
    text += ["extractor.method=pretrained", "extractor.backbone=small-lm"]
    with pytest.raises(ConfigError, match=said):
        Config.load(None, [*text, setting])


# --- the cache ---


def test_tokens_are_made_once_and_again_when_a_file_changes(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "text", domains(de=4, py=4))
    made: list[int] = []

    def progress(done: int, total: int) -> None:
        made.append(done)

    first = opened(folder, progress=progress)
    assert made == list(range(1, 9))
    again = opened(folder, window=16, stride=8, progress=progress)  # windows are cut anew
    assert len(made) == 8
    assert again.fingerprint == first.fingerprint
    (entry,) = (cache / "text").iterdir()
    (entry / "train-tokens.npy").write_bytes(b"damaged")
    assert (opened(folder, progress=progress).train.tokens == first.train.tokens).all()
    assert len(made) == 16
    write(folder, {"de/0.txt": sentences("de", 77)})
    assert opened(folder, progress=progress).fingerprint != first.fingerprint


def test_configured_text_is_opened_once_a_process(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "text", domains(de=4, py=4))
    config = configuration(str(folder), window=64)
    data = configured_text(config)
    assert configured_text(config) is data
    assert data.train.window == 64
