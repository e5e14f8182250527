"""A bundle of either kind, by what its ``bundle.json`` says it is."""

from collections.abc import Mapping
from pathlib import Path

from nmoe_flower.inference.bundle.bundle import Bundle
from nmoe_flower.inference.bundle.bundle_files import read_manifest
from nmoe_flower.inference.bundle.text_bundle import TextBundle

__all__ = ["open_bundle"]


def open_bundle(folder: Path) -> Bundle | TextBundle:
    """Read a bundle of images or of text.

    Args:
        folder: Where it lies.

    Raises:
        BundleError: As `Bundle.load` and `TextBundle.load`.
    """
    values = read_manifest(folder)
    of_text = isinstance(values, Mapping) and "kind" in values
    return TextBundle.load(folder) if of_text else Bundle.load(folder)
