"""Images decoded once, tables of features, who holds what, and augmentation of whole batches.

Names that need torch or flwr-datasets are imported on first use, so that opening data stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nmoe_flower.data.cache import cache_root
from nmoe_flower.data.columns import TABLE_SUFFIXES, Table, read_table
from nmoe_flower.data.coverage import Coverage, coverage
from nmoe_flower.data.dealing import dominant_share_from_tau
from nmoe_flower.data.domains import seen_in
from nmoe_flower.data.domains_dealt import in_domains
from nmoe_flower.data.features import standardise
from nmoe_flower.data.images import Features, ImageData, Portion, Split, counted, what_changed
from nmoe_flower.data.indices import ClientIndices, label_counts
from nmoe_flower.data.opening import (
    clients_of,
    configured_images,
    configured_partition,
    features_of,
    known_fingerprint,
    load_images,
    names_of_clients,
    own_images,
    own_share,
    with_features,
)
from nmoe_flower.data.own import Partition
from nmoe_flower.data.partition import partition_clients
from nmoe_flower.data.pixels import SUFFIXES, Fit, fit_pixels, open_picture, to_pixels
from nmoe_flower.data.text import (
    ByteTokenizer,
    TextData,
    load_text,
    open_tokenizer,
    train_tokenizer,
)

if TYPE_CHECKING:
    from nmoe_flower.data.augment import Augment, normalise
    from nmoe_flower.data.dominant import DominantClassPartitioner
    from nmoe_flower.data.views import FeatureViews, Views

__all__ = [
    "SUFFIXES",
    "TABLE_SUFFIXES",
    "Augment",
    "ByteTokenizer",
    "ClientIndices",
    "Coverage",
    "DominantClassPartitioner",
    "FeatureViews",
    "Features",
    "Fit",
    "ImageData",
    "Partition",
    "Portion",
    "Split",
    "Table",
    "TextData",
    "Views",
    "cache_root",
    "clients_of",
    "configured_images",
    "configured_partition",
    "counted",
    "coverage",
    "dominant_share_from_tau",
    "features_of",
    "fit_pixels",
    "in_domains",
    "known_fingerprint",
    "label_counts",
    "load_images",
    "load_text",
    "names_of_clients",
    "normalise",
    "open_picture",
    "open_tokenizer",
    "own_images",
    "own_share",
    "partition_clients",
    "read_table",
    "seen_in",
    "standardise",
    "to_pixels",
    "train_tokenizer",
    "what_changed",
    "with_features",
]


def __getattr__(name: str) -> Any:
    if name == "DominantClassPartitioner":
        from nmoe_flower.data.hugging_face import import_extra

        import_extra("flwr_datasets", name)
        return import_module("nmoe_flower.data.dominant").DominantClassPartitioner
    if name in ("Augment", "normalise"):
        return getattr(import_module("nmoe_flower.data.augment"), name)
    if name in ("FeatureViews", "Views"):
        return getattr(import_module("nmoe_flower.data.views"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
