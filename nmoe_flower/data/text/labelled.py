"""Labelled documents as rows of tokens, for classification: one document, one row.

To everything that works on latents a row of T tokens is an image of one pixel with T channels,
as a row of a table is: whole numbers in float32, and -1 behind a document's end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.cache import build_entry, cache_root, open_entry, save_entry
from nmoe_flower.data.class_folders import File, files_by_split, owner_of
from nmoe_flower.data.decode import OnDecoded, check_classes, divide_split, encode_clients
from nmoe_flower.data.hugging_face import labelled_tables
from nmoe_flower.data.images import ImageData, Split, Tokenised
from nmoe_flower.data.request import DataRequest, walk_files
from nmoe_flower.data.text.documents import LARGEST_DOCUMENT, are_tables, units_of
from nmoe_flower.data.text.sharing import configured_tokenizer
from nmoe_flower.data.text.windows import Tokenizer
from nmoe_flower.errors import DataError
from nmoe_flower.files import read_text
from nmoe_flower.plurals import how_many
from nmoe_flower.seeds import numpy_stream

if TYPE_CHECKING:
    from nmoe_flower.config import Config

__all__ = ["configured_documents", "document_row", "load_documents"]

_FILL = -1
_FORMS = (
    "DOMAIN/CLASS/FILE (a domain or a client each) or, but for data.scheme = natural, CLASS/FILE, "
    "below train/ and test/ or without them, to one depth"
)


@dataclass(frozen=True)
class _LabelledRequest(DataRequest):
    """What a cache entry of labelled text is named by, beside what one of images is.

    Attributes:
        column: Column of the text in a table; "" finds it.
        unit: What of a file is a document.
        window: Tokens of a row, T.
        too_long: What becomes of longer documents.
        tokenizer: Hash of what makes the tokens.
    """

    column: str = ""
    unit: str = "files"
    window: int = 128
    too_long: str = "truncate"
    tokenizer: str = ""


@dataclass(frozen=True)
class _Labelled:
    """A document, its class and its owner.

    Attributes:
        place: What it is called in errors.
        text: The text; None: there is none.
        label: Name of its class.
        client: Name of its owner; empty if nobody asked.
    """

    place: str
    text: str | None
    label: str
    client: str = ""


def load_documents(
    dataset: str,
    tokenizer: Tokenizer,
    *,
    window: int = 128,
    too_long: Literal["truncate", "refuse"] = "truncate",
    unit: Literal["files", "lines", "paragraphs"] = "files",
    column: str = "",
    label_column: str = "",
    train_split: str = "train",
    test_split: str = "test",
    seed: int = 0,
    by_client: bool = False,
    client_column: str = "",
    cache_dir: Path | str | None = None,
    progress: OnDecoded | None = None,
) -> ImageData:
    """Open labelled text, making tokens of it on first use.

    ``dataset`` is a folder ``DOMAIN/CLASS/*.txt`` or ``CLASS/*.txt``, with ``train`` and ``test``
    above or without; or what `datasets` reads (tables in parquet, JSON lines or CSV in a folder,
    saved to disk, names on the hub), with a column of text and one of labels. Without a test part
    it is split 80/20, every class alike. Documents without text are left out and counted.

    Args:
        dataset: What to open.
        tokenizer: What makes tokens.
        window: Tokens of a row, T; shorter documents are filled up.
        too_long: What becomes of a longer document: its first T tokens are taken, or it is refused.
        unit: What of a file is a document: all of it, each line, or each paragraph.
        column: Column of the text in a table; "" finds it.
        label_column: Column of the labels; "" finds it.
        train_split: Name of the train split.
        test_split: Name of the test split; "" always takes the test rows from the train split.
        seed: Seed of the 80/20 split only.
        by_client: Keep who each document belongs to, for the scheme ``natural``.
        client_column: Column of a table that says so; of a folder, the one above the class does.
        cache_dir: Folder of the data cache; None: `cache_root` says where it is.
        progress: Called with (documents done, documents in all).

    Raises:
        DataError: The data is missing or unreadable, lacks a column or a label, a class has no
            text, there are fewer than 2 classes, or a document is too long and that is refused.
    """
    request = _LabelledRequest(
        dataset,
        "",
        label_column,
        train_split,
        test_split,
        seed,
        by_client=by_client,
        client_column=client_column if by_client else "",
        kind="text",
        column=column,
        unit=unit,
        window=window,
        too_long=too_long,
        tokenizer=tokenizer.hash,
    )
    entry = cache_root(cache_dir) / "labelled" / request.key()
    report = progress or (lambda done, total: None)
    return open_entry(entry, dataset) or build_entry(
        entry, dataset, lambda building: _write(request, tokenizer, building, report)
    )


def configured_documents(
    config: "Config", dataset: str, *, own: bool = False, progress: OnDecoded | None = None
) -> ImageData:
    """The labelled text that a configuration describes.

    Args:
        config: The run's configuration.
        dataset: What to open.
        own: It is one device's own: whose a document is does not matter.
        progress: Called with (documents done, documents in all).

    Raises:
        DataError: As `load_documents`, or the tokenizer cannot be opened.
    """
    data, text = config.data, config.text
    return load_documents(
        dataset,
        configured_tokenizer(config),
        window=text.window,
        too_long=text.too_long,
        unit=text.unit,
        column=text.column,
        label_column=data.label_column,
        train_split=data.train_split,
        test_split=data.test_split,
        by_client=data.scheme == "natural" and not own,
        client_column=data.partition_column,
        cache_dir=data.cache_dir or None,
        progress=progress,
    )


def document_row(
    text: str,
    tokenizer: Tokenizer,
    *,
    window: int,
    too_long: Literal["truncate", "refuse"] = "truncate",
    place: str = "the document",
) -> npt.NDArray[np.float32]:
    """One document as the row of tokens that `load_documents` makes of it, [1, 1, T].

    Args:
        text: What it says.
        tokenizer: What makes tokens.
        window: Tokens of a row, T.
        too_long: What becomes of a longer document.
        place: What it is called in errors.

    Raises:
        DataError: It has no text, or is too long and that is refused.
    """
    tokens = _tokens_of(text, tokenizer)
    if not tokens:
        raise DataError(f"{place} has no text")
    return _row(tokens, window, too_long, place)[None, None]


def _tokens_of(text: str | None, tokenizer: Tokenizer) -> Sequence[int]:
    """The tokens of a document; none where there is no text."""
    return tokenizer.encode(text) if text and text.strip() else []


def _row(tokens: Sequence[int], window: int, too_long: str, place: str) -> npt.NDArray[np.float32]:
    """Tokens as a row, [T]."""
    if len(tokens) > window and too_long == "refuse":
        raise DataError(
            f"{place} has {how_many(len(tokens), 'token')}, and text.window = {window}: make the "
            "window larger, or let text.too-long = truncate take the first of them"
        )
    row = np.full(window, _FILL, np.float32)
    row[: len(tokens)] = tokens[:window]
    return row


def _write(
    request: _LabelledRequest, tokenizer: Tokenizer, building: Path, progress: OnDecoded
) -> None:
    splits, class_names, beside = _read(request, building / "arrow")
    codes = {name: code for code, name in enumerate(class_names)}
    owners, client_names = encode_clients(
        [[one.client for one in split] if request.by_client else None for split in splits]
    )
    total, done, empty, shortened = sum(map(len, splits)), 0, 0, 0
    found: list[Split] = []
    for name, split, clients in zip(("train", "test"), splits, owners, strict=False):
        rows = np.empty((len(split), 1, 1, request.window), np.float32)
        kept = np.zeros(len(split), bool)
        for place, one in enumerate(split):
            tokens = _tokens_of(one.text, tokenizer)
            shortened += len(tokens) > request.window
            rows[place, 0, 0] = _row(tokens, request.window, request.too_long, one.place)
            kept[place] = bool(tokens)
            done += 1
            if done % 512 == 0 or done == total:
                progress(done, total)
        empty += int((~kept).sum())
        labels = np.array([codes[one.label] for one in split], np.int64)
        _check_text(split, labels, kept, class_names)
        np.save(building / f"{name}-images.npy", rows[kept])
        found.append(Split(rows[kept], labels[kept], None if clients is None else clients[kept]))
    check_classes(request, class_names, found[0].labels)
    if len(found) == 1:
        found = divide_split(building, found[0], numpy_stream(request.seed, "test-split"))
    about = {
        "class_names": class_names,
        "client_names": client_names,
        "beside": beside,
        "tokenised": asdict(Tokenised(tokenizer.hash, tokenizer.vocab_size, empty, shortened)),
    }
    save_entry(building, found, about)


def _check_text(
    split: Sequence[_Labelled],
    labels: npt.NDArray[np.int64],
    kept: npt.NDArray[np.bool_],
    class_names: Sequence[str],
) -> None:
    """Refuse a class of which a split has documents, all without text."""
    for code in np.unique(labels):
        if not kept[labels == code].any():
            first = split[int(np.argmax(labels == code))]
            raise DataError(
                f"class {class_names[code]!r} has no text: all of its documents are empty, the "
                f"first is {first.place}"
            )


def _read(
    request: _LabelledRequest, arrow_dir: Path
) -> tuple[list[list[_Labelled]], list[str], dict[str, int]]:
    """Splits, class names, and how many documents other splits have."""
    folder = request.folder
    files = sorted(walk_files(folder)) if folder else []
    if folder is not None and not are_tables(files):
        paths = [tuple(file.split("/")) for file in files]
        return _of_folders(request, folder, paths), sorted({file[-2] for file in paths}), {}
    if request.by_client and not request.client_column:
        raise DataError(
            f"text {request.dataset!r} does not say whose its rows are: set data.partition-column"
        )
    tables, class_names, beside = labelled_tables(request, arrow_dir, text_column=request.column)
    splits = []
    for table in tables:
        cells = table.table.with_format(None)[table.column]
        clients = table.clients or [""] * len(table.labels)
        rows = zip(cells, table.labels.tolist(), clients, strict=True)
        split = []
        for row, (text, label, client) in enumerate(rows):
            if not isinstance(text, str | None):
                raise DataError(
                    f"{table.place(row)} has {repr(text)[:40]} in column {table.column!r} "
                    "(text.column); text is needed"
                )
            split.append(_Labelled(table.place(row), text, class_names[label], client))
        splits.append(split)
    return splits, class_names, beside


def _of_folders(
    request: _LabelledRequest, folder: Path, files: Sequence[File]
) -> list[list[_Labelled]]:
    """The documents of each split of a folder that names classes."""
    if not files:
        raise DataError(f"data folder {str(folder)!r} is empty")
    known = (request.train_split, request.test_split) in (("train", "test"), ("train", ""))
    found = files_by_split(files, clients=request.by_client) if known else {}
    if not found.get("train"):
        odd = min(files, key=len)
        raise DataError(
            f"{folder.joinpath(*odd)}: the folders of {request.dataset!r} do not say the class of "
            f"every document; allowed: {_FORMS}"
        )
    wanted = [name for name in ("train", request.test_split) if found.get(name)]
    return [list(_documents(request, folder, found[name])) for name in wanted]


def _documents(
    request: _LabelledRequest, folder: Path, files: Sequence[File]
) -> Iterator[_Labelled]:
    for file in files:
        path = folder.joinpath(*file)
        text = read_text(path, what="the document", raises=DataError, most=LARGEST_DOCUMENT)
        owner = owner_of(file) if request.by_client else ""
        for number, part in enumerate(units_of(text, request.unit)):
            place = str(path) if request.unit == "files" else f"{path}, {request.unit} {number}"
            yield _Labelled(place, part, file[-2], owner)
