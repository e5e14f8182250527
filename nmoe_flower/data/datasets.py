"""Images decoded once to uint8 arrays on disk, which every worker maps into memory.

A warm cache opens in milliseconds, without importing ``datasets``, scikit-learn or torch.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import DataError
from nmoe_flower.seeds import numpy_stream

Progress = Callable[[int, int], None]

_FORMAT = 1
_TEST_SHARE = 0.2
_IMAGE_NAMES = ("img", "image", "images", "picture")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "y")
_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, H, W, channels], a read-only memory map, and labels int64 [N]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image data set; ``fingerprint`` is the SHA-256 of its labels and images."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image, the order torch wants."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width


def cache_root(cache_dir: Path | str | None = None) -> Path:
    """Folder of the data cache: the argument, else ``$NMOE_CACHE``, else ``~/.cache/nmoe-flower``.

    >>> cache_root("/tmp/here").as_posix()
    '/tmp/here'
    """
    chosen = cache_dir or os.environ.get("NMOE_CACHE") or Path("~", ".cache", "nmoe-flower")
    return Path(chosen).expanduser()


def load_images(
    dataset: str,
    *,
    cache_dir: Path | str | None = None,
    image_column: str = "",
    label_column: str = "",
    train_split: str = "train",
    test_split: str = "test",
    seed: int = 0,
    progress: Progress | None = None,
) -> ImageData:
    """Open a data set, decoding it into the cache on first use.

    ``dataset`` is ``"digits"`` (1,797 grey images of 8 x 8 pixels that ship inside scikit-learn), a
    local folder that ``datasets`` can read (parquet, image folders, saved to disk), or a name on
    the Hugging Face hub. Data without a test split is split 80/20, stratified.

    A local folder is decoded again when a file's name, size or time changes; a hub name is not.

    Args:
        dataset: What to open.
        cache_dir: See ``cache_root``.
        image_column: Column of the images; "" finds it by its type, then by common names.
        label_column: Column of the labels; "" finds it the same way.
        train_split: Name of the train split.
        test_split: Name of the test split; "" always takes the test images from the train split.
        seed: Seed of the 80/20 split only. Keep it fixed, so that all runs are tested alike.
        progress: Called with (images decoded, images in all) while decoding.

    Raises:
        DataError: The data is missing, empty, unreadable, without labels, of mixed image sizes or
            has fewer than 2 classes; or the cache cannot be written.
    """
    request = _Request(dataset, image_column, label_column, train_split, test_split, seed)
    root = cache_root(cache_dir) / "images"
    entry = root / request.key()
    data = _open_entry(entry, dataset)
    if data is not None:
        return data
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_remains(root)
        building = Path(tempfile.mkdtemp(dir=root, prefix=".building-"))
    except OSError as error:
        raise _unwritable(root, error) from error
    try:
        _decode(request, building, progress or (lambda done, total: None))
        _install(building, entry, dataset)
    except OSError as error:
        raise _unwritable(root, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    data = _open_entry(entry, dataset)
    if data is None:
        raise DataError(f"the data cache entry {entry} is damaged right after it was written")
    return data


@dataclass(frozen=True)
class _Request:
    """What the cache key is made of."""

    dataset: str
    image_column: str
    label_column: str
    train_split: str
    test_split: str
    seed: int

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a name on the hub."""
        if not self.dataset.strip():
            raise DataError("the data set has no name; give digits, a folder or a name on the hub")
        path = Path(self.dataset).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise DataError(f"data set {self.dataset!r} is a file; a folder is needed")
        looks_local = self.dataset.startswith((".", "/", "~")) or self.dataset.count("/") > 1
        if looks_local or path.is_absolute():
            raise DataError(f"data folder {self.dataset!r} does not exist")
        return None

    def key(self) -> str:
        """Name of the cache entry: a readable stem and a hash of all that decides its content."""
        identity: list[Any] = [_FORMAT, *vars(self).values()]
        stem = self.dataset
        if self.dataset != "digits" and (folder := self.folder) is not None:
            stem = folder.resolve().name
            identity[1] = _list_files(folder)
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
        readable = "".join(c if c.isalnum() else "-" for c in stem)[:40]
        return f"{readable}-{digest}"


def _list_files(folder: Path) -> list[tuple[str, int, int]]:
    """Relative path, size and time of every file below a folder, sorted."""
    files = []
    try:
        for parent, _, names in os.walk(folder):
            for name in names:
                path = f"{parent}{os.sep}{name}"
                stat = os.stat(path)  # noqa: PTH116 (large image folders: 5 times faster)
                files.append((os.path.relpath(path, folder), stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    if not files:
        raise DataError(f"data folder {str(folder)!r} is empty")
    return sorted(files)


def _unwritable(root: Path, error: OSError) -> DataError:
    reason = error.strerror or str(error)
    return DataError(
        f"cannot write the data cache {root}: {reason}; set NMOE_CACHE to a folder you may write to"
    )


def _remove_remains(root: Path) -> None:
    """Delete folders that killed processes left behind, once they are a day old."""
    for folder in root.glob(".*-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > 24 * 3600:
                shutil.rmtree(folder, ignore_errors=True)


def _open_entry(entry: Path, name: str) -> ImageData | None:
    """Open a cache entry; None if it is absent, half written or does not match its description."""
    try:
        meta = json.loads((entry / "meta.json").read_bytes())
        splits = []
        for split in ("train", "test"):
            images = np.load(entry / f"{split}-images.npy", mmap_mode="r", allow_pickle=False)
            labels = np.load(entry / f"{split}-labels.npy", allow_pickle=False)
            if list(images.shape) != meta["shapes"][split] or images.dtype != np.uint8:
                return None
            if labels.shape != images.shape[:1] or labels.dtype != np.int64:
                return None
            splits.append(Split(images, labels))
        train, test = splits
        return ImageData(name, train, test, tuple(meta["class_names"]), meta["fingerprint"])
    except (OSError, EOFError, KeyError, TypeError, ValueError):
        return None


def _install(building: Path, entry: Path, name: str) -> None:
    """Rename a finished folder to its place, unless another process was there first."""
    for _ in range(10):
        try:
            building.rename(entry)
            return
        except OSError:
            if not entry.exists():
                raise
        if _open_entry(entry, name) is not None:
            return
        damaged = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".damaged-"))
        with contextlib.suppress(FileNotFoundError):  # another process moved it away
            entry.rename(damaged / "entry")
        shutil.rmtree(damaged, ignore_errors=True)
    raise DataError(f"cannot replace the damaged data cache entry {entry}; delete it")


@dataclass(frozen=True)
class _Raw:
    """A split before decoding: ``read(mode)`` yields uint8 images [H, W, channels] in order."""

    name: str
    labels: npt.NDArray[np.int64]
    read: Callable[[str], Iterator[npt.NDArray[np.uint8]]]


class _ColourFoundError(Exception):
    """A colour image turned up among grey ones: decode all as RGB."""


def _decode(request: _Request, building: Path, progress: Progress) -> None:
    """Write the arrays and, last, their description into ``building``."""
    if request.dataset == "digits":
        raws, class_names = _read_digits()
    else:
        raws, class_names = _read_hugging_face(request, building / "arrow")
    if len(class_names) < 2 or len(np.unique(raws[0].labels)) < 2:
        raise DataError(f"data set {request.dataset!r} has fewer than 2 classes in its train split")
    try:
        splits = _write_images(building, raws, "L", progress)
    except _ColourFoundError:
        splits = _write_images(building, raws, "RGB", progress)
    if len(splits) == 1:
        splits = _divide(building, splits[0], numpy_stream(request.seed, "test-split"))
    digest = hashlib.sha256()
    for name, split in zip(("train", "test"), splits, strict=True):
        np.save(building / f"{name}-labels.npy", split.labels)
        digest.update(split.labels.data)
        digest.update(split.images.data)
    meta = {
        "shapes": {"train": splits[0].images.shape, "test": splits[1].images.shape},
        "class_names": class_names,
        "fingerprint": digest.hexdigest(),
    }
    (building / "meta.json").write_text(json.dumps(meta, indent=1))
    shutil.rmtree(building / "arrow", ignore_errors=True)
    for path in building.glob("*.*"):
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _write_images(
    building: Path, raws: Sequence[_Raw], mode: str, progress: Progress
) -> list[Split]:
    """Decode every split into an .npy file; ``mode`` is "L" (1 channel) or "RGB" (3)."""
    total, done = sum(len(raw.labels) for raw in raws), 0
    splits: list[Split] = []
    first: tuple[int, ...] = ()
    for raw, name in zip(raws, ("train", "test"), strict=False):
        target: npt.NDArray[np.uint8] | None = None
        for row, image in enumerate(raw.read(mode)):
            first = first or image.shape
            if image.shape != first:
                raise DataError(
                    f"images differ in size: {first[1]}x{first[0]} in row 0 of the train split, "
                    f"{image.shape[1]}x{image.shape[0]} in row {row} of the {raw.name} split"
                )
            if target is None:
                target = _create(building / f"{name}-images.npy", (len(raw.labels), *first))
            target[row] = image
            done += 1
            if done % 512 == 0 or done == total:
                progress(done, total)
        if target is None:
            raise DataError(f"the {raw.name} split has no images")
        splits.append(Split(target, raw.labels))
    return splits


def _create(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _divide(building: Path, whole: Split, rng: np.random.Generator) -> list[Split]:
    """Put a fifth of every class, in the original order, into a test split."""
    tested: list[int] = []
    for cls in np.unique(whole.labels):
        members = rng.permutation(np.flatnonzero(whole.labels == cls))
        tested.extend(members[: round(_TEST_SHARE * len(members))])
    in_test = np.zeros(len(whole), dtype=bool)
    in_test[tested] = True
    if not in_test.any():
        raise DataError(f"{len(whole)} images are too few to set a test split of 20 % aside")
    (building / "train-images.npy").rename(building / "all-images.npy")
    splits = []
    for name, chosen in (("train", ~in_test), ("test", in_test)):
        rows = np.flatnonzero(chosen)
        images = _create(building / f"{name}-images.npy", (len(rows), *whole.images.shape[1:]))
        for start in range(0, len(rows), 4096):
            images[start : start + 4096] = whole.images[rows[start : start + 4096]]
        splits.append(Split(images, whole.labels[rows]))
    (building / "all-images.npy").unlink()
    return splits


def _read_digits() -> tuple[list[_Raw], list[str]]:
    """The digits of scikit-learn, their 0..16 greys scaled to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    raw = _Raw("train", digits.target.astype(np.int64), lambda mode: iter(images))
    return [raw], [str(name) for name in digits.target_names]


def _read_hugging_face(request: _Request, arrow_dir: Path) -> tuple[list[_Raw], list[str]]:
    """Read labels and prepare images with ``datasets``, from a folder or the hub."""
    tables = _load_tables(request, arrow_dir)
    if request.train_split not in tables:
        raise DataError(
            f"data set {request.dataset!r} has no split {request.train_split!r}; "
            f"it has {', '.join(tables)}"
        )
    names = [request.train_split]
    if request.test_split in tables:
        names.append(request.test_split)
    elif request.test_split not in ("", "test"):
        raise DataError(
            f"data set {request.dataset!r} has no split {request.test_split!r}; "
            f"it has {', '.join(tables)}"
        )
    features = tables[names[0]].features
    image_column = _find_column(request.dataset, features, request.image_column, "image")
    label_column = _find_column(request.dataset, features, request.label_column, "label")
    for name in names:
        missing = {image_column, label_column} - set(tables[name].column_names)
        if missing:
            raise DataError(f"the {name} split has no column {sorted(missing)[0]!r}")
    labels, class_names = _encode_labels([tables[name] for name in names], names, label_column)
    raws = [
        _Raw(name, codes, _reader(tables[name], image_column, name))
        for name, codes in zip(names, labels, strict=True)
    ]
    return raws, class_names


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Without the bars and log lines of ``datasets``: progress and errors are reported here."""
    import datasets

    shown, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()


def _load_tables(request: _Request, arrow_dir: Path) -> dict[str, Any]:
    """Splits by name, as ``datasets.Dataset``."""
    import datasets

    folder = request.folder
    saved = folder is not None and any(
        (folder / name).is_file() for name in ("dataset_dict.json", "state.json")
    )
    try:
        with _quiet_datasets():
            if saved:
                loaded = datasets.load_from_disk(str(folder))
            elif folder is not None:
                loaded = datasets.load_dataset(str(folder.resolve()), cache_dir=str(arrow_dir))
            else:
                loaded = datasets.load_dataset(request.dataset)
    except Exception as error:  # any reader of any format may fail in its own way
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        if folder is not None:
            raise DataError(f"data folder {request.dataset!r} cannot be read: {reason}") from error
        raise DataError(
            f"data set {request.dataset!r} is not a local folder and cannot be loaded from the "
            f"hub: {reason}"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {request.train_split: loaded}


def _find_column(dataset: str, features: Any, wanted: str, kind: str) -> str:
    """The configured column, else the one of the right type, else one with a common name."""
    import datasets

    columns: list[str] = list(features)
    found = ", ".join(columns)
    begin, hint = f"data set {dataset!r}:", f"set data.{kind}-column ({kind}_column)"
    if wanted:
        if wanted not in columns:
            raise DataError(f"{begin} no {kind} column {wanted!r}; the columns are {found}")
        return wanted
    feature = datasets.Image if kind == "image" else datasets.ClassLabel
    typed = [name for name in columns if isinstance(features[name], feature)]
    for name in _IMAGE_NAMES if kind == "image" else _LABEL_NAMES:
        if name in (typed or columns):
            return name
    if len(typed) > 1:
        raise DataError(f"{begin} several {kind} columns: {', '.join(typed)}; {hint} to one")
    if not typed:
        raise DataError(f"{begin} no {kind} column found; {hint} to one of {found}")
    return typed[0]


def _encode_labels(
    tables: Sequence[Any], names: Sequence[str], column: str
) -> tuple[list[npt.NDArray[np.int64]], list[str]]:
    """Class codes of every split, and the class names (sorted unless the data orders them)."""
    values = [list(table.with_format(None)[column]) for table in tables]
    known = [getattr(table.features[column], "names", None) for table in tables]
    if known[-1] != known[0]:
        raise DataError(
            f"class names of column {column!r} differ: {known[0]} in the {names[0]} split, "
            f"{known[-1]} in the {names[-1]} split"
        )
    for name, split in zip(names, values, strict=True):
        for row, value in enumerate(split):
            if value is None or (known[0] is not None and value == -1):
                raise DataError(f"row {row} of the {name} split has no label in column {column!r}")
            if not isinstance(value, int | str):
                raise DataError(
                    f"label column {column!r} holds {type(value).__name__} values; "
                    f"whole numbers, text or class labels are needed"
                )
    if known[0] is not None:
        return [np.array(split, dtype=np.int64) for split in values], list(known[0])
    classes = sorted(set().union(*values))
    codes = {value: code for code, value in enumerate(classes)}
    arrays = [np.array([codes[value] for value in split], dtype=np.int64) for split in values]
    return arrays, [str(value) for value in classes]


def _reader(
    table: Any, column: str, split: str
) -> Callable[[str], Iterator[npt.NDArray[np.uint8]]]:
    """A function that decodes a split's images in order."""
    import datasets

    feature = datasets.Image(decode=False)
    try:
        cells = table.select_columns([column]).cast_column(column, feature).with_format(None)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"image column {column!r} holds {table.features[column]}, which are not images"
        ) from error

    def read(mode: str) -> Iterator[npt.NDArray[np.uint8]]:
        decoder = datasets.Image()
        for row, cell in enumerate(cells):
            try:
                image = decoder.decode_example(cell[column])
                found = image.mode
                array = np.asarray(image if found == mode else image.convert(mode), np.uint8)
            except Exception as error:  # decoders raise anything on damaged bytes
                raise DataError(
                    f"row {row} of the {split} split is not a readable image: {error}"
                ) from error
            if found not in _GREY_MODES | _COLOUR_MODES:
                raise DataError(
                    f"row {row} of the {split} split has mode {found!r}; "
                    f"8-bit grey or colour images are needed"
                )
            if mode == "L" and found in _COLOUR_MODES:
                raise _ColourFoundError
            yield array.reshape(*array.shape[:2], -1)

    return read
