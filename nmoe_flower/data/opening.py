"""Open the data that is asked for, by arguments or a configuration: images, and who holds which.

Images are decoded once to uint8 arrays on disk, which every worker maps into memory. A warm cache
opens in milliseconds, without importing ``datasets``, scikit-learn or torch.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.cache import build_entry, cache_root, open_entry
from nmoe_flower.data.decode import OnDecoded, decode_source
from nmoe_flower.data.domains_dealt import in_domains
from nmoe_flower.data.images import Features, ImageData
from nmoe_flower.data.indices import ClientIndices
from nmoe_flower.data.partition import partition_clients
from nmoe_flower.data.pixels import Fit
from nmoe_flower.data.request import DataRequest
from nmoe_flower.data.schemes import largest_clients
from nmoe_flower.data.validation import from_training
from nmoe_flower.errors import ConfigError, DataError, NMoEError
from nmoe_flower.files import read_json

if TYPE_CHECKING:
    from nmoe_flower.config import Config, DataConfig

__all__ = [
    "configured_images",
    "configured_partition",
    "features_of",
    "known_fingerprint",
    "load_images",
    "names_of_clients",
    "own_images",
    "own_share",
    "with_features",
]


def load_images(
    dataset: str,
    *,
    cache_dir: Path | str | None = None,
    image_column: str = "",
    label_column: str = "",
    train_split: str = "train",
    test_split: str = "test",
    seed: int = 0,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    by_client: bool = False,
    client_column: str = "",
    kind: Literal["images", "features"] = "images",
    feature_columns: Sequence[str] = (),
    feature_means: Sequence[float] = (),
    feature_deviations: Sequence[float] = (),
    progress: OnDecoded | None = None,
) -> ImageData:
    """Open a data set, decoding it into the cache on first use.

    ``dataset`` is ``"digits"`` (1,797 grey images of 8 x 8 pixels that ship inside scikit-learn), a
    local folder of images (``train/CLASS/*.png``), any other folder that ``datasets`` can read
    (parquet, saved to disk), or a name on the Hugging Face hub. The last two need the extra
    ``data``. Data without a test split is split 80/20, stratified.

    A local folder is decoded again when a file below it, or below a folder it links to, changes; a
    hub name is not.

    Args:
        dataset: What to open.
        cache_dir: Folder of the data cache; None: ``cache_root`` says where it is.
        image_column: Column of the images; "" finds it by its type, then by common names.
        label_column: Column of the labels; "" finds it the same way.
        train_split: Name of the train split.
        test_split: Name of the test split; "" always takes the test images from the train split.
        seed: Seed of the 80/20 split only. Keep it fixed, so that all runs are tested alike.
        size: (width, height) that all images are brought to; None: they must have one size.
        fit: How: scaled until it covers and cut at the centre (``crop``), scaled until it fits and
            framed in black (``pad``), or each side on its own (``stretch``).
        by_client: Keep who each row belongs to, for the scheme ``natural``.
        client_column: The column that says so; "" takes the folder above the class.
        kind: ``features`` reads a table of numbers instead, see ``read_table`` for the files; its
            rows are standardised, and look like images of one pixel with a channel per column.
        feature_columns: Columns of a table; () takes all beside label and client, which must be
            numbers.
        feature_means: Subtracted from the columns; () takes the means of the train split.
        feature_deviations: What columns are divided by; () takes the deviations of the train split.
        progress: Called with (images decoded, images in all) while decoding.

    Raises:
        DataError: The data is missing, empty, unreadable, without labels, of mixed image sizes or
            has fewer than 2 classes; or the cache cannot be written.
    """
    request = DataRequest(
        dataset,
        image_column,
        label_column,
        train_split,
        test_split,
        seed,
        size,
        fit,
        by_client,
        client_column if by_client or kind == "features" else "",
        kind,
        tuple(feature_columns),
        tuple(feature_means),
        tuple(feature_deviations),
    )
    return _opened(request, cache_dir, progress)


def _opened(
    request: DataRequest, cache_dir: Path | str | None, progress: OnDecoded | None
) -> ImageData:
    entry = cache_root(cache_dir) / "images" / request.key()
    report = progress or (lambda done, total: None)
    return open_entry(entry, request.dataset) or build_entry(
        entry, request.dataset, lambda building: decode_source(request, building, report)
    )


def known_fingerprint(config: "Config") -> str:
    """The fingerprint of the data of ``config``, as far as the cache tells without opening them.

    Returns:
        Empty: not in the cache, or text, or dealt out in domains.
    """
    section = config.data
    if section.is_dealt or section.kind == "text":
        return ""
    root = cache_root(section.cache_dir or None) / "images"
    return _known_fingerprint(root, _request(config, section.dataset))


@lru_cache(maxsize=64)
def _known_fingerprint(root: Path, request: DataRequest) -> str:
    """Looked for once by a process: a folder may have very many files."""
    with suppress(NMoEError, OSError, KeyError, TypeError):
        return str(read_json(root / request.key() / "meta.json")["fingerprint"])
    return ""


def configured_images(config: "Config", *, progress: OnDecoded | None = None) -> ImageData:
    """Open the data set of ``config``, dealt out if devices see it in domains or rename classes.

    See ``load_images`` and ``in_domains``, also for what they raise.
    """
    section = config.data
    data = _load(config, section.dataset, progress)
    if not section.is_dealt:
        return data
    return in_domains(
        data,
        domains=section.domains,
        renamings=section.renamings,
        num_clients=section.shares,
        seed=config.run.seed,
        cache_dir=section.cache_dir or None,
        progress=progress,
    )


def with_features(config: "Config", data: ImageData) -> "Config":
    """The configuration with the columns and statistics that a table turned out to have.

    They go where the configuration goes, into every bundle for one: whoever asks later standardises
    the same columns in the same way.
    """
    if data.features is None:
        return config
    found = {
        "data.feature-columns": data.features.names,
        "data.feature-means": data.features.means,
        "data.feature-deviations": data.features.deviations,
    }
    return config.parse(config.flat() | found)


def features_of(section: "DataConfig") -> Features:
    """The columns and statistics of a resolved ``[data]``.

    Raises:
        ConfigError: They are not in it.
    """
    if not section.feature_means:
        raise ConfigError(
            "the configuration does not say which columns were trained on and how they were "
            "standardised: data.feature-columns, -means and -deviations are empty"
        )
    return Features(section.feature_columns, section.feature_means, section.feature_deviations)


def own_images(config: "Config", folder: str, *, classes: Sequence[str] = ()) -> ImageData:
    """Open a device's own folder, read as ``config`` says, with the federation's class numbers.

    Args:
        config: The run's configuration; its ``data.dataset`` is not looked at.
        folder: What only this device has.
        classes: Names of the federation's C classes, in order; the folder may hold only some of
            them. None: the folder's own.

    Raises:
        DataError: As ``load_images``; or the folder has a class the federation does not know.
    """
    if config.data.kind == "features" and not config.data.feature_means:
        raise DataError(
            f"a device standardises its own table {folder!r} as all others do: set "
            "data.feature-columns, data.feature-means and data.feature-deviations"
        )
    data = _load(config, folder, own=True)
    names = tuple(classes) or data.class_names
    if unknown := sorted(set(data.class_names) - set(names)):
        raise DataError(
            f"data folder {folder!r} has the class {unknown[0]!r}; allowed: {', '.join(names)}"
        )
    codes = np.array([names.index(name) for name in data.class_names], np.int64)
    splits = [replace(split, labels=codes[split.labels]) for split in (data.train, data.test)]
    return replace(data, train=splits[0], test=splits[1], class_names=names)


def names_of_clients(config: "Config", data: ImageData) -> list[str]:
    """What the data calls the clients of the scheme ``natural``; their numbers under any other."""
    if config.data.scheme != "natural":
        return [str(client) for client in range(config.data.num_clients)]
    return [data.client_names[code] for code in clients_of(config, data)]


def clients_of(config: "Config", data: ImageData) -> npt.NDArray[np.int64]:
    """The clients of the data that take part under the scheme ``natural``, int64 [num_clients].

    Raises:
        DataError: The data does not say whose samples are whose, or there are fewer clients.
    """
    return np.delete(largest_clients(data, config.data.shares), config.data.without)


def own_share(data: ImageData, *, validation: int = 0, seed: int = 0) -> ClientIndices:
    """All of a device's own images; ``test_iid`` has every class it holds alike.

    Args:
        data: The device's own.
        validation: How many of its training images it does not train on; class shares are kept.
        seed: Seed of their draw.

    Raises:
        DataError: It has too few of them.
    """
    labels = np.asarray(data.test.labels)
    present, counts = np.unique(labels, return_counts=True)
    chosen = [np.flatnonzero(labels == label)[: counts.min()] for label in present]
    own = ClientIndices(
        np.arange(len(data.train)), np.arange(len(data.test)), np.sort(np.concatenate(chosen))
    )
    if not validation:
        return own
    (own,) = from_training(
        np.asarray(data.train.labels),
        [own],
        size=validation,
        num_classes=data.num_classes,
        seed=seed,
        names=[f"the folder {data.name!r}"],
    )
    return own


def _load(
    config: "Config", dataset: str, progress: OnDecoded | None = None, *, own: bool = False
) -> ImageData:
    section = config.data
    if section.kind == "text":
        from nmoe_flower.data.text import configured_documents

        return configured_documents(config, dataset, own=own, progress=progress)
    return _opened(_request(config, dataset, own=own), section.cache_dir or None, progress)


def _request(config: "Config", dataset: str, *, own: bool = False) -> DataRequest:
    section = config.data
    by_client = section.scheme == "natural" and not (own or section.is_dealt)
    named = by_client or section.kind == "features"
    return DataRequest(
        dataset,
        section.image_column,
        section.label_column,
        section.train_split,
        section.test_split,
        seed=0,
        size=section.pixels,
        fit=section.fit,
        by_client=by_client,
        client_column=section.partition_column if named else "",
        kind=section.kind,
        feature_columns=section.feature_columns,
        feature_means=section.feature_means,
        feature_deviations=section.feature_deviations,
    )


def configured_partition(
    config: "Config", data: ImageData, *, num_clients: int
) -> list[ClientIndices]:
    """Share ``data`` out as ``config`` asks. See ``partition_clients``, also for what it raises.

    Shares of clients that have left go to nobody.
    """
    section = config.data
    dealt = partition_clients(
        data,
        scheme=section.scheme,
        num_clients=num_clients + len(section.without),
        tau=section.tau,
        alpha=section.alpha,
        classes_per_client=section.classes_per_client,
        train_per_client=section.train_per_client,
        test_per_client=section.test_per_client,
        validation_per_client=section.validation_per_client,
        seed=config.run.seed,
        cache_dir=section.cache_dir or None,
    )
    return [share for number, share in enumerate(dealt) if number not in section.without]
