"""The device that asks: whom, for what, how long, and what it cost.

From the outside in: `Client` routes images, `RemoteExperts` is its pool of experts, ``send``
carries a query over the links, ``query`` decides without a clock or a network who is asked for
which rows, a ``link`` knows one peer, a ``channel`` is the connection to it.
"""

from typing import TYPE_CHECKING, Any

from nmoe_flower.inference.ask.breaker import Breaker
from nmoe_flower.inference.ask.channel import Channel, PackedQuery, PeerChannel, Received
from nmoe_flower.inference.ask.device_client import DeviceClient, identity_of
from nmoe_flower.inference.ask.links import PeerState
from nmoe_flower.inference.ask.loop import LoopThread
from nmoe_flower.inference.ask.query import SILENT
from nmoe_flower.inference.ask.record import CallRecord, RouterMetrics, Sent
from nmoe_flower.inference.ask.survey import SERVING, PeerStatus, Survey
from nmoe_flower.on_demand import first_used

if TYPE_CHECKING:
    from nmoe_flower.inference.ask.client import Answer, Client
    from nmoe_flower.inference.ask.peer_gate import PeerGate, projection_version, with_embeddings
    from nmoe_flower.inference.ask.router import RemoteExperts
    from nmoe_flower.inference.ask.text_asking import Send, TextCost
    from nmoe_flower.inference.ask.text_client import (
        Generation,
        Piece,
        TextAnswer,
        TextClient,
        WindowScores,
    )

__all__ = [
    "SERVING",
    "SILENT",
    "Answer",
    "Breaker",
    "CallRecord",
    "Channel",
    "Client",
    "DeviceClient",
    "Generation",
    "LoopThread",
    "PackedQuery",
    "PeerChannel",
    "PeerGate",
    "PeerState",
    "PeerStatus",
    "Piece",
    "Received",
    "RemoteExperts",
    "RouterMetrics",
    "Send",
    "Sent",
    "Survey",
    "TextAnswer",
    "TextClient",
    "TextCost",
    "WindowScores",
    "identity_of",
    "projection_version",
    "with_embeddings",
]

# Where each name is, as the imports above say it to type checkers and editors.
_HOMES = {
    "nmoe_flower.inference.ask.client": ("Answer", "Client"),
    "nmoe_flower.inference.ask.peer_gate": ("PeerGate", "projection_version", "with_embeddings"),
    "nmoe_flower.inference.ask.router": ("RemoteExperts",),
    "nmoe_flower.inference.ask.text_asking": ("Send", "TextCost"),
    "nmoe_flower.inference.ask.text_client": (
        "Generation", "Piece", "TextAnswer", "TextClient", "WindowScores",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    return first_used(__name__, name, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
