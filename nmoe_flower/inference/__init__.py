"""Experts that answer each other over the network: the peer service and its router.

Rooms, each of which sees only those before it: ``protocol`` (what peers say to each other),
``bundle`` (what a device keeps), then ``ask`` and ``serve``, which do not see each other.
"""

from typing import TYPE_CHECKING, Any

from nmoe_flower.inference.protocol import (
    PeerEntry,
    PeerList,
    decode_tensor,
    encode_tensor,
    parse,
    peer_handlers,
)
from nmoe_flower.inference.telemetry import JsonFormatter
from nmoe_flower.on_demand import first_used

if TYPE_CHECKING:
    from nmoe_flower.inference.ask import (
        Answer,
        CallRecord,
        Client,
        DeviceClient,
        Generation,
        PeerStatus,
        Piece,
        RemoteExperts,
        RouterMetrics,
        Sent,
        Survey,
        TextAnswer,
        TextClient,
        WindowScores,
    )
    from nmoe_flower.inference.bundle import (
        Bundle,
        DeviceBundle,
        DeviceManifest,
        Manifest,
        TextBundle,
        TextExperts,
        export_run,
        export_store,
        open_bundle,
    )
    from nmoe_flower.inference.serve import ExpertServer, RefusedError, Sources, SourceWatch

__all__ = [
    "Answer",
    "Bundle",
    "CallRecord",
    "Client",
    "DeviceBundle",
    "DeviceClient",
    "DeviceManifest",
    "ExpertServer",
    "Generation",
    "JsonFormatter",
    "Manifest",
    "PeerEntry",
    "PeerList",
    "PeerStatus",
    "Piece",
    "RefusedError",
    "RemoteExperts",
    "RouterMetrics",
    "Sent",
    "SourceWatch",
    "Sources",
    "Survey",
    "TextAnswer",
    "TextBundle",
    "TextClient",
    "TextExperts",
    "WindowScores",
    "decode_tensor",
    "encode_tensor",
    "export_run",
    "export_store",
    "open_bundle",
    "parse",
    "peer_handlers",
]

# Where each name is, as the imports above say it to type checkers and editors.
_HOMES = {
    "nmoe_flower.inference.ask": (
        "Answer", "CallRecord", "Client", "DeviceClient", "Generation", "PeerStatus", "Piece",
        "RemoteExperts", "RouterMetrics", "Sent", "Survey", "TextAnswer", "TextClient",
        "WindowScores",
    ),
    "nmoe_flower.inference.bundle": (
        "Bundle", "DeviceBundle", "DeviceManifest", "Manifest", "TextBundle", "TextExperts",
        "export_run", "export_store", "open_bundle",
    ),
    "nmoe_flower.inference.serve": ("ExpertServer", "RefusedError", "Sources", "SourceWatch"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    return first_used(__name__, name, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
