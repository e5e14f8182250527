"""The corpus of text-domains: what is taken of packages, and how it is put together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import text_domains
from nmoe_flower.errors import DataError
from nmoe_flower.files import read_json


def test_manual_pages_become_text() -> None:
    page = (
        '.\\" a comment\n.TH LS 1\n.SH NAME\nls \\- list\n.BR \\-a ,\n.IR "file name"\n'
        "\\fBbold\\fR\\c\n.if n ad\nCopyright \\(co 2022\n\\h'-04'\\m[blue]x\\m[]\n"
    )
    told = "NAME\nls - list\n-a ,\nfile name\nbold\nCopyright (C) 2022\nx\n"
    assert text_domains.text_of_man(page) == told


def test_pages_of_the_handbook_become_lines() -> None:
    page = (
        "<html><head><title>no</title></head><body><h2>One</h2><div>two <b>and</b>\n  three</div>"
        "<pre>a\n  b</pre><script>no()</script>&amp;</body></html>"
    )
    assert text_domains.lines_of_page(page) == ["One", "two and three", "a", "b", "&"]


def test_lines_that_nobody_translated_are_left_out(tmp_path: Path) -> None:
    html = tmp_path / "usr/share/doc/debian-handbook/html"
    for language, lines in (("en-US", ["Hello", "Bye"]), ("de-DE", ["Hallo", "Bye"])):
        (html / language).mkdir(parents=True)
        (html / language / "a.html").write_text("".join(f"<p>{line}</p>" for line in lines))
    assert list(text_domains.handbook(tmp_path, "de-DE")) == [("handbook/a", "Hallo\n")]


def test_verses_become_chapters() -> None:
    told = "Hello.\n1Sa1:2 Two.\n1Sa1:1 One.\nGe2:1 Three.\n"
    assert list(text_domains.chapters(told)) == [("1Sa1", "One.\nTwo.\n"), ("Ge2", "Three.\n")]


def sized(*sizes: int) -> Iterator[tuple[str, str]]:
    yield from (
        (f"{number}.txt", f"{number:06}" * (size // 6)) for number, size in enumerate(sizes)
    )


def test_whole_documents_are_chosen_by_their_names() -> None:
    limits = [("test", 1200), ("train", 3000)]
    found = text_domains.chosen(sized(*[600] * 10), "de", limits)
    assert [len(found[part]) for part in ("test", "train")] == [2, 5]
    assert not {n for n, _ in found["test"]} & {n for n, _ in found["train"]}
    again = text_domains.chosen(reversed(list(sized(*[600] * 10))), "de", limits)
    assert again == found
    assert text_domains.chosen(sized(*[600] * 10), "fr", limits) != found


def test_small_large_and_repeated_documents_are_passed_over() -> None:
    documents = [*sized(60, 600, 600_000), ("again", "000001" * 100)]
    found = text_domains.chosen(iter(documents), "de", [("train", 10**6)])
    assert [len(text) for _, text in found["train"]] == [600]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A corpus of two domains without packages; returns which were read."""
    read: list[str] = []

    def documents(name: str) -> Iterator[tuple[str, str]]:
        read.append(name)
        yield from ((f"{n}/{t}", text) for n, (t, text) in enumerate(sized(*[3000] * 40)))

    monkeypatch.setattr(text_domains, "PACKAGES", {})
    monkeypatch.setattr(text_domains, "DEVICES", {"de": lambda fetch: documents("de")})
    monkeypatch.setattr(text_domains, "PUBLIC", {"rst": lambda fetch: documents("rst")})
    monkeypatch.setattr(text_domains, "TEST_BYTES", 12_000)
    monkeypatch.setattr(text_domains, "TRAIN_BYTES", 60_000)
    sums: dict[str, str] = {}
    monkeypatch.setattr(text_domains, "SUMS", sums)

    def make(*args: Any) -> str:
        made = written(*args)
        sums.setdefault(args[1], made)  # what was made first is what it should be
        return made

    written = text_domains.make
    monkeypatch.setattr(text_domains, "make", make)
    return read


def test_a_corpus_is_made_once_and_compared(
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of 60,000 bytes a fifth is for a backbone that has seen all, 12,000 are tested on."""
    assert text_domains.main([str(tmp_path)]) == 0
    held = {
        part: len(list((tmp_path / part / "de").iterdir())) for part in ("train", "test", "seen")
    }
    assert held == {"test": 4, "seen": 4, "train": 16}
    assert len(list((tmp_path / "public" / "rst").iterdir())) == 20
    assert "train/de: 16 documents, 48,000 bytes" in capsys.readouterr().out
    assert text_domains.main([str(tmp_path)]) == 0
    assert small == ["de", "rst"]  # nothing was read again
    sums = read_json(tmp_path / "sums.json")
    monkeypatch.setattr(text_domains, "SUMS", {**sums, "rst": "0" * 64})
    assert text_domains.main([str(tmp_path)]) == 1
    assert "rst: " in capsys.readouterr().err
    assert small == ["de", "rst", "rst"]  # what is not as it should be is made anew
    assert text_domains.main([str(tmp_path), "--accept"]) == 0
    assert small == ["de", "rst", "rst"]


def test_packages_of_other_versions_are_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lists of packages may know better by then; accepted, they stay."""
    fetched: list[str] = []
    offered = iter(["1", "2"])

    def fetch(store: text_domains.Store, package: text_domains.Package, folder: Path) -> None:
        fetched.append(package.name)
        (folder / ".complete").write_text(next(offered))

    monkeypatch.setattr(text_domains.Store, "_fetch", fetch)
    monkeypatch.setattr(text_domains, "PACKAGES", {"a": text_domains.Package("a", "2", "MIT")})
    for renew, version in ((True, "1"), (False, "1"), (True, "2"), (True, "2")):
        store = text_domains.Store(tmp_path, renew=renew)
        assert store("a") == store("a") == tmp_path / "a/files"
        assert store.versions == {"a": version}
    assert fetched == ["a", "a"]


def test_packages_that_cannot_be_fetched_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get is not installed; Debian 12 with npm is needed"):
        text_domains.Store(tmp_path)("libc6-dev")
    for name, said in (("npm", "echo E404 not there >&2; exit 1"), ("apt-get", "exit 100")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{said}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(DataError, match=r"npm pack --silent three@0.187.0: E404 not there"):
        text_domains.Store(tmp_path)("three")
    with pytest.raises(
        DataError, match=r"-qq libc6-dev: it ended with 100; apt-get update may help"
    ):
        text_domains.Store(tmp_path)("libc6-dev")
