"""Where decoded images lie, and how an entry is opened and put there whole."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nmoe_flower.backbone_files import cache_root
from nmoe_flower.data.images import Features, ImageData, Split, Tokenised
from nmoe_flower.errors import DataError
from nmoe_flower.files import read_json

__all__ = [
    "build_entry",
    "cache_root",
    "open_entry",
    "put_entry",
    "save_entry",
    "unwritable",
]

Found = TypeVar("Found")


def open_entry(entry: Path, name: str) -> ImageData | None:
    """Open a cache entry; None if it is absent, half written or does not match its description."""
    try:
        meta = read_json(entry / "meta.json")
        splits = []
        for split in ("train", "test"):
            images = np.load(entry / f"{split}-images.npy", mmap_mode="r", allow_pickle=False)
            labels = np.load(entry / f"{split}-labels.npy", allow_pickle=False)
            dtype = np.float32 if {"features", "tokenised"} & set(meta) else np.uint8
            if list(images.shape) != meta["shapes"][split] or images.dtype != dtype:
                return None
            if not _are_codes(labels, images.shape[:1], len(meta["class_names"])):
                return None
            clients = None
            if meta["client_names"]:
                clients = np.load(entry / f"{split}-clients.npy", allow_pickle=False)
                if not _are_codes(clients, labels.shape, len(meta["client_names"])):
                    return None
            splits.append(Split(images, labels, clients))
        train, test = splits
        return ImageData(
            name,
            train,
            test,
            class_names=tuple(meta["class_names"]),
            fingerprint=meta["fingerprint"],
            client_names=tuple(meta["client_names"]),
            features=_features(meta["features"]) if "features" in meta else None,
            beside=meta.get("beside", {}),  # an entry of an older version has none
            tokenised=Tokenised(**meta["tokenised"]) if "tokenised" in meta else None,
        )
    except (OSError, EOFError, KeyError, TypeError, ValueError):
        return None


def _are_codes(values: npt.NDArray[Any], shape: tuple[int, ...], names: int) -> bool:
    """Whether an array holds a place in a list of so many names for every sample."""
    if values.shape != shape or values.dtype != np.int64:
        return False
    return not values.size or bool(values.min() >= 0 and values.max() < names)


def _features(values: Mapping[str, Any]) -> Features:
    return Features(**{key: tuple(values[key]) for key in ("names", "means", "deviations")})


def build_entry(entry: Path, name: str, write: Callable[[Path], None]) -> ImageData:
    """Let ``write`` fill a folder with images, give it the name ``entry`` and open it.

    Raises:
        DataError: The cache cannot be written; or ``write`` refuses the data.
    """
    return put_entry(entry, write, lambda folder: open_entry(folder, name))


def put_entry(
    entry: Path, write: Callable[[Path], None], opened: Callable[[Path], Found | None]
) -> Found:
    """Let ``write`` fill a folder, give it the name ``entry`` and open it.

    Args:
        entry: The folder that is to be there.
        write: Fills a folder that is given that name then.
        opened: What an entry holds; None if it is absent or damaged.

    Raises:
        DataError: The cache cannot be written; or ``write`` refuses the data.
    """
    root = entry.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_remains(root)
        building = Path(tempfile.mkdtemp(dir=root, prefix=".building-"))
    except OSError as error:
        raise unwritable(root, error.strerror or str(error)) from error
    try:
        write(building)
        _install(building, entry, opened)
    except OSError as error:
        raise unwritable(root, error.strerror or str(error)) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    found = opened(entry)
    if found is None:
        raise DataError(f"the data cache entry {entry} is damaged right after it was written")
    return found


def save_entry(building: Path, splits: Sequence[Split], about: Mapping[str, Any]) -> None:
    """Complete a folder that has both splits' images: labels, clients and, last, the description.

    Args:
        building: The folder.
        splits: The train and the test split.
        about: Names of classes and clients, and what else `open_entry` reads.
    """
    digest = hashlib.sha256()
    for name, split in zip(("train", "test"), splits, strict=True):
        np.save(building / f"{name}-labels.npy", split.labels)
        digest.update(split.labels.data)
        digest.update(split.images.data)
        if split.clients is not None:
            np.save(building / f"{name}-clients.npy", split.clients)
            digest.update(split.clients.data)
    meta = {
        "shapes": {"train": splits[0].images.shape, "test": splits[1].images.shape},
        **about,
        "fingerprint": digest.hexdigest(),
    }
    (building / "meta.json").write_text(json.dumps(meta, indent=1))
    for path in building.glob("*.*"):
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _install(building: Path, entry: Path, opened: Callable[[Path], Found | None]) -> None:
    """Rename a finished folder to its place, unless another process was there first."""
    for _ in range(10):
        try:
            building.rename(entry)
            return
        except OSError:
            if not entry.exists():
                raise
        if opened(entry) is not None:
            return
        damaged = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".damaged-"))
        with contextlib.suppress(FileNotFoundError):  # another process moved it away
            entry.rename(damaged / "entry")
        shutil.rmtree(damaged, ignore_errors=True)
    raise DataError(f"cannot replace the damaged data cache entry {entry}; delete it")


def _remove_remains(root: Path) -> None:
    """Delete folders that killed processes left behind, once they are a day old."""
    for folder in root.glob(".*-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > 24 * 3600:
                shutil.rmtree(folder, ignore_errors=True)


def unwritable(root: Path, reason: str) -> DataError:
    """The error to raise when the folder ``root`` of the cache cannot be written."""
    return DataError(
        f"cannot write the data cache {root}: {reason}; set NMOE_CACHE to a folder you may write to"
    )
