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
from nmoe_flower.data.request import Request
from nmoe_flower.data.sources import ColourFoundError, RawSplit, read_digits
from nmoe_flower.errors import DataError
from nmoe_flower.seeds import numpy_stream

__all__ = ["Progress", "decode"]

Progress = Callable[[int, int], None]

_TEST_SHARE = 0.2


def decode(request: Request, building: Path, progress: Progress) -> None:
    """Write the arrays and, last, their description into ``building``."""
    if request.dataset == "digits":
        raws, class_names = read_digits()
    else:
        found = read_class_folders(request) or read_hugging_face(request, building / "arrow")
        raws, class_names = found
    if len(class_names) < 2 or len(np.unique(raws[0].labels)) < 2:
        raise DataError(f"data set {request.dataset!r} has fewer than 2 classes in its train split")
    try:
        splits = _write_images(building, raws, "L", progress)
    except ColourFoundError:
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
    building: Path, raws: Sequence[RawSplit], mode: str, progress: Progress
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
