"""What a frozen backbone says to images, computed once for all runs, seeds and studies.

A file in the data cache holds a row for every image of a split: its raw latent, or what adapters
go on from, in float16, and a check sum. Rows are written one by one in any order, by as many
processes as there are; a row whose check sum does not match was never written, or not to its end,
and is computed. So nothing is locked and a process may be killed at any time.
"""

import logging
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nmoe_flower.clients.device.device import Device
from nmoe_flower.data import cache_root, normalise
from nmoe_flower.errors import ConfigError
from nmoe_flower.models import AdaptedExtractor, PretrainedExtractor
from nmoe_flower.training import autocast

__all__ = ["LatentFile", "lower_rows", "raw_latents"]

_log = logging.getLogger(__name__)
BATCH = 50  # images of a pass; always as many, so that a latent does not depend on its company
_LARGEST = float(np.finfo(np.float16).max)

Rows = npt.NDArray[np.int64]
Halves = npt.NDArray[np.float16]


class LatentFile:
    """Latents of a split by row, float16; those that are missing or damaged are told.

    Attributes:
        path: Where they are.
    """

    def __init__(self, path: Path, *, rows: int, width: int) -> None:
        """Open the file, or make it with no row written.

        Args:
            path: Where the file is to be; a missing folder is made.
            rows: Images of the split.
            width: Numbers of a latent, D.

        Raises:
            OSError: It cannot be written.
        """
        self.path = path
        self._form = np.dtype([("latent", "<f2", width), ("check", "<u4")])
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rows * self._form.itemsize
        if path.exists() and path.stat().st_size not in (0, size):  # cut off by somebody
            path.unlink(missing_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._file, size)  # holes, which are read as zeros
        self._rows = np.memmap(path, self._form, mode="r", shape=(rows,))

    def get(self, rows: Rows) -> tuple[Halves, npt.NDArray[np.bool_]]:
        """Latents [n, D] of rows [n], and which of them are there, [n]."""
        found = self._rows[rows]
        latents = np.ascontiguousarray(found["latent"])
        sums = np.fromiter(map(zlib.crc32, latents), np.uint32, len(latents))
        return latents, sums == found["check"]

    def put(self, rows: Rows, latents: Halves) -> None:
        """Write latents [n, D] of rows [n].

        Raises:
            OSError: The disk refuses.
        """
        packed = np.empty(len(rows), self._form)
        packed["latent"] = latents
        packed["check"] = [zlib.crc32(latent) for latent in np.ascontiguousarray(latents)]
        for row, record in zip(rows.tolist(), packed, strict=True):
            os.pwrite(self._file, record.tobytes(), row * self._form.itemsize)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


@dataclass(frozen=True)
class _Source:
    """What is kept of images.

    Attributes:
        name: Folder in the cache; it stands for what decides a row, and for no more.
        width: Numbers of a row.
        compute: Images [B, C, H, W], normalised, to rows [B, width].
    """

    name: str
    width: int
    compute: Callable[[Tensor], Tensor]


def raw_latents(
    device: Device, extractor: PretrainedExtractor, images: np.ndarray, rows: Rows
) -> npt.NDArray[np.float32]:
    """What the backbone says to rows of a split of the device's data: [n, D].

    They are taken from the data cache, and what is not there is computed and kept. A cache that
    cannot be written is told in the log, and does without.

    Raises:
        ConfigError: A latent is not finite, or too large for float16.
    """
    name = extractor.backbone.digest.hex()[:32]
    source = _Source(name, extractor.backbone.latent_dim, extractor.raw)  # before components
    return _kept_rows(device, source, images, rows)


def lower_rows(
    device: Device,
    extractor: AdaptedExtractor,
    images: np.ndarray,
    rows: Rows,
    *,
    mirrored: bool = False,
) -> npt.NDArray[np.float32]:
    """What lies below the adapters says to rows of a split, or to their mirror images: [n, width].

    It is kept, and raises, as `raw_latents`.
    """
    halves = extractor.halves

    def compute(batch: Tensor) -> Tensor:
        return halves.lower(batch.flip(-1) if mirrored else batch)

    name = f"{halves.digest.hex()[:32]}{'-mirrored' if mirrored else ''}"
    return _kept_rows(device, _Source(name, halves.width, compute), images, rows)


def _kept_rows(
    device: Device, source: _Source, images: np.ndarray, rows: Rows
) -> npt.NDArray[np.float32]:
    latents = np.zeros((len(rows), source.width), np.float16)
    file = _file_of(device, source, images)
    todo = np.arange(len(rows))
    if file is not None:
        latents, there = file.get(rows)
        todo = np.flatnonzero(~there)
        # Clients of a machine share tests: each begins at a place of its own.
        todo = np.roll(todo, -(len(todo) * device.partition // device.num_clients))
    waiting = todo[:0]
    for start in range(0, len(todo), BATCH):
        chosen = todo[start : start + BATCH]
        if file is not None:  # another process may have been here
            latents[chosen], there = file.get(rows[chosen])
            chosen = chosen[~there]
        waiting = np.concatenate([waiting, chosen])
        last = start + BATCH >= len(todo)
        while len(waiting) >= BATCH or (last and len(waiting)):
            batch, waiting = waiting[:BATCH], waiting[BATCH:]
            latents[batch] = _computed(device, source, images[rows[batch]])
            file = _kept(file, rows[batch], latents[batch])
    return latents.astype(np.float32)


@torch.inference_mode()
def _computed(device: Device, source: _Source, images: np.ndarray) -> Halves:
    """One pass over up to `BATCH` images, filled up with black ones."""
    count = len(images)
    if count < BATCH:
        images = np.concatenate(
            [images, np.zeros((BATCH - count, *images.shape[1:]), images.dtype)]
        )
    with autocast(device.bf16, device.torch_device):
        found = source.compute(normalise(images).to(device.torch_device))[:count].float().cpu()
    largest = float(found.abs().max())
    if not largest <= _LARGEST:
        raise ConfigError(
            f"extractor.backbone = {device.config.extractor.backbone}: a latent has the number "
            f"{largest:g}; allowed: finite ones up to {_LARGEST:g}: set another extractor.cut"
        )
    return found.numpy().astype(np.float16)


def _kept(file: LatentFile | None, rows: Rows, latents: Halves) -> LatentFile | None:
    """Write latents; None from now on if the disk refuses."""
    if file is not None:
        try:
            file.put(rows, latents)
        except OSError as error:
            _tell(str(file.path), error.strerror or str(error))
            return None
    return file


def _file_of(device: Device, source: _Source, images: np.ndarray) -> LatentFile | None:
    """Where latents of these images are kept; None for images that are no split, or nowhere."""
    splits = {"train": device.data.train, "test": device.data.test}
    name = next((name for name, split in splits.items() if split.images is images), None)
    if name is None:
        return None
    precision = "bf16" if device.bf16 else "float32"
    kind = device.torch_device.type
    root = cache_root(device.config.data.cache_dir or None) / "latents"
    folder = root / f"{source.name}-{precision}-{kind}"
    path = folder / f"{device.data.images_fingerprint[:32]}-{name}.rows"
    try:
        return LatentFile(path, rows=len(images), width=source.width)
    except OSError as error:
        _tell(str(path), error.strerror or str(error))
        return None


@lru_cache(maxsize=64)  # once for each reason
def _tell(path: str, reason: str) -> None:
    _log.warning("latents are not kept, and are computed again next time: %s: %s", path, reason)
