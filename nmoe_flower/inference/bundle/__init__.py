"""What a device keeps to serve and to ask: one checked folder, made from a finished run."""

from nmoe_flower.inference.bundle.bundle import BUNDLE_PARTS, Bundle, Manifest
from nmoe_flower.inference.bundle.bundle_files import MANIFEST, DeviceBundle
from nmoe_flower.inference.bundle.experts import (
    OF_ALL,
    Drawn,
    Session,
    TextBackbone,
    TextExperts,
    Writing,
)
from nmoe_flower.inference.bundle.export import export_run, export_store
from nmoe_flower.inference.bundle.kinds import open_bundle
from nmoe_flower.inference.bundle.text_bundle import TextBundle, TextManifest

__all__ = [
    "BUNDLE_PARTS",
    "MANIFEST",
    "OF_ALL",
    "Bundle",
    "DeviceBundle",
    "Drawn",
    "Manifest",
    "Session",
    "TextBackbone",
    "TextBundle",
    "TextExperts",
    "TextManifest",
    "Writing",
    "export_run",
    "export_store",
    "open_bundle",
]
