"""Documents of several domains: files in folders, or rows of a table with a column of text."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from nmoe_flower.data.hugging_face import find_text_column, import_extra, load_tables
from nmoe_flower.data.request import DataRequest, list_files, walk_files
from nmoe_flower.errors import DataError
from nmoe_flower.files import read_text
from nmoe_flower.plurals import how_many

__all__ = [
    "LARGEST_DOCUMENT",
    "SPLITS",
    "Document",
    "TextRequest",
    "are_tables",
    "read_documents",
    "split_by_document",
    "units_of",
]

SPLITS = ("train", "test", "validation")
ALL = "all"
_TABLES = {".parquet", ".arrow", ".jsonl", ".csv", ".tsv"}
_BESIDE_TABLES = {".json", ".md"}
_SAVED = {"dataset_dict.json", "state.json"}
LARGEST_DOCUMENT = 1 << 30  # bytes of a document
_FORMAT = 1
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


@dataclass(frozen=True)
class Document:
    """One text, and where it belongs.

    Attributes:
        domain: Name of what kind of text it is, or whose.
        name: What it is called in errors: its file, or its row.
        text: The text, with a character that is no white space.
        split: ``train``, ``test`` or ``validation``; "": not said yet.
    """

    domain: str
    name: str
    text: str
    split: str = ""


@dataclass(frozen=True)
class TextRequest:
    """What documents are asked for; with a tokenizer's hash, what a cache entry is named by.

    Attributes:
        dataset: A local folder, or a name on the hub.
        unit: What of a file is a document: ``files``, ``lines`` or ``paragraphs``.
        column: Column of the text in a table; "" finds it.
        client_column: Column of a table that says whose a row is; "": all are of one domain.
        domains: Names of the domains to take; () takes all.
        train_split: Name of the train split.
        test_split: Name of the test split.
        test_share: Share of a domain's text to test on, where there is no test split.
        near: Share of its shingles in the test split that makes a training document a near
            duplicate; 0: only exact ones are left out.
        alone: All documents are one device's own, whatever folders they are in.
    """

    dataset: str
    unit: str = "files"
    column: str = ""
    client_column: str = ""
    domains: tuple[str, ...] = ()
    train_split: str = "train"
    test_split: str = "test"
    test_share: float = 0.1
    near: float = 0.5
    alone: bool = False

    @property
    def source(self) -> DataRequest:
        """The same as readers of tables want it."""
        return DataRequest(
            self.dataset, "", "", self.train_split, self.test_split, 0, kind="text",
            client_column=self.client_column,
        )  # fmt: skip

    @property
    def splits(self) -> dict[str, str]:
        """What each split's folder or table is called, by the split's name here."""
        return {"train": self.train_split, "test": self.test_split, "validation": "validation"}

    def identity(self) -> list[Any]:
        """All that decides which documents there are; of a folder, all its files."""
        folder = self.source.folder
        roots = self.roots(folder) if folder else ()
        return [_FORMAT, *vars(self).values(), [list_files(root) for root in roots]]

    def roots(self, folder: Path) -> list[Path]:
        """The folders that are read: those of the splits if there are any, and nothing beside them.

        Args:
            folder: The data set's.
        """
        splits = [folder / name for name in self.splits.values() if (folder / name).is_dir()]
        return splits if folder / self.train_split in splits else [folder]


def read_documents(request: TextRequest, arrow_dir: Path) -> tuple[list[Document], int]:
    """Read documents, sorted by domain and name.

    A folder holds ``train/DOMAIN/...`` and ``test/DOMAIN/...`` (and ``validation/DOMAIN/...``),
    with any files below, and what else lies beside them is not read; or every ``DOMAIN/train/...``
    and ``DOMAIN/test/...``; or ``DOMAIN/...``. What `datasets` reads (tables in parquet, JSON lines
    or CSV, saved to disk, names on the hub) has a column of text.

    Args:
        request: What to read.
        arrow_dir: Where `datasets` may put what it converts.

    Returns:
        The documents, and how many were left out because they are empty.

    Raises:
        DataError: There are none, a file is no UTF-8, or folder or columns are not as needed.
    """
    folder = request.source.folder
    files = []
    for root in request.roots(folder) if folder else ():
        below = root.relative_to(folder or root)
        files += sorted((below / name).as_posix() for name in walk_files(root))
    if folder is None or are_tables(files):
        found = list(_rows(request, arrow_dir))
    else:
        found = list(_files(request, folder, files))
    there = sorted({one.domain for one in found})
    if unknown := sorted(set(request.domains) - set(there)):
        raise DataError(
            f"text.domains names {unknown[0]!r}, of which {request.dataset!r} has no text; it has "
            f"{', '.join(there) or 'none'}"
        )
    if request.domains:
        found = [one for one in found if one.domain in request.domains]
    kept = [one for one in found if one.text.strip()]
    if not kept:
        raise DataError(
            f"{request.dataset!r} has no text: "
            f"{how_many(len(found), 'document, which is empty', 'documents, all of them empty')}"
        )
    kept.sort(key=lambda one: (one.domain, one.name))
    return kept, len(found) - len(kept)


def are_tables(files: Sequence[str]) -> bool:
    """Whether a folder holds tables, and no documents.

    Args:
        files: Files of the folder, relative to it.
    """
    suffixes = {Path(name).suffix.lower() for name in files}
    saved = any(name in _SAVED for name in files)
    return saved or (bool(suffixes & _TABLES) and suffixes <= _TABLES | _BESIDE_TABLES)


def _files(request: TextRequest, folder: Path, names: Sequence[str]) -> Iterator[Document]:
    splits = {there: here for here, there in request.splits.items()}
    paths = [tuple(name.split("/")) for name in names]
    place = 0 if request.roots(folder) != [folder] else _place_of_split(paths, request)
    for parts in paths:
        rest = [part for number, part in enumerate(parts) if number != place]
        if request.alone:
            rest.insert(0, folder.resolve().name)
        if len(rest) < 2:
            raise DataError(
                f"{folder.joinpath(*parts)} is in no domain's folder; allowed: "
                f"{request.train_split}/DOMAIN/FILE and {request.test_split}/DOMAIN/FILE, or "
                "DOMAIN/FILE"
            )
        if request.domains and rest[0] not in request.domains:
            yield Document(rest[0], "", "")  # told in an error, and never read
            continue
        path = folder.joinpath(*parts)
        text = read_text(path, what="the document", raises=DataError, most=LARGEST_DOCUMENT)
        name = "/".join(rest)
        for number, part in enumerate(units_of(text, request.unit)):
            where = name if request.unit == "files" else f"{name}:{number:07}"
            yield Document(rest[0], where, part, "" if place is None else splits[parts[place]])


def _place_of_split(paths: Sequence[tuple[str, ...]], request: TextRequest) -> int | None:
    """Which folder on the way to a document says its split: the second of all, or none.

    A folder called ``test`` deep in somebody's sources is none that does.
    """
    known = set(request.splits.values())
    if paths and all(len(parts) > 2 and parts[1] in known for parts in paths):
        return 1
    return None


def units_of(text: str, unit: str) -> list[str]:
    r"""The documents of a file.

    A line ends at a line feed, a carriage return or both, as in any text file. What else Unicode
    may break a line at, a form feed or U+2028, stands within one.

    Args:
        text: What it holds.
        unit: What of it is a document: ``files``, ``lines`` or ``paragraphs``.

    >>> units_of("one\r\ntwo\fof it\n", "lines")
    ['one\r\n', 'two\x0cof it\n']
    """
    if unit == "lines":
        return list(StringIO(text, newline=""))
    return _BLANK_LINES.split(text) if unit == "paragraphs" else [text]


def _rows(request: TextRequest, arrow_dir: Path) -> Iterator[Document]:
    import_extra("datasets", f"text {request.dataset!r}")
    tables = load_tables(request.source, arrow_dir)
    if request.train_split not in tables:
        raise DataError(
            f"text {request.dataset!r} has no split {request.train_split!r}; it has "
            f"{', '.join(tables)}"
        )
    told = request.test_split in tables
    for split, name in request.splits.items():
        if name not in tables:
            continue
        table = tables[name].with_format(None)
        column = _column(request, table.column_names, name)
        for row, cell in enumerate(table):
            place = f"row {row} of the {name} split"
            text, whose = cell[column], cell.get(request.client_column, ALL)
            if not isinstance(text, str | None):
                raise DataError(
                    f"{place} has {repr(text)[:40]} in column {column!r} (text.column); text is "
                    "needed"
                )
            if not isinstance(whose, int | str) or whose == "":
                raise DataError(
                    f"{place} has {whose!r} in column {request.client_column!r} "
                    "(data.partition-column); text or whole numbers are needed"
                )
            yield Document(str(whose), f"{name}:{row:09}", text or "", split if told else "")


def _column(request: TextRequest, columns: Sequence[str], split: str) -> str:
    """The column of the text."""
    there = ", ".join(columns)
    if request.client_column and request.client_column not in columns:
        raise DataError(
            f"text {request.dataset!r}: no column {request.client_column!r} "
            f"(data.partition-column) in the {split} split; the columns are {there}"
        )
    return find_text_column(request.dataset, columns, request.column, split)


def split_by_document(documents: Sequence[Document], request: TextRequest) -> list[Document]:
    """Give a split to every document that has none: whole documents, by a hash of their names.

    Args:
        documents: All of a data set.
        request: What was asked for; its ``test_share`` is the share of a domain's text.

    Returns:
        The same documents in the same order.

    Raises:
        DataError: A domain has no training or no test part, or too few documents to split.
    """
    by_domain: dict[str, list[int]] = defaultdict(list)
    for place, document in enumerate(documents):
        by_domain[document.domain].append(place)
    found = list(documents)
    for domain, places in by_domain.items():
        splits = {documents[place].split for place in places} - {""}
        open_places = [place for place in places if not documents[place].split]
        if open_places and "test" in splits:
            for place in open_places:
                found[place] = replace(documents[place], split="train")
        elif open_places:
            _deal(found, open_places, domain, request.test_share)
        present = {found[place].split for place in places}
        for split in ("train", "test"):
            if split not in present:
                raise DataError(
                    f"domain {domain!r} of {request.dataset!r} has no {split} part: no text in "
                    f"{request.splits[split]}/{domain}, and {len(places)} documents elsewhere; "
                    "give it one, or leave the domain out (text.domains)"
                )
    return found


def _deal(found: list[Document], places: list[int], domain: str, share: float) -> None:
    """Take whole documents in the order of their hashes until the test part is large enough."""
    if len(places) < 2:
        raise DataError(
            f"domain {domain!r} has a single document ({found[places[0]].name}), and a document "
            "is never in two splits; give more files, say what a document is (text.unit = lines "
            f"or paragraphs), or put text to test on below test/{domain}"
        )

    def key(place: int) -> str:
        return hashlib.sha256(f"{domain}\0{found[place].name}".encode()).hexdigest()

    order = sorted(places, key=key)
    wanted = share * sum(len(found[place].text) for place in places)
    taken = 0
    for number, place in enumerate(order):
        size = len(found[place].text)
        test = number == 0 or (taken + size / 2 <= wanted and number < len(order) - 1)
        taken += size if test else 0
        wanted = wanted if test else 0  # what follows is for training
        found[place] = replace(found[place], split="test" if test else "train")
