"""What a device keeps to serve and to ask: one checked folder, made from a finished run."""

from typing import TYPE_CHECKING, Any

from nmoe_flower.inference.bundle.bundle_files import (
    MANIFEST,
    DeviceBundle,
    DeviceManifest,
    read_manifest,
)
from nmoe_flower.inference.bundle.folders import bundled_run, read_store
from nmoe_flower.on_demand import first_used

if TYPE_CHECKING:
    from nmoe_flower.inference.bundle.bundle import BUNDLE_PARTS, Bundle, Manifest
    from nmoe_flower.inference.bundle.experts import (
        OF_ALL,
        Drawn,
        Session,
        TextBackbone,
        TextExperts,
        TextStep,
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
    "DeviceManifest",
    "Drawn",
    "Manifest",
    "Session",
    "TextBackbone",
    "TextBundle",
    "TextExperts",
    "TextManifest",
    "TextStep",
    "Writing",
    "bundled_run",
    "export_run",
    "export_store",
    "open_bundle",
    "read_manifest",
    "read_store",
]

# Where each name is, as the imports above say it to type checkers and editors.
_HOMES = {
    "nmoe_flower.inference.bundle.bundle": ("BUNDLE_PARTS", "Bundle", "Manifest"),
    "nmoe_flower.inference.bundle.experts": (
        "OF_ALL", "Drawn", "Session", "TextBackbone", "TextExperts", "TextStep", "Writing",
    ),
    "nmoe_flower.inference.bundle.export": ("export_run", "export_store"),
    "nmoe_flower.inference.bundle.kinds": ("open_bundle",),
    "nmoe_flower.inference.bundle.text_bundle": ("TextBundle", "TextManifest"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    return first_used(__name__, name, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
