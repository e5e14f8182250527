"""What a device keeps to serve and to ask: one checked folder, made from a finished run."""

from nmoe_flower.inference.bundle.bundle import BUNDLE_PARTS, MANIFEST, Bundle, Manifest
from nmoe_flower.inference.bundle.export import export_run, export_store

__all__ = ["BUNDLE_PARTS", "MANIFEST", "Bundle", "Manifest", "export_run", "export_store"]
