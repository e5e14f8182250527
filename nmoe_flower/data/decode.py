"""Decode a data set, once, into arrays that can be mapped into memory."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.cache import save_entry
from nmoe_flower.data.class_folders import read_class_folders
from nmoe_flower.data.features import describe_features, read_features, standardise, tables_beside
from nmoe_flower.data.hugging_face import read_hugging_face
from nmoe_flower.data.images import Split
from nmoe_flower.data.pixels import fit_pixels
from nmoe_flower.data.request import ColourFoundError, DataRequest, RawSplit
from nmoe_flower.errors import DataError
from nmoe_flower.plurals import how_many
from nmoe_flower.seeds import numpy_stream

__all__ = ["OnDecoded", "check_classes", "decode_source", "divide_split", "encode_clients"]

OnDecoded = Callable[[int, int], None]
"""Called with (rows decoded, rows in all)."""
Codes = npt.NDArray[np.int64]

_TEST_SHARE = 0.2


def decode_source(request: DataRequest, building: Path, progress: OnDecoded) -> None:
    """Write the arrays and, last, their description into ``building``."""
    about: dict[str, Any]
    if request.kind == "features":
        splits, about = _decode_table(request, building)
        progress(sum(map(len, splits)), sum(map(len, splits)))
    else:
        splits, about = _decode_images(request, building, progress)
    shutil.rmtree(building / "arrow", ignore_errors=True)
    save_entry(building, splits, about)


def _decode_images(
    request: DataRequest, building: Path, progress: OnDecoded
) -> tuple[list[Split], dict[str, Any]]:
    raws, class_names = _read(request, building)
    check_classes(request, class_names, raws[0].labels)
    clients, client_names = encode_clients([raw.clients for raw in raws])
    try:
        splits = _write_images(building, request, raws, clients, "L", progress)
    except ColourFoundError:
        splits = _write_images(building, request, raws, clients, "RGB", progress)
    if len(splits) == 1:
        splits = divide_split(building, splits[0], numpy_stream(request.seed, "test-split"))
    return splits, {
        "class_names": class_names,
        "client_names": client_names,
        "beside": dict(raws[0].beside),
    }


def _decode_table(request: DataRequest, building: Path) -> tuple[list[Split], dict[str, Any]]:
    """The same for a table, standardised by its train split once that is known."""
    rows, class_names, names = read_features(request)
    check_classes(request, class_names, rows[0].labels)
    clients, client_names = encode_clients([split.clients for split in rows])
    splits = []
    for name, split, owners in zip(("train", "test"), rows, clients, strict=False):
        target = _create(building / f"{name}-images.npy", split.values.shape, np.float64)
        target[:] = split.values
        splits.append(Split(target, split.labels, owners))
    if len(splits) == 1:
        splits = divide_split(building, splits[0], numpy_stream(request.seed, "test-split"))
    features = describe_features(names, np.asarray(splits[0].images, np.float64), request)
    for place, name in enumerate(("train", "test")):
        scaled = standardise(np.array(splits[place].images, np.float64), features)
        path = building / f"{name}-images.npy"
        path.unlink()  # another file: the old one is still mapped
        np.save(path, scaled)
        splits[place] = replace(splits[place], images=scaled)
    return splits, {
        "class_names": class_names,
        "client_names": client_names,
        "features": asdict(features),
        "beside": tables_beside(request),
    }


def check_classes(request: DataRequest, class_names: Sequence[str], train: Codes) -> None:
    """Refuse data in which there is nothing to tell apart.

    Args:
        request: What was asked for.
        class_names: Names of the classes.
        train: Class codes of the train split.

    Raises:
        DataError: It has fewer than 2 classes.
    """
    if len(class_names) < 2 or len(np.unique(train)) < 2:
        raise DataError(f"data set {request.dataset!r} has fewer than 2 classes in its train split")


def _read(request: DataRequest, building: Path) -> tuple[list[RawSplit], list[str]]:
    """The splits before decoding, and the class names."""
    digits = request.dataset == "digits"
    if digits and not request.by_client:
        return _read_digits()
    if not (digits or request.client_column) and (found := read_class_folders(request)) is not None:
        return found
    if digits or (request.by_client and not request.client_column):
        raise DataError(
            f"data set {request.dataset!r} does not say who its images belong to: set "
            "data.partition-column, or have a folder for every client: CLIENT/CLASS/*.png, "
            "train/CLIENT/CLASS/*.png or CLIENT/train/CLASS/*.png"
        )
    return read_hugging_face(request, building / "arrow")


def encode_clients(
    owners: Sequence[Sequence[str] | None],
) -> tuple[list[Codes | None], list[str]]:
    """The number of each row's client, by split, and the sorted names of all clients.

    Args:
        owners: Who each row belongs to, by split; None: nobody asked.
    """
    known = [split for split in owners if split is not None]
    if len(known) < len(owners):
        return [None] * len(owners), []
    names = sorted(set().union(*known))
    codes = {name: code for code, name in enumerate(names)}
    return [np.array([codes[name] for name in split], np.int64) for split in known], names


def _write_images(
    building: Path,
    request: DataRequest,
    raws: Sequence[RawSplit],
    clients: Sequence[Codes | None],
    mode: str,
    progress: OnDecoded,
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


def _create(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> Any:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def divide_split(building: Path, whole: Split, rng: np.random.Generator) -> list[Split]:
    """Put a fifth of every class, in the original order, into a test split.

    If rows belong to clients: a fifth of every client's, every class alike as far as it goes.

    Args:
        building: The folder of the entry, whose ``train-images.npy`` holds the rows.
        whole: All rows.
        rng: Draws them.

    Raises:
        DataError: There are too few.
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
        raise DataError(
            f"{how_many(len(whole), 'sample is', 'samples are')} too few to set a test split of "
            "20 % aside"
        )
    (building / "train-images.npy").rename(building / "all-images.npy")
    splits = []
    for name, chosen in (("train", ~in_test), ("test", in_test)):
        rows = np.flatnonzero(chosen)
        path, shape = building / f"{name}-images.npy", (len(rows), *whole.images.shape[1:])
        images = _create(path, shape, whole.images.dtype)
        for start in range(0, len(rows), 4096):
            images[start : start + 4096] = whole.images[rows[start : start + 4096]]
        owners = None if whole.clients is None else whole.clients[rows]
        splits.append(Split(images, whole.labels[rows], owners))
    (building / "all-images.npy").unlink()
    return splits


def _read_digits() -> tuple[list[RawSplit], list[str]]:
    """The digits of scikit-learn, their 0..16 greys scaled to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    raw = RawSplit("train", labels, lambda mode: iter(images), lambda row: f"digit {row}")
    return [raw], [str(name) for name in digits.target_names]
