"""Decode a data set's images, once, into arrays that can be mapped into memory."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.class_folders import read_class_folders
from nmoe_flower.data.hugging_face import read_hugging_face
from nmoe_flower.data.images import Split
from nmoe_flower.data.pixels import fit_pixels
from nmoe_flower.data.request import Request
from nmoe_flower.data.sources import ColourFoundError, RawSplit, read_digits
from nmoe_flower.errors import DataError
from nmoe_flower.seeds import numpy_stream

__all__ = ["Progress", "decode"]

Progress = Callable[[int, int], None]
Codes = npt.NDArray[np.int64]

_TEST_SHARE = 0.2


def decode(request: Request, building: Path, progress: Progress) -> None:
    """Write the arrays and, last, their description into ``building``."""
    raws, class_names = _read(request, building)
    if len(class_names) < 2 or len(np.unique(raws[0].labels)) < 2:
        raise DataError(f"data set {request.dataset!r} has fewer than 2 classes in its train split")
    clients, client_names = _encode_clients(raws)
    try:
        splits = _write_images(building, request, raws, clients, "L", progress)
    except ColourFoundError:
        splits = _write_images(building, request, raws, clients, "RGB", progress)
    if len(splits) == 1:
        splits = _divide(building, splits[0], numpy_stream(request.seed, "test-split"))
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
        "class_names": class_names,
        "client_names": client_names,
        "fingerprint": digest.hexdigest(),
    }
    (building / "meta.json").write_text(json.dumps(meta, indent=1))
    shutil.rmtree(building / "arrow", ignore_errors=True)
    for path in building.glob("*.*"):
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _read(request: Request, building: Path) -> tuple[list[RawSplit], list[str]]:
    """The splits before decoding, and the class names."""
    digits = request.dataset == "digits"
    if digits and not request.by_client:
        return read_digits()
    if not (digits or request.client_column) and (found := read_class_folders(request)) is not None:
        return found
    if digits or (request.by_client and not request.client_column):
        raise DataError(
            f"data set {request.dataset!r} does not say who its images belong to: set "
            "data.partition-column, or have a folder for every client: CLIENT/CLASS/*.png, "
            "train/CLIENT/CLASS/*.png or CLIENT/train/CLASS/*.png"
        )
    return read_hugging_face(request, building / "arrow")


def _encode_clients(raws: Sequence[RawSplit]) -> tuple[list[Codes | None], list[str]]:
    """The number of each row's client, by split, and the sorted names of all clients."""
    if any(raw.clients is None for raw in raws):
        return [None] * len(raws), []
    names = sorted(set().union(*(raw.clients or () for raw in raws)))
    codes = {name: code for code, name in enumerate(names)}
    return [np.array([codes[c] for c in raw.clients or ()], np.int64) for raw in raws], names


def _write_images(
    building: Path,
    request: Request,
    raws: Sequence[RawSplit],
    clients: Sequence[Codes | None],
    mode: str,
    progress: Progress,
) -> list[Split]:
    """Decode every split into an .npy file; ``mode`` is "L" (1 channel) or "RGB" (3)."""
    total, done = sum(len(raw.labels) for raw in raws), 0
    splits: list[Split] = []
    first: tuple[int, ...] = ()
    for raw, owners, name in zip(raws, clients, ("train", "test"), strict=False):
        target: npt.NDArray[np.uint8] | None = None
        for row, found in enumerate(raw.read(mode)):
            image = fit_pixels(found, request.size, request.fit) if request.size else found
            first = first or image.shape
            if image.shape != first:
                raise DataError(
                    f"images differ in size: {first[1]}x{first[0]} in {raws[0].place(0)}, "
                    f"{image.shape[1]}x{image.shape[0]} in {raw.place(row)}; "
                    f"data.size = {first[1]}x{first[0]} (width x height) brings all to one"
                )
            if target is None:
                target = _create(building / f"{name}-images.npy", (len(raw.labels), *first))
            target[row] = image
            done += 1
            if done % 512 == 0 or done == total:
                progress(done, total)
        if target is None:
            raise DataError(f"the {raw.name} split has no images")
        splits.append(Split(target, raw.labels, owners))
    return splits


def _create(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _divide(building: Path, whole: Split, rng: np.random.Generator) -> list[Split]:
    """Put a fifth of every class, in the original order, into a test split.

    If rows belong to clients: a fifth of every client's, every class alike as far as it goes.
    """
    in_test = np.zeros(len(whole), dtype=bool)
    if whole.clients is None:
        for cls in np.unique(whole.labels):
            members = rng.permutation(np.flatnonzero(whole.labels == cls))
            in_test[members[: round(_TEST_SHARE * len(members))]] = True
    else:
        for client in np.unique(whole.clients):
            members = rng.permutation(np.flatnonzero(whole.clients == client))
            members = members[np.argsort(whole.labels[members], kind="stable")]
            count = round(_TEST_SHARE * len(members)) or int(len(members) > 1)
            places = (np.arange(count) + 0.5) * len(members) / max(count, 1)
            in_test[members[places.astype(np.int64)]] = True
    if not in_test.any():
        raise DataError(f"{len(whole)} images are too few to set a test split of 20 % aside")
    (building / "train-images.npy").rename(building / "all-images.npy")
    splits = []
    for name, chosen in (("train", ~in_test), ("test", in_test)):
        rows = np.flatnonzero(chosen)
        images = _create(building / f"{name}-images.npy", (len(rows), *whole.images.shape[1:]))
        for start in range(0, len(rows), 4096):
            images[start : start + 4096] = whole.images[rows[start : start + 4096]]
        owners = None if whole.clients is None else whole.clients[rows]
        splits.append(Split(images, whole.labels[rows], owners))
    (building / "all-images.npy").unlink()
    return splits
