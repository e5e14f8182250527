"""Deal images out among devices that see domains of their own, or call classes by other names.

What domains show is kept in the data cache, an entry for each way of dealing. Names of classes are
changed when it is opened: images stay the same ones, and so does what was computed from them.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.catalogue import DOMAINS
from nmoe_flower.data.cache import build_entry, cache_root, open_entry, save_entry
from nmoe_flower.data.domains import domain_of, seen_in
from nmoe_flower.data.images import ImageData, Split
from nmoe_flower.errors import DataError
from nmoe_flower.seeds import numpy_stream

__all__ = ["in_domains"]

Codes = npt.NDArray[np.int64]

_FORMAT = 2
_BLOCK = 8 << 20  # bytes of images that a domain is shown at once


def in_domains(
    data: ImageData,
    *,
    domains: Sequence[str],
    renamings: int = 0,
    num_clients: int = 0,
    seed: int = 0,
    cache_dir: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageData:
    """The same samples, each of them one client's: seen in its domain, under its names of classes.

    Every training and every test sample is dealt to one client at random, every class alike. Client
    i sees its samples in the i-th domain and calls class c by permutation i mod ``renamings``; the
    first permutation changes nothing.

    Args:
        data: What is dealt; whom it belongs to already is forgotten.
        domains: Names of the clients' domains; empty: ``num_clients`` see samples as they are.
        renamings: How many ways there are to call the classes; 0: one.
        num_clients: How many clients there are without domains.
        seed: Seed of who gets what, and of the permutations.
        cache_dir: Folder of the data cache; None: ``cache_root`` says where it is.
        progress: Called with (images shown, images in all).

    Raises:
        ConfigError: A domain cannot show such images.
        DataError: The classes have fewer permutations, or the cache cannot be written.
    """
    names = tuple(domains) or tuple(map(str, range(num_clients)))
    orders = _orders(data.num_classes, renamings, seed)
    splits = []
    for part, split in (("train", data.train), ("test", data.test)):
        rng = numpy_stream(seed, "domains", part)
        splits.append(replace(split, clients=_dealt(split.labels, len(names), rng)))
    if domains:
        identity = [_FORMAT, data.fingerprint, [*map(_told_apart, domains)], seed]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
        entry = cache_root(cache_dir) / "images" / f"domains-{digest}"
        about = {
            "class_names": data.class_names,
            "client_names": names,
            "beside": dict(data.beside),
        }
        dealt = open_entry(entry, data.name) or build_entry(
            entry, data.name, lambda building: _show(building, splits, about, progress)
        )
    else:
        told = hashlib.sha256(f"{data.fingerprint} {len(names)} {seed}".encode()).hexdigest()
        dealt = replace(
            data,
            train=splits[0],
            test=splits[1],
            client_names=names,
            fingerprint=told,
            unnamed=data.images_fingerprint,
        )
    return _renamed(dealt, orders) if renamings else dealt


def _dealt(labels: Codes, clients: int, rng: np.random.Generator) -> Codes:
    """Who gets each sample, int64 [N]: class after class in turn, so that all get alike."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    found = np.empty(len(labels), np.int64)
    found[order] = np.arange(len(labels)) % clients
    return found


def _told_apart(domain: str) -> list[str]:
    """What tells a domain from another one: its name, and of one's own the code beside it."""
    if domain in DOMAINS:
        return [domain]
    file = inspect.getsourcefile(inspect.unwrap(domain_of(domain)))
    code = Path(file).read_bytes() if file else b""
    return [domain, hashlib.sha256(code).hexdigest()]


def _show(
    building: Path,
    splits: Sequence[Split],
    about: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write an entry in which every client's images are seen in its domain."""
    total, done = sum(map(len, splits)), 0
    shown = []
    for part, split in zip(("train", "test"), splits, strict=True):
        images = np.lib.format.open_memmap(
            building / f"{part}-images.npy", mode="w+", dtype=np.uint8, shape=split.images.shape
        )
        for domain, rows in _blocks(split, about["client_names"]):
            images[rows] = seen_in(domain, np.asarray(split.images[rows], np.uint8))
            done += len(rows)
            if progress is not None:
                progress(done, total)
        shown.append(replace(split, images=images))
    save_entry(building, shown, about)


def _blocks(split: Split, domains: Sequence[str]) -> Iterator[tuple[str, Codes]]:
    """The rows of every domain, as many at a time as memory is meant for."""
    size = max(1, _BLOCK // math.prod(split.images.shape[1:]))
    for place, domain in enumerate(domains):
        rows = np.flatnonzero(split.clients == place)
        for start in range(0, len(rows), size):
            yield domain, rows[start : start + size]


def _orders(classes: int, renamings: int, seed: int) -> Codes:
    """So many different permutations of the classes, [renamings, C]; the first changes nothing.

    Raises:
        DataError: There are not so many.
    """
    if renamings > math.factorial(min(classes, 20)):
        raise DataError(
            f"data.renamings is {renamings}: {classes} classes have {math.factorial(classes)} "
            f"orders; allowed: 0 to {math.factorial(classes)}"
        )
    rng = numpy_stream(seed, "renamings")
    found = [tuple(range(classes))]
    while len(found) < renamings:
        order = tuple(rng.permutation(classes).tolist())
        if order not in found:
            found.append(order)
    return np.array(found[:renamings], np.int64).reshape(renamings, classes)


def _renamed(data: ImageData, orders: Codes) -> ImageData:
    """The same images under every client's own names of the classes, orders [k, C]."""
    splits = []
    for split in (data.train, data.test):
        assert split.clients is not None  # they were dealt
        splits.append(
            replace(split, labels=orders[split.clients % len(orders), np.asarray(split.labels)])
        )
    told = hashlib.sha256(data.fingerprint.encode() + orders.tobytes()).hexdigest()
    return replace(
        data,
        train=splits[0],
        test=splits[1],
        fingerprint=told,
        unnamed=data.images_fingerprint,
    )
